"""`DistilledSet`: what distillation hands out, its size in bytes, and its two files.

A distilled set is a folder of `distilled.safetensors` (every number and, in the file's metadata, how to use them) and
`card.json` (what it is and where it came from, with the tensor file's sha256). The card is written last: a folder
without one holds no finished set.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically, write_json
from mdw_jax.runtime.processes import is_main

TENSORS, CARD = "distilled.safetensors", "card.json"
BRANCHES = ("image", "text")
_FORMAT = "mdw_jax.io.distilled_set.1"


@dataclasses.dataclass(frozen=True, eq=False)
class DistilledSet:
    """M synthetic pairs and how to learn from them, in host memory. Shapes and values are checked on construction.

    images: (M, H, W, C), or clips (M, T, H, W, C), float32, in [0, 1] where pixels are clipped (nothing else here
        assumes a picture).
    texts: float32, (M, d) features in the space of the frozen text encoder, or, for an encoder that is trained,
        (M, L, h) embedded tokens, zero beyond the last.
    correspondence: float32 parameters of P, as in `correspondence.py`: {}, {"matrix"} or {"diag", "left", "right"}.
    step_sizes: learned student step sizes {"image", "text"}, or {} when none were learned.
    alpha: scale of the low-rank part of P.
    loss: name of the soft-target loss it was distilled for.

    Raises UserError for wrong dtypes, shapes or names, and for values that are not finite.
    """

    images: np.ndarray
    texts: np.ndarray
    correspondence: Mapping[str, np.ndarray]
    step_sizes: Mapping[str, float]
    alpha: float
    loss: str

    def __post_init__(self):
        for name, array in self._arrays().items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                raise UserError(f"distilled '{name}' must be a float32 numpy array, not {_described(array)}.")
            if not np.isfinite(array).all():
                raise UserError(f"distilled '{name}' holds NaN or infinite values: the distillation diverged; "
                                "lower its learning rates.")
        m = len(self.images) if self.images.ndim else 0
        if self.images.ndim not in (4, 5) or self.images.size == 0:
            raise UserError("distilled images must be (M, H, W, C), or clips (M, T, H, W, C), none of them 0, not "
                            f"{self.images.shape}.")
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
        for name, value in (*self.step_sizes.items(), ("alpha", self.alpha)):
            if not np.isfinite(value):
                raise UserError(f"distilled '{name}' is {value}; it must be a finite number.")

    def _arrays(self) -> dict:
        return {"images": self.images, "texts": self.texts,
                **{f"correspondence.{name}": array for name, array in self.correspondence.items()}}


def byte_budget(distilled: DistilledSet) -> dict:
    """What the set costs, everything counted (METHOD section 5): bytes in float32 of each part and of all.

    Returns {"images", "texts", "correspondence", "step_sizes", "total"} in bytes and "pairs_equivalent", the total
    in units of one image-text pair: what a coreset may hold for the same price.
    """
    budget = {
        "images": distilled.images.nbytes,
        "texts": distilled.texts.nbytes,
        "correspondence": sum(array.nbytes for array in distilled.correspondence.values()),
        "step_sizes": len(distilled.step_sizes) * np.dtype(np.float32).itemsize,
    }
    total = sum(budget.values())
    return {**budget, "total": total,
            "pairs_equivalent": total / (distilled.images[0].nbytes + distilled.texts[0].nbytes)}


def save_distilled(folder, distilled: DistilledSet, card: dict) -> None:
    """Write the set into `folder`, replacing one that is there; `card` is anything JSON can hold.

    The stored card is `card` with "file", "sha256" (of the tensor file), "shapes", "alpha", "loss" and "byte_budget"
    set. An interrupted save leaves no card. Step sizes are stored as float32.
    """
    folder = Path(folder)
    arrays = {**distilled._arrays(),
              **{f"step_size.{name}": np.float32(value) for name, value in distilled.step_sizes.items()}}
    # C order: safetensors writes a strided array's memory as if it were contiguous.
    arrays = {name: np.asarray(array, np.float32, order="C") for name, array in arrays.items()}
    # One metadata entry: safetensors orders several at random, and the same set should be the same file.
    data = save(arrays, metadata={_FORMAT: json.dumps({"alpha": float(distilled.alpha), "loss": distilled.loss})})
    card = {**card, "file": TENSORS, "sha256": hashlib.sha256(data).hexdigest(),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "alpha": float(distilled.alpha), "loss": distilled.loss, "byte_budget": byte_budget(distilled)}
    json.dumps(card)  # a card that JSON cannot hold must fail before the old set is touched
    if not is_main():
        return
    (folder / CARD).unlink(missing_ok=True)
    write_atomically(folder / TENSORS, data)
    write_json(folder / CARD, card)


def load_distilled(folder) -> tuple[DistilledSet, dict]:
    """The set saved in `folder` and its card.

    Raises UserError when the set is missing, unfinished, damaged (its sha256 differs), or not one that `DistilledSet`
    accepts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no distilled set '{folder}'; check the path.")
    try:
        card = json.loads((folder / CARD).read_bytes())
        data = (folder / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"'{folder}' holds no finished distilled set ({Path(error.filename).name} is missing); "
                        "distil again or copy the whole folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the distilled set in '{folder}' cannot be read ({error}); distil or copy it again.") from None
    if not isinstance(card, dict) or card.get("sha256") != hashlib.sha256(data).hexdigest():
        raise UserError(f"{TENSORS} in '{folder}' is not the file its {CARD} describes (sha256 differs): it is damaged "
                        "or from another set; distil or copy it again.")
    try:
        with safe_open(folder / TENSORS, "np") as file:
            said = json.loads(file.metadata()[_FORMAT])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        parts = {prefix: {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                 for prefix in ("correspondence.", "step_size.")}
        return DistilledSet(
            images=arrays["images"], texts=arrays["texts"], correspondence=parts["correspondence."],
            step_sizes={name: float(array) for name, array in parts["step_size."].items()},
            alpha=said["alpha"], loss=said["loss"]), card
    except UserError as error:
        raise UserError(f"the distilled set in '{folder}' cannot be used: {error}") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{TENSORS} in '{folder}' is not a distilled set of format {_FORMAT} ({error!r}); "
                        "distil it again with this version.") from None


def _described(value) -> str:
    return f"{value.dtype} {type(value).__name__}" if hasattr(value, "dtype") else type(value).__name__

NEAREST = "nearest.json"  # of a finished set: its sha256 and, for each text, the real caption nearest to it


def read_captions(folder: Path, sha256: str) -> list[str] | None:
    """The captions beside the set of that sha256 in `folder`; None if there are none of it."""
    try:
        found = json.loads((folder / NEAREST).read_text())
        return found["captions"] if found["sha256"] == sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
