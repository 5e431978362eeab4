"""`mdw search`: photos for a sentence or for a photo, captions for a photo, by a trained student.

The embeddings of photos are kept in `STUDENT/cache/images-<sha256 of the weights>.safetensors`, by the sha256 of what each
file holds: renamed and moved photos are not embedded again, changed ones are.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.export.student import Student, load_student
from mdw_jax.io.files import digest
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
_BATCH = 256  # photos read at a time
_HEX = 32  # digits of the sha256 of a file's contents by which its embedding is kept


class Photos(NamedTuple):
    """Photos and their embeddings.

    Attributes:
        paths: of the photos that can be read.
        embeddings: (N, D), of unit length.
        unreadable: (path, why) of the others.
        kept: how many were embedded by an earlier search.
    """

    paths: list[Path]
    embeddings: np.ndarray
    unreadable: list[tuple[Path, str]]
    kept: int


def search_command(words: Sequence[str], images: Sequence[str], captions: str | None, like: str | None, top: str,
                   weights: str | None, text: str | None) -> None:
    """Print what is nearest to a sentence or to a photo, with cosines.

    Args:
        words: the student's directory and, unless `like` is given, a sentence.
        images: directories of photos, or photos, to search.
        captions: a text file with a caption on each line, to search instead.
        like: a photo to look for instead of a sentence.
        top: how many to print.
        weights: see `load_student`.
        text: the text encoder, see `load_student`.

    Raises:
        UserError: it is not said what to look for or where, or there is nothing to search.
    """
    folder, sentence = _asked(words, images, captions, like)
    if not top.isascii() or not top.isdigit() or int(top) < 1:
        raise UserError(f"--top must be a whole number of at least 1, not '{top}'.")
    student = load_student(folder, weights=weights, text_encoder=text)
    query = student.embed_captions([sentence]) if like is None else student.embed_images([Path(like)])
    if captions is not None:
        lines = _lines(captions)
        found = [(f"{cosine:.3f}", lines[row]) for row, cosine in best(query[0], student.embed_captions(lines), int(top))]
        print(f"{len(lines)} captions; nearest to {like or sentence!r}:")
    else:
        photos = embed_photos(student, photo_paths(images), cache_of(student, folder))
        broken = photos.unreadable and f"the first is '{photos.unreadable[0][0]}' ({photos.unreadable[0][1]})"
        if not photos.paths:
            raise UserError(f"none of {len(photos.unreadable)} photos can be read, {broken}; give others.")
        found = [(f"{cosine:.3f}", str(photos.paths[row])) for row, cosine in best(query[0], photos.embeddings, int(top))]
        new = len(photos.paths) - photos.kept
        print(f"{len(photos.paths)} photos ({new} embedded now, {photos.kept} kept from earlier in {folder}/cache); "
              f"nearest to {like or sentence!r}:")
        if broken:
            print(f"left out: {len(photos.unreadable)} that cannot be read, {broken}")
    for cosine, name in found:
        print(f"  {cosine}  {name}")


def _asked(words: Sequence[str], images: Sequence[str], captions: str | None, like: str | None) -> tuple[Path, str]:
    """The student's directory and the sentence ("" with a photo)."""
    if len(words) > 2:
        raise UserError(f"mdw search takes a student and one sentence, not {len(words)} words; put the sentence in quotes.")
    if (len(words) == 2) == (like is not None):
        raise UserError("say what to look for: a sentence in quotes, or --like PHOTO"
                        f"{', not both' if like is not None else ''}.")
    if bool(images) == (captions is not None):
        raise UserError("say what to search: --images DIR, or --captions FILE"
                        f"{', not both' if images else ''}.")
    if like is not None and not Path(like).is_file():
        raise UserError(f"there is no photo '{like}'; check --like.")
    if len(words) == 2 and not words[1].strip():
        raise UserError("the sentence is empty; write what to look for.")
    return Path(words[0]), words[1] if len(words) == 2 else ""


def best(query, embeddings, count: int) -> list[tuple[int, float]]:
    """The (row, cosine) of the rows nearest to a query, best first.

    Args:
        query: (D,) of unit length.
        embeddings: (N, D) of unit length.
        count: at most so many.
    """
    cosines = np.asarray(embeddings) @ np.asarray(query)
    return [(int(row), float(cosines[row])) for row in np.argsort(-cosines, kind="stable")[:count]]


def photo_paths(images: Sequence[str]) -> list[Path]:
    """All photos of some directories, at any depth, and photos that are named; in order of their paths, each once.

    Raises:
        UserError: a path is not there, or none holds a photo.
    """
    found: dict[Path, None] = {}
    for name in images:
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError(f"there is no '{path}'; check --images.")
        inside = [path] if path.is_file() else sorted(
            one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file()
            and not one.name.startswith("."))
        found |= dict.fromkeys(inside)
    if not found:
        raise UserError(f"there are no photos in '{images[0]}' ({', '.join(SUFFIXES)}); give another directory.")
    return list(found)


def cache_of(student: Student, folder) -> Path:
    """The file that keeps a student's embeddings of photos, in the student's directory."""
    return Path(folder) / "cache" / f"images-{student.sha256[:16]}.safetensors"


def embed_photos(student: Student, paths: Sequence[Path], cache: Path) -> Photos:
    """Embeddings of photos; those of an earlier call are read from the cache, by the sha256 of what the files hold.

    Args:
        student: what embeds.
        paths: of image files.
        cache: the file that keeps the embeddings: see `cache_of`. Where it cannot be written, all are embedded each time.
    """
    key = digest("photos", student.sha256)
    known = _read_cache(cache, key, student.model.dim)
    readable: list[Path] = []
    rows: list[np.ndarray] = []
    unreadable: list[tuple[Path, str]] = []
    kept, new = 0, dict[str, np.ndarray]()
    for start in range(0, len(paths), _BATCH):
        part = paths[start:start + _BATCH]
        names = [_contents(path) for path in part]
        missing = {name: path for name, path in zip(names, part, strict=True)
                   if name and name not in known and name not in new}
        pixels, failures = student.read(list(missing.values()))
        failed = {name: failure for name, failure in zip(missing, failures, strict=True) if failure}
        good = [name for name in missing if name not in failed]
        embedded = student.embed_images(pixels[[failure is None for failure in failures]])
        new |= dict(zip(good, embedded, strict=True))
        for name, path in zip(names, part, strict=True):
            if name is None or name in failed:
                unreadable.append((path, failed[name] if name else "it cannot be opened"))
                continue
            kept += name in known
            readable.append(path)
            rows.append(known[name] if name in known else new[name])
    if new:
        _write_cache(cache, {**known, **new}, key)
    return Photos(readable, np.array(rows, np.float32).reshape(len(rows), student.model.dim), unreadable, kept)


def _contents(path: Path) -> str | None:
    """The first digits of the sha256 of a file; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_HEX]
    except OSError:
        return None


def _read_cache(cache: Path, key: str, dim: int) -> dict[str, np.ndarray]:
    """{digits of the sha256: embedding} of an earlier search; {} where there is none that can be used."""
    arrays = read_keyed_arrays(cache, key) or {}
    names, rows = arrays.get("names"), arrays.get("embeddings")
    if names is None or rows is None or names.shape != (len(rows), _HEX // 2) or rows.shape[1:] != (dim,):
        return {}
    return {bytes(name).hex(): row for name, row in zip(names.astype(np.uint8), rows, strict=True)}


def _write_cache(cache: Path, known: dict[str, np.ndarray], key: str) -> None:
    names = np.frombuffer(bytes.fromhex("".join(known)), np.uint8).reshape(len(known), _HEX // 2)
    try:
        write_keyed_arrays(cache, {"names": names, "embeddings": np.stack(list(known.values()))}, key)
    except OSError as error:
        print(f"note: embeddings cannot be kept in {cache} ({error.strerror}); the next search computes them again.")


def _lines(path: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"the captions '{path}' cannot be read ({error.strerror}); check --captions.") from None
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not UTF-8 text; give a text file with a caption on each line.") from None
    if not any(lines):
        raise UserError(f"'{path}' holds no captions; give a text file with a caption on each line.")
    return [line for line in lines if line]
