"""The dataset card of an export: front matter of the Hugging Face Hub, what the set is, how to use it."""

import re

import yaml

from mdw_jax.io.distilled_set import BRANCHES, CARD, TENSORS, DistilledSet

# What `logits` (b, b) and the block `target` of P make of a student's batch: `losses.SOFT_LOSSES` in PyTorch.
_BOTH = "sum({} for d in (0, 1)) / 2"

TORCH_LOSSES = {
    "probability": _BOTH.format("-((10 * target).softmax(d) * logits.log_softmax(d)).sum(d).mean()"),
    "nce": _BOTH.format("-(target * logits.log_softmax(d)).sum(d).mean()"),
    "cwcl": _BOTH.format("-((target * logits.log_softmax(d)).sum(d) / target.sum(d)).mean()"),
    "kl": _BOTH.format("((10 * target).softmax(d) * ((10 * target).log_softmax(d) - logits.log_softmax(d))).mean()"),
    "bce": "F.binary_cross_entropy_with_logits(logits, target)",
    "mse": "F.mse_loss(logits.sigmoid(), target)",
    "wbce": ("sum((m * -(target * (logits.sigmoid() + 1e-6).log() + (1 - target) * ((-logits).sigmoid() + 1e-6).log()))"
             ".sum()\n           / m.sum().clamp(min=1) for m in (target > 0.5, target <= 0.5)) / 2"),
}

_P = {
    (): "torch.eye(len(images))",
    ("matrix",): 'd["correspondence.matrix"]',
    ("diag", "left", "right"): ('torch.diag(d["correspondence.diag"])\n     + {scale!r} * d["correspondence.left"] @ '
                                'd["correspondence.right"].T'),
}


def torch_recipe(distilled: DistilledSet, tau: float) -> str:
    """A PyTorch program that trains a student on `distilled.safetensors`; of it the reader gives `image_branch` and
    `text_branch`, modules from images and texts to features of one width."""
    left = distilled.correspondence.get("left")
    scale = distilled.alpha / left.shape[1] if left is not None else 1.0
    p = _P[tuple(sorted(distilled.correspondence))].format(scale=float(scale))
    p = f"({p})" if "\n" in p else p
    lr = {branch: f'd["step_size.{branch}"].item()' if distilled.step_sizes else "0.1" for branch in BRANCHES}
    return f"""\
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

d = load_file("distilled.safetensors")
images, texts = d["images"].movedim(-1, -3), d["texts"]  # channels first, in [0, 1]; text features
P = {p}
optimizer = torch.optim.SGD([
    {{"params": image_branch.parameters(), "lr": {lr["image"]}}},
    {{"params": text_branch.parameters(), "lr": {lr["text"]}}}])
for step in range(200):
    rows = torch.randperm(len(images))[:128]
    v, t = F.normalize(image_branch(images[rows]), dim=-1), F.normalize(text_branch(texts[rows]), dim=-1)
    logits, target = v @ t.T / {tau!r}, P[rows][:, rows]
    loss = {TORCH_LOSSES[distilled.loss]}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def dataset_card(distilled: DistilledSet, card: dict, real: bool) -> str:
    """The README.md of an export: front matter that the Hugging Face Hub reads, what the set is, how to use it.

    card: as `export_set` writes it: of it config, preset, data, noise, log_mel, license, formats and png are read.
    """
    pairs, noise = len(distilled.images), card.get("noise", {})
    data = card.get("data") or card.get("config", {}).get("data", {}).get("name", "unknown data")
    kind = "real pairs, chosen" if real else "synthetic image-text pairs, distilled"
    mismatched = (f" Of the source's pairs {noise['rate']:.0%} were mismatched on purpose before that (protocol "
                  f"{noise['protocol']})." if noise.get("rate") else "")
    front = yaml.safe_dump(_front_matter(card, pairs, real), sort_keys=False, allow_unicode=True)
    recipe = ""
    if "safetensors" in card["formats"]:
        recipe = f"""
## A PyTorch student

Give two modules, `image_branch` and `text_branch`, and:

```python
{torch_recipe(distilled, _tau(card))}```

Or with mdw-jax: `mdw_jax.torch_dataset(folder)` is a `Dataset` of (image, text, row) with `.correspondence(rows)` and
`.step_sizes`. With momentum 0.9 take a tenth to a third of the step sizes.
"""
    return f"""\
---
{front}---

# {pairs} pairs from {data}

{pairs} {kind} from {data} by the preset `{card.get("preset", "unknown")}` of mdw-jax. Retrieval models are trained on
them in place of all of the data.{mismatched}

## Contents

{_bullets(_contents(distilled, card))}
## Files

{_bullets(_SHOWN[name] for name in card["formats"])}{recipe}
## Limits and license

{_bullets(_limits(card, real))}"""

_SHOWN = {
    "safetensors": f"`{TENSORS}`: all numbers, float32; `{CARD}`: where they came from",
    "folder": "`images/`: `load_dataset('imagefolder', data_dir='images')`",
    "parquet": "`data.parquet`: `load_dataset('parquet', data_files='data.parquet')`",
    "webdataset": "`shard-000000.tar`: `.png` and `.txt` (the nearest caption), as img2dataset writes them and "
                  "open_clip reads them, with `.json`, `.text.npy` and `.correspondence.npy`",
}


def _contents(distilled: DistilledSet, card: dict) -> list[str]:
    text = card.get("config", {}).get("text", {})
    encoder = ", ".join(f"{name} {text[name]}" for name in ("encoder", "path", "pooling", "dim", "seed")
                        if _counts(text, name))
    sounds = ", log-mel pictures of sounds" if card.get("log_mel") else ""
    form = "embedded tokens" if distilled.texts.ndim == 3 else "features"
    steps = ", ".join(f"{name} {value:.6g}" for name, value in distilled.step_sizes.items()) or "none were learned"
    lines = [
        f"Images{sounds}: {' x '.join(map(str, distilled.images.shape[1:]))}, channels last, in [0, 1].",
        f"Texts: {form}, {' x '.join(map(str, distilled.texts.shape[1:]))}, of a text encoder "
        f"({encoder or 'unknown'}), not sentences. `captions` are the *real* training captions nearest to them, with "
        "their cosines: they say what a text is about. Training on them instead loses what was distilled into texts.",
        f"Correspondence P ({', '.join(sorted(distilled.correspondence)) or 'identity'}; alpha {distilled.alpha!r}): "
        f"how far image i belongs to text j, the target of the loss `{distilled.loss}` at temperature {_tau(card)!r}. "
        "The column `correspondence` is a row of it in full.",
        f"Step sizes of the student's SGD: {steps}.",
    ]
    if card["png"] is None:
        return lines
    exact = " and ".join(place for name, place in (("safetensors", f"`{TENSORS}`"), ("parquet", "`pixels` of Parquet"))
                         if name in card["formats"])
    where = f"Exact float32 is in {exact}: train on that." if exact else "This export holds no exact ones."
    clipped = f", and {clipped:.2%} of the values lay outside of it" if (clipped := card["png"]["clipped"]) else ""
    return [*lines, "**PNGs are 8-bit copies and lose precision**: pixels are off by up to "
            f"{card['png']['largest_error']:.2g} of the range [0, 1]{clipped}. {where}"]


def _limits(card: dict, real: bool) -> list[str]:
    return [
        f"License of the source data, as given by whoever exported this and not checked: {_license(card)}. The "
        f"captions are quoted from that data{', and so are the images' if real else ''}.",
        *([] if real else ["Images are synthetic, but they began as real ones and may resemble them."]),
        "What is wrong or unfair in the source may be so here; `mdw fairness` counts it.",
    ]


def _bullets(lines) -> str:
    return "".join(f"* {line}\n" for line in lines)


def _tau(card: dict) -> float:
    return card.get("config", {}).get("model", {}).get("tau", 0.07)


def _license(card: dict) -> str:
    return " ".join(card["license"].split())


def _counts(text: dict, name: str) -> bool:
    """Whether a key of config.text says something of this encoder."""
    kinds = {"dim": ("bow",), "seed": ("bow",), "path": ("precomputed", "transformer"), "pooling": ("transformer",)}
    return name in text and text.get("encoder") in kinds.get(name, (text.get("encoder"),))


def _front_matter(card: dict, pairs: int, real: bool) -> dict:
    """What the Hub reads. A license that is none of its short names becomes "other", with its own name beside it."""
    license = _license(card)
    known = re.fullmatch(r"[a-z][a-z0-9]*([.-][a-z0-9]+)*", license) is not None
    found = {"parquet": {"data_files": "data.parquet"}, "folder": {"data_dir": "images"},
             "webdataset": {"data_files": "shard-000000.tar"}}
    main = next((found[name] for name in found if name in card["formats"]), None)  # what the Hub's viewer shows
    return {"license": license if known else "other", **({} if known else {"license_name": license}),
            "pretty_name": f"{pairs} {'chosen' if real else 'distilled'} image-text pairs",
            "size_categories": ["n<1K" if pairs < 1000 else "1K<n<10K" if pairs < 10000 else "10K<n<100K"],
            "tags": ["dataset-distillation", "image-text-retrieval", "mdw-jax", *([] if real else ["synthetic"])],
            **({} if main is None else {"configs": [{"config_name": "default", **main}]})}
