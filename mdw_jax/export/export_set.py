"""Writing one distilled set for other programs, with a Hugging Face dataset card.

In the directory of an export, depending on its formats:

    distilled.safetensors          every number, float32 but for P in half precision (`io/distilled_set.py`)
    images/NNNNNN.png              8 bits per channel, with images/metadata.jsonl: what `imagefolder` reads
    data.parquet                   the image, and its pixels and text as float32
    shard-000000.tar               NNNNNN.png, .txt, .json, .text.npy, .correspondence.npy of each pair
    training.json                  how a student is trained on it, and the score to expect (`export/training.py`), with
    backbone.safetensors           the frozen image tower,
    test.safetensors               on request, features of the test split, and
    train.py                       a PyTorch program that does it, with captions.py, checks.py and photos.py (these beside
                                   distilled.safetensors alone)
    README.md                      the dataset card
    SHA256SUMS                     the sha256 of every file, as `sha256sum -c` takes it
    card.json                      facts about the set (written last: without it the export is not finished)

No file name is taken from the data.
"""

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath

from mdw_jax.errors import UserError
from mdw_jax.export.dataset_card import dataset_card
from mdw_jax.export.formats import FORMATS, NearestCaptions, import_pyarrow, is_image_set, png_loss
from mdw_jax.export.student_text import about_set
from mdw_jax.export.training import TRAINING_FILES, Training, training_files
from mdw_jax.io.checksums import SUMS, write_all_listed, write_listed_json
from mdw_jax.io.distilled_set import CARD, DistilledSet, byte_budget, save_distilled, tensor_file
from mdw_jax.method.losses import distillation_loss_entry
from mdw_jax.runtime.processes import is_main

README, PROGRAMS = "README.md", ("train.py", "captions.py", "checks.py", "photos.py")
_OF_TENSOR_FILE = ("file", "sha256", "shapes", "byte_budget", "seen_size")  # entries of a card that `save_distilled` sets


def export_set(path, distilled: DistilledSet, nearest: NearestCaptions, card: dict, *, formats: Sequence[str],
               license: str, real: bool = False, training: Training | None = None) -> None:
    """Write a set into a directory in place of an earlier export. Files of others stay.

    Args:
        path: the directory.
        distilled: the set.
        nearest: captions to write beside its texts.
        card: the set's own card; absolute paths in it are cut to their last part.
        formats: some of `FORMATS`.
        license: of the data that the set comes from.
        real: whether the pairs are real ones (a coreset).
        training: how a student is trained on the set; written with the format "safetensors" alone.

    Raises:
        UserError: as `check_settings`; or the loss of the set is unknown; or a format needs images, and these are video
            clips or have other than one or three channels.
    """
    check_settings(formats, license)
    distillation_loss_entry(distilled.loss)
    needing = [name for name in formats if FORMATS[name].needs_images]
    if needing and not is_image_set(distilled):
        raise UserError(f"distilled images of shape {distilled.images.shape[1:]} cannot be written as PNG files, which "
                        f"{' and '.join(needing)} need{'s' if len(needing) == 1 else ''}; set export.formats to "
                        "safetensors,parquet.")
    directory = Path(path)
    numbers = {"step_sizes": dict(distilled.step_sizes), "alpha": float(distilled.alpha), "loss": distilled.loss,
               **({"seen_size": distilled.seen_size} if distilled.seen_size else {})}
    card = {name: value for name, value in _without_paths(card).items() if name not in _OF_TENSOR_FILE}
    card |= {**numbers, "license": license, "formats": list(formats),
             "byte_budget": byte_budget(distilled), "png": png_loss(distilled.images) if is_image_set(distilled) else None}
    files = {}
    for name in formats:
        make_files = FORMATS[name].files
        files |= {} if make_files is None else make_files(distilled, nearest, numbers)
    if training is not None and "safetensors" in formats:
        training = training._replace(record=_without_paths({**training.record, "about": about_set(card)}))
        files |= training_files(training, hashlib.sha256(tensor_file(distilled)).hexdigest())
        files |= {name: resources.files("mdw_jax.export").joinpath("templates", name).read_bytes() for name in PROGRAMS}
    else:
        training = None
    files[README] = dataset_card(distilled, card, real, training).encode()
    if is_main():
        _remove_export(directory)
    write_all_listed(directory, files)
    if "safetensors" in formats:
        save_distilled(directory, distilled, card)
    else:
        write_listed_json(directory / CARD, card)


def check_settings(formats: Sequence[str], license: str) -> None:
    """Check `export.formats` and `export.license`.

    Raises:
        UserError: there are no formats, or one is unknown or needs a package that is missing; or there is no license.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        problem = f"holds '{unknown[0]}'" if unknown else "is empty"
        raise UserError(f"export.formats {problem}; set it to some of {', '.join(FORMATS)}.")
    if not license.strip():
        raise UserError("export.license is not set; set it to the license of the data that the sets come from, such as "
                        "cc-by-4.0 (or to unknown): the dataset card tells users by it what they may do with them.")
    if "parquet" in formats:
        import_pyarrow()


def _remove_export(directory: Path) -> None:
    """Remove the files of an earlier export, the card first, then the list of its checksums."""
    (directory / CARD).unlink(missing_ok=True)
    (directory / SUMS).unlink(missing_ok=True)
    patterns = [README, *TRAINING_FILES, *PROGRAMS, *(pattern for form in FORMATS.values() for pattern in form.patterns)]
    for path in [path for pattern in patterns for path in directory.glob(pattern)]:
        path.unlink()


def _without_paths(value):
    """A card without paths of this machine: of an absolute path the last part stays."""
    if isinstance(value, dict):
        return {name: _without_paths(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    separators = ("::", ",")  # not handed on: to Python 3.12 "::" is a Windows drive
    return "".join(part if part in separators else _last_part(part) for part in re.split("(::|,)", value))


def _last_part(text: str) -> str:
    if text.startswith(("/", "~")):
        return PurePosixPath(text).name
    return PureWindowsPath(text).name if PureWindowsPath(text).drive else text
