"""The dataset card of an export: front matter of the Hugging Face Hub, what the set is, how to use it."""

import re
import sys

import yaml

from mdw_jax.config.plugins import is_path
from mdw_jax.errors import UserError
from mdw_jax.export.formats import FORMATS
from mdw_jax.export.student_text import training_descriptions, training_section
from mdw_jax.export.training import Training
from mdw_jax.io.distilled_set import BRANCHES, BYTES_PER_NUMBER, TENSORS, DistilledSet, byte_budget
from mdw_jax.method.losses import distillation_loss_entry
from mdw_jax.method.matching import student_optimizer_entry
from mdw_jax.reporting.noise_text import natural_noise

_P = {
    (): "torch.eye(len(images))",
    ("matrix",): 'd["correspondence.matrix"]',
    ("diag", "left", "right"): ('torch.diag(d["correspondence.diag"])\n     + {scale!r} * d["correspondence.left"] @ '
                                'd["correspondence.right"].T'),
}


def torch_recipe(distilled: DistilledSet, tau: float, optimizer: str = "sgd") -> str | None:
    """A PyTorch program that trains a student on `distilled.safetensors`.

    Its reader defines `image_branch` and `text_branch`, modules from images and texts to features of one width.

    Args:
        distilled: the set.
        tau: temperature of the logits.
        optimizer: the student's optimizer that the step sizes were learned for, `distill.inner_optimizer`.

    Returns:
        The program, or None if the loss or the optimizer has no PyTorch version.

    Raises:
        UserError: the loss of the set is unknown.
    """
    loss, torch_optimizer = distillation_loss_entry(distilled.loss).torch, _torch_optimizer(optimizer)
    if loss is None or torch_optimizer is None:
        return None
    left = distilled.correspondence.get("left")
    scale = distilled.alpha / left.shape[1] if left is not None else 1.0
    p = _P[tuple(sorted(distilled.correspondence))].format(scale=float(scale))
    p = f"({p})" if "\n" in p else p
    # PyTorch's `align_corners=False`, its default, is what `enlarged` does.
    enlarge = ("" if not distilled.seen_size else "\nimages = F.interpolate(images, size="
               f'{distilled.seen_size}, mode="bilinear")  # stored smaller than models see them')
    lr = {branch: f'd["step_size.{branch}"].item()' if distilled.step_sizes else "0.1" for branch in BRANCHES}
    return f"""\
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

d = {{name: tensor.float() for name, tensor in load_file("distilled.safetensors").items()}}
images, texts = d["images"].movedim(-1, -3), d["texts"]  # channels first, in [0, 1]; text features{enlarge}
P = {p}
groups = [
    {{"params": image_branch.parameters(), "lr": {lr["image"]}}},
    {{"params": text_branch.parameters(), "lr": {lr["text"]}}}]
optimizer = {torch_optimizer}
for step in range(200):
    rows = torch.randperm(len(images))[:128]
    v, t = F.normalize(image_branch(images[rows]), dim=-1), F.normalize(text_branch(texts[rows]), dim=-1)
    logits, target = v @ t.T / {tau!r}, P[rows][:, rows]
    loss = {loss}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def _torch_optimizer(name: str) -> str | None:
    """The PyTorch twin of a student optimizer; None where it has none, or is in a module that was not imported before.

    The name can come from a card, and no card may choose what is imported.
    """
    if is_path(name) and name.partition(":")[0] not in sys.modules:
        return None
    try:
        return student_optimizer_entry(name).torch
    except UserError:
        return None


def dataset_card(distilled: DistilledSet, card: dict, real: bool, training: Training | None = None) -> str:
    """The README.md of an export: front matter that the Hugging Face Hub reads, what the set is, how to use it.

    Args:
        distilled: the set.
        card: as `export_set` writes it; config, preset, data, noise, log_mel, license, formats and png are read.
        real: whether the pairs are real ones (a coreset).
        training: how its students are trained; None: the card shows a recipe whose reader brings the model.

    Raises:
        UserError: the loss of the set is unknown.
    """
    pairs = len(distilled.images)
    data = card.get("data") or card.get("config", {}).get("data", {}).get("name", "unknown data")
    kind = "real pairs, chosen" if real else "synthetic image-text pairs, distilled"
    front = yaml.safe_dump(_front_matter(card, pairs, real), sort_keys=False, allow_unicode=True)
    student = _student_section(distilled, card) if training is None and "safetensors" in card["formats"] else ""
    lead = "" if training is None else training_section(training)
    files = [*(FORMATS[name].description for name in card["formats"]), *(training_descriptions(training))]
    return f"""\
---
{front}---

# {pairs} pairs from {data}

{pairs} {kind} from {data} by the preset `{card.get("preset", "unknown")}` of mdw-jax. Retrieval models are trained on
them in place of all of the data.{_noise(card.get("noise", {}))}
{lead}
## Contents

{_bullets(_contents(distilled, card))}
## Files

{_bullets(files)}{student}
## Limits and license

{_bullets(_limits(card, real))}"""


def _noise(noise: dict) -> str:
    """How many of the source's pairs were mismatched: on purpose, or, as estimated, as they came."""
    if noise.get("protocol") == "natural":
        return f" {natural_noise(noise)}"
    return (f" Of the source's pairs {noise['rate']:.0%} were mismatched on purpose before that (protocol "
            f"{noise['protocol']})." if noise.get("rate") else "")


def _student_section(distilled: DistilledSet, card: dict) -> str:
    """How to train a PyTorch student, or why there is no recipe."""
    optimizer = _optimizer(distilled, card)
    recipe = torch_recipe(distilled, _tau(card), optimizer)
    if recipe is None:
        part = (f"optimizer `{optimizer}`" if distillation_loss_entry(distilled.loss).torch else f"loss `{distilled.loss}`")
        how = (f"There is no PyTorch recipe for the {part} of this set: write that part in PyTorch yourself, or train "
               "students with mdw-jax.\n")
    else:
        how = f"""\
Define two modules, `image_branch` and `text_branch`, and run:

```python
{recipe}```
"""
    advice = " With momentum 0.9 take a tenth to a third of the step sizes." if optimizer == "sgd" else ""
    return f"""
## A PyTorch student

{how}
With mdw-jax installed, `mdw_jax.torch_dataset(path)` is a `Dataset` of (image, text, row) with `.correspondence(rows)` and
`.step_sizes`.{advice}
"""


def _optimizer(distilled: DistilledSet, card: dict) -> str:
    """The student's optimizer that the step sizes were learned for."""
    return card.get("config", {}).get("distill", {}).get("inner_optimizer", "sgd") if distilled.step_sizes else "sgd"


def _contents(distilled: DistilledSet, card: dict) -> list[str]:
    text = card.get("config", {}).get("text", {})
    encoder = ", ".join(f"{name} {text[name]}" for name in ("encoder", "path", "pooling", "dim", "seed")
                        if _is_relevant(text, name))
    log_mel = ", log-mels of audio" if card.get("log_mel") else ""
    form = "embedded tokens" if distilled.texts.ndim == 3 else "features"
    steps = ", ".join(f"{name} {value:.6g}" for name, value in distilled.step_sizes.items()) or "none were learned"
    lines = [
        f"Images{log_mel}: {' x '.join(map(str, distilled.images.shape[1:]))}, channels last, in [0, 1]."
        f"{_enlarging(distilled)}",
        f"Texts: {form}, {' x '.join(map(str, distilled.texts.shape[1:]))}, of a text encoder "
        f"({encoder or 'unknown'}), not sentences. `captions` are the *real* training captions nearest to them, with "
        "their cosines: they say what a text is about. Training on them instead loses what was distilled into texts.",
        f"Correspondence P ({', '.join(sorted(distilled.correspondence)) or 'identity'}; alpha {distilled.alpha!r}): "
        f"how far image i belongs to text j, the target of the loss `{distilled.loss}` at temperature {_tau(card)!r}. "
        f"{_reading(distilled.loss)} The column `correspondence` is a row of it in full.",
        f"Step sizes of the student ({_optimizer(distilled, card)}): {steps}.",
        _size(distilled),
        *([f"Chosen on val among {len(card['candidates'])} candidates: {card['chosen']}."] if card.get("chosen") else []),
    ]
    if card["png"] is None:
        return lines
    exact = " and ".join(place for name, place in (("safetensors", f"`{TENSORS}`"), ("parquet", "`pixels` of Parquet"))
                         if name in card["formats"])
    where = f"Exact float32 is in {exact}: train on that." if exact else "This export holds no exact ones."
    clipped = f", and {clipped:.2%} of the values lay outside of it" if (clipped := card["png"]["clipped"]) else ""
    return [*lines, "**PNGs are 8-bit copies and lose precision**: pixels are off by up to "
            f"{card['png']['largest_error']:.2g} of the range [0, 1]{clipped}. {where}"]


def _enlarging(distilled: DistilledSet) -> str:
    side = distilled.seen_size
    return f" They are stored small: enlarge them bilinearly to {side} x {side}, as all models saw them." if side else ""


def _reading(loss: str) -> str:
    """How P is to be read, in words."""
    scale = distillation_loss_entry(loss).correspondence_scale
    if scale is None:
        return "It is the target itself: larger entries weigh more."
    return f"It is read as logits: the target is softmax({scale:g} P), over texts and over images."


def _size(distilled: DistilledSet) -> str:
    """How many bytes the set takes, and what is counted."""
    size = byte_budget(distilled)
    parts = ", ".join(f"{name.replace('_', ' ')} {size[name]:,}" for name in BYTES_PER_NUMBER)
    return (f"Size: {size['total']:,} bytes ({parts}), with images in 8 bits, texts and the parameters of P in half "
            "precision; files that hold float32 are larger.")


def _limits(card: dict, real: bool) -> list[str]:
    return [
        f"License of the source data, as stated by the exporter and not checked: {_license(card)}. The "
        f"captions are quoted from that data{', and so are the images' if real else ''}.",
        *([] if real else ["Images are synthetic, but they began as real ones and may resemble them."]),
        *([f"How the source was read: {' '.join(' '.join(card['source_notes']).split())}"]
          if card.get("source_notes") else []),
        "What is wrong or unfair in the source may be so here; `mdw fairness` counts it.",
    ]


def _bullets(lines) -> str:
    return "".join(f"* {line}\n" for line in lines)


def _tau(card: dict) -> float:
    return card.get("config", {}).get("model", {}).get("tau", 0.07)


def _license(card: dict) -> str:
    return " ".join(card["license"].split())


def _is_relevant(text: dict, name: str) -> bool:
    """Whether this text encoder reads that key of config.text."""
    kinds = {"dim": ("bow",), "seed": ("bow",), "path": ("precomputed", "transformer"), "pooling": ("transformer",)}
    return name in text and text.get("encoder") in kinds.get(name, (text.get("encoder"),))


def _front_matter(card: dict, pairs: int, real: bool) -> dict:
    """What the Hub reads. A license that is none of its short names becomes "other", with its own name beside it."""
    license = _license(card)
    known = re.fullmatch(r"[a-z][a-z0-9]*([.-][a-z0-9]+)*", license) is not None
    configs = {"parquet": {"data_files": "data.parquet"}, "folder": {"data_dir": "images"},
               "webdataset": {"data_files": "shard-000000.tar"}}
    main = next((configs[name] for name in configs if name in card["formats"]), None)  # what the Hub's viewer shows
    return {"license": license if known else "other", **({} if known else {"license_name": license}),
            "pretty_name": f"{pairs} {'chosen' if real else 'distilled'} image-text pairs",
            "size_categories": ["n<1K" if pairs < 1000 else "1K<n<10K" if pairs < 10000 else "10K<n<100K"],
            "tags": ["dataset-distillation", "image-text-retrieval", "mdw-jax", *([] if real else ["synthetic"])],
            **({} if main is None else {"configs": [{"config_name": "default", **main}]})}
