"""`DistilledSet`: the result of a distillation, its size in bytes, and its two files.

A distilled set is stored as a directory with `distilled.safetensors` (all arrays and, in the file's metadata, the
settings needed to learn from them) and `card.json` (what the set is and where it comes from, with the sha256 of the
tensor file). The card is written last: a directory without one holds no finished set.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified_json, write_all_listed, write_listed_json
from mdw_jax.io.files import json_bytes, parse_json
from mdw_jax.io.locate import refuse_unusable_path, wrong_level
from mdw_jax.runtime.processes import is_main

TENSORS, CARD = "distilled.safetensors", "card.json"
NEAREST = "nearest.json"  # the sha256 of the set and, for each of its texts, the nearest real caption
BRANCHES = ("image", "text")
# What a set takes where it is handed on: 8 bits per color value, half precision for texts and the parameters of P,
# float32 for step sizes. (The file of a set holds float32 throughout, so that a run goes on from exact numbers.)
BYTES_PER_NUMBER = {"images": 1, "texts": 2, "correspondence": 2, "step_sizes": 4}
_FORMAT = "mdw_jax.io.distilled_set.1"


@dataclasses.dataclass(frozen=True, eq=False)
class DistilledSet:
    """M synthetic pairs and how to learn from them, in host memory. Shapes and values are checked on construction.

    Attributes:
        images: (M, H, W, C), or video clips (M, T, H, W, C), float32, in [0, 1] where pixels are clipped: as they are
            stored, which can be smaller than models see them (`data.resizing.seen_images`).
        texts: float32, (M, d) features in the space of the frozen text encoder, or, for a trained encoder, (M, L, h)
            embedded tokens, zero beyond the last.
        correspondence: float32 parameters of P, as in `mdw_jax.method.correspondence`: {}, {"matrix"} or {"diag",
            "left", "right"}.
        step_sizes: learned student step sizes {"image", "text"}; {} if none were learned.
        alpha: scale of the low-rank part of P.
        loss: name of the distillation loss it was distilled for: of this package, or `module:function`, which is imported
            where a student is trained on the set.
        seen_size: side at which models see the images, pixels, where they are stored at another; 0: as they are stored.

    Raises:
        UserError: wrong types, dtypes, shapes or names, or values that are not finite.
    """

    images: np.ndarray
    texts: np.ndarray
    correspondence: Mapping[str, np.ndarray]
    step_sizes: Mapping[str, float]
    alpha: float
    loss: str
    seen_size: int = 0

    def __post_init__(self):
        _check_settings(self.correspondence, self.step_sizes, self.alpha, self.loss)
        for name, array in self._arrays().items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                raise UserError(f"distilled '{name}' must be a float32 numpy array, not {_described(array)}.")
            if not np.isfinite(array).all():
                raise UserError(f"distilled '{name}' holds NaN or infinite values: the distillation diverged; "
                                "lower its learning rates.")
        m = len(self.images) if self.images.ndim else 0
        if self.images.ndim not in (4, 5) or self.images.size == 0:
            raise UserError("distilled images must be (M, H, W, C), or video clips (M, T, H, W, C), without a length "
                            f"of 0, not {self.images.shape}.")
        side = self.seen_size
        if isinstance(side, bool) or not isinstance(side, int) or side < 0 or side and (
                self.images.ndim != 4 or self.images.shape[1] != self.images.shape[2] or side < self.images.shape[1]):
            raise UserError(f"distilled images of shape {self.images.shape[1:]} cannot be seen at side {side!r}: that "
                            "takes square images, stored at this side or a smaller one.")
        if self.texts.ndim not in (2, 3) or len(self.texts) != m or self.texts.size == 0:
            raise UserError(f"{m} distilled images need texts of shape ({m}, d) or ({m}, L, h), not "
                            f"{self.texts.shape}.")
        shapes = {name: array.shape for name, array in self.correspondence.items()}
        rank = shapes.get("left", (0, 0))[-1:]
        allowed = ({}, {"matrix": (m, m)}, {"diag": (m,), "left": (m, *rank), "right": (m, *rank)})
        if shapes not in allowed:
            raise UserError(f"the correspondence of {m} distilled pairs must be empty, a matrix ({m}, {m}), or diag "
                            f"({m},) with left and right ({m}, rank), not {shapes}.")
        if self.step_sizes and set(self.step_sizes) != set(BRANCHES):
            raise UserError("distilled step sizes are learned for image and text or not at all, not for "
                            f"{', '.join(self.step_sizes)}.")

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in self._arrays().items())
        seen = f", images seen at {self.seen_size}x{self.seen_size}" if self.seen_size else ""
        learned = ", learned step sizes" if self.step_sizes else ""
        return f"DistilledSet({len(self.images)} pairs: {arrays}{seen}; loss {self.loss}{learned})"

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """The shape of one image as models see it: (H, W, C), or (T, H, W, C)."""
        shape = self.images.shape[1:]
        return (self.seen_size, self.seen_size, shape[-1]) if self.seen_size else shape

    def _settings(self) -> dict:
        """What is no array, as the file's metadata hold it. Sets that are stored as they are seen say nothing of it."""
        return {"alpha": float(self.alpha), "loss": self.loss,
                **({"seen_size": self.seen_size} if self.seen_size else {})}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"images": self.images, "texts": self.texts,
                **{f"correspondence.{name}": array for name, array in self.correspondence.items()}}


def _check_settings(correspondence, step_sizes, alpha, loss) -> None:
    """Raises UserError where a part of a distilled set that is no array has the wrong type, or is no finite number."""
    for name, mapping in (("correspondence", correspondence), ("step_sizes", step_sizes)):
        if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
            raise UserError(f"distilled '{name}' must be a mapping from names, not {_described(mapping)}.")
    for name, value in (*step_sizes.items(), ("alpha", alpha)):
        if not isinstance(value, (int, float, np.floating)) or isinstance(value, bool) or not np.isfinite(value):
            raise UserError(f"distilled '{name}' is {value!r}; it must be a finite number.")
    if not isinstance(loss, str) or not re.fullmatch(r"[\w.]+(:[\w.]+)?", loss):
        raise UserError(f"distilled 'loss' is {loss!r}; it must be the name of a loss, or module:function.")


def byte_budget(distilled: DistilledSet) -> dict[str, float]:
    """The size of a set, everything counted, at the precisions of `BYTES_PER_NUMBER` (docs/method.md, section 5.5).

    Returns:
        {"images", "texts", "correspondence", "step_sizes", "total"} in bytes, and "pairs_equivalent": the total in
        units of one real pair with an image of the size that models see, which is how many pairs a coreset of the same
        size has.
    """
    numbers = {
        "images": distilled.images.size,
        "texts": distilled.texts.size,
        "correspondence": sum(array.size for array in distilled.correspondence.values()),
        "step_sizes": len(distilled.step_sizes),
    }
    budget = {part: BYTES_PER_NUMBER[part] * count for part, count in numbers.items()}
    total = sum(budget.values())
    pair = (BYTES_PER_NUMBER["images"] * math.prod(distilled.seen_shape)
            + BYTES_PER_NUMBER["texts"] * distilled.texts[0].size)
    return {**budget, "total": total, "pairs_equivalent": total / pair}


def tensor_file(distilled: DistilledSet) -> bytes:
    """The bytes of a set's tensor file. Step sizes are stored as float32."""
    # C order: safetensors writes a strided array's memory as if it were contiguous.
    arrays = {name: _stored(name, np.asarray(value, np.float32, order="C"))
              for name, value in _named_arrays(distilled).items()}
    # One metadata entry: safetensors orders several at random, and the same set should be the same file.
    return save(arrays, metadata={_FORMAT: json.dumps(distilled._settings())})


def _named_arrays(distilled: DistilledSet) -> dict[str, np.ndarray]:
    sizes = {f"step_size.{name}": np.asarray(value) for name, value in distilled.step_sizes.items()}
    return distilled._arrays() | sizes


def save_distilled(path, distilled: DistilledSet, card: dict) -> None:
    """Write a set into the directory `path`, replacing one that is there.

    An interrupted save leaves no card. Step sizes are stored as float32. With several processes, only process 0 writes.

    Args:
        path: the directory, made if it does not exist.
        distilled: the set.
        card: facts about the set, anything JSON can hold. The stored card also has "file", "sha256" (of the tensor
            file), "shapes", "alpha", "loss", "byte_budget" and, where images are stored smaller than models see them,
            "seen_size".
    """
    directory, data = Path(path), tensor_file(distilled)
    card = {**card, "file": TENSORS, "sha256": hashlib.sha256(data).hexdigest(),
            "shapes": {name: list(array.shape) for name, array in _named_arrays(distilled).items()},
            **distilled._settings(), "byte_budget": byte_budget(distilled)}
    described = json_bytes(card)  # a card that JSON cannot hold must fail before the old set is touched
    if not is_main():
        return
    (directory / CARD).unlink(missing_ok=True)
    write_all_listed(directory, {TENSORS: data, CARD: described})


def load_distilled(path, allow_loss: str | None = None) -> tuple[DistilledSet, dict]:
    """Read a distilled set. Nothing in its files can run code, neither here nor where a student is trained on it.

    Args:
        path: its directory: `<run.dir>/distilled/<preset>-<key>/set_<i>`, or an export.
        allow_loss: the distillation loss `module:function` that the set may name. Training students imports and calls
            it, so pass what your own config names, `distill.loss`, and not what the files say.

    Returns:
        The set and its card.

    Raises:
        UserError: it is missing, unfinished, damaged (its sha256 differs), or not one that `DistilledSet` accepts; it
            names a loss from outside this package other than `allow_loss`; for a path one level too high or too low,
            the message names the right one.
    """
    distilled, card = load_for_display(path)
    if ":" in distilled.loss and distilled.loss != allow_loss:
        raise UserError(f"the distilled set in '{path}' names the loss '{distilled.loss}' from outside this package, "
                        "which would run code that its files chose; if you trust it, set distill.loss to that name, or "
                        "call load_distilled with allow_loss.")
    return distilled, card


def load_for_display(path) -> tuple[DistilledSet, dict]:
    """Read a distilled set whose loss is not used: `load_distilled` without the check of the loss's name.

    Train no student on it: its files could name a loss from anywhere.

    Args:
        path: as for `load_distilled`.

    Raises:
        UserError: as `load_distilled`, whatever the loss.
    """
    directory = Path(path)
    refuse_unusable_path(directory)
    try:
        card = read_verified_json(directory / CARD)
        data = (directory / TENSORS).read_bytes()
    except OSError as error:
        raise UserError(_missing(directory, error)) from None
    except ValueError as error:
        raise UserError(f"{CARD} of the distilled set in '{directory}' cannot be read ({error}); distill or copy it "
                        "again.") from None
    if card.get("sha256") != hashlib.sha256(data).hexdigest():
        raise UserError(f"{TENSORS} in '{directory}' is not the file its {CARD} describes (sha256 differs): it is "
                        "damaged or from another set; distill or copy it again.")
    try:
        return _from_file(directory / TENSORS), card
    except UserError as error:
        raise UserError(f"the distilled set in '{directory}' cannot be used: {error}") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{TENSORS} in '{directory}' is not a distilled set of format {_FORMAT} ({error!r}); "
                        "distill it again with this version.") from None


def _missing(directory: Path, error: OSError) -> str:
    """One sentence on why there is no set in a directory."""
    hint = wrong_level(directory, "set")
    if hint:
        return hint
    if not directory.exists():
        return f"there is no distilled set '{directory}'; check the path."
    if isinstance(error, FileNotFoundError):
        return (f"'{directory}' holds no finished distilled set ({Path(error.filename).name} is missing); distill "
                "again or copy the whole directory.")
    return f"the distilled set in '{directory}' cannot be read ({error}); distill or copy it again."


def _stored(name: str, array: np.ndarray) -> np.ndarray:
    """The array as it is written: P in half precision where that changes no value, as of all sets of this package."""
    if not name.startswith("correspondence."):
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _from_file(path: Path) -> DistilledSet:
    with safe_open(path, "np") as file:
        settings = parse_json(file.metadata()[_FORMAT])
        arrays = {name: _widened(file.get_tensor(name)) for name in file.keys()}
    parts = {prefix: {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
             for prefix in ("correspondence.", "step_size.")}
    return DistilledSet(
        images=arrays["images"], texts=arrays["texts"], correspondence=parts["correspondence."],
        step_sizes={name: float(array) for name, array in parts["step_size."].items()},
        alpha=settings["alpha"], loss=settings["loss"], seen_size=settings.get("seen_size", 0))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _described(value) -> str:
    return f"{value.dtype} {type(value).__name__}" if hasattr(value, "dtype") else type(value).__name__


def write_captions(path, sha256: str, captions: Sequence[str]) -> None:
    """Write, beside a finished set, the real caption nearest to each of its texts.

    Args:
        path: the set's directory.
        sha256: of the set's tensor file, as its card says.
        captions: M strings.
    """
    write_listed_json(Path(path) / NEAREST, {"sha256": sha256, "captions": list(captions)})


def read_captions(path, sha256: str) -> list[str] | None:
    """The captions that `write_captions` wrote for the set of that sha256; None if there are none.

    Raises:
        DamagedError: the file is not as it was written.
    """
    try:
        record = read_verified_json(Path(path) / NEAREST)
    except DamagedError:
        raise
    except (OSError, ValueError):
        return None
    return record.get("captions") if record.get("sha256") == sha256 else None
