"""What a dataset card says of the students of a set: how to train one, the score to expect, what the set is valid for."""

import textwrap
from collections.abc import Mapping

from mdw_jax.export.training import Training

_INSTALL = "pip install torch numpy pillow safetensors"
_OWN_DATA = "python train.py --images photos/ --captions captions.csv   # score on photos of yours; columns image, caption"


def about_set(card: Mapping) -> dict:
    """What a set is, for people, in training.json and in the students that are trained on it."""
    noise = card.get("noise", {})
    return {"preset": card.get("preset"), "data": card.get("data"), "set": card.get("set"),
            "noise": {name: noise.get(name) for name in ("protocol", "rate")}}


def training_descriptions(training: Training | None) -> list[str]:
    """One line for each of the files that training needs."""
    if training is None:
        return []
    return ["`train.py`, `captions.py`, `checks.py`, `photos.py`: train a student on the set in plain PyTorch and score it",
            "`training.json`: how: optimizer, step sizes, steps, heads, text encoder, scores to expect",
            *(["`backbone.safetensors`: the image tower's weights"] if training.tensors else []),
            *(["`test.safetensors`: features of the test split's images and captions, and which belong together"]
              if training.test else [])]


def training_section(training: Training) -> str:
    """The section that a card leads with: the two commands, and the score."""
    record = training.record
    text, tower = record["text"], record["image"]["tower"]
    evaluate = ("python train.py --students 5   # trains; scores on the run's test split, whose features are here"
                if training.test else _OWN_DATA)
    if text["kind"] != "bow" and not training.test:
        needs = "--text-model DIR" if text["kind"] == "transformer" else "--caption-features captions.npy"
        evaluate = _OWN_DATA.replace(" captions.csv ", f" captions.csv {needs} ")
    steps = sum(phase["steps"] for phase in record["phases"])
    trained = "two heads" if record["image"]["mode"] == "projection" else "two heads and the image tower"
    how = ("or, with mdw-jax, `mdw train .` (`--data PATH` scores on a data set of yours) and `mdw search student --images "
           f'photos/ "a dog on a beach"`. Both train {trained} on the pairs for {steps} steps ({record["chosen"]["how"]}) '
           "and write the student as `student.safetensors` and `student.json`.")
    if tower["kind"] in ("published", "vit"):
        how += f" train.py does not compute the image tower `{_tower_name(tower)}` and says so; `mdw train` does."
    return f"""
## Train a model on it

```sh
{_INSTALL}
{evaluate}
```

{_wrapped(how)}

{_wrapped(expected_text(record))}

{_valid_for(training)}"""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def expected_text(record: Mapping) -> str:
    """The score to expect, in a sentence."""
    expected, test = record["expected"], record["test"]
    if not expected:
        return ("**No score is known**: no student of this set was evaluated before the export; the number of steps and "
                "the scale of the step sizes are guesses.")
    split = f"the run's test split ({test['images']} images, {test['captions']} captions)"
    text = (f"Expect r_mean **{expected['mean']['r_mean']:.2f}** +- {expected['std']['r_mean']:.2f} (mean and standard "
            f"deviation of {expected['students']} students of the run) on {split}")
    if expected["interval_of_one"]:
        low, high = expected["interval_of_one"]
        text += f"; one more student falls between {max(low, 0):.2f} and {min(high, 100):.2f} with 95 % probability"
    if expected["select_on"] == "test":
        text += ". It is each student's best evaluation on test, which is optimistic"
    return f"{text}. r_mean is the mean of recall at 1, 5 and 10 in both directions, in percent."


def _valid_for(training: Training) -> str:
    record = training.record
    rows = [(f"`{tower['tower']}`{' (the set was made for it)' if tower['own'] else ''}",
             "trained from scratch or fine-tuned" if tower["mode"] == "full" or tower["own"]
             and record["image"]["mode"] == "full" else "frozen, under a trained head", tower["expected"])
            for tower in record["towers"]]
    table = "".join(f"| {name} | {mode} | {one['students']} | {one['mean']['r_mean']:.2f} +- {one['std']['r_mean']:.2f} |\n"
                    for name, mode, one in rows)
    measured = f"""| image tower | how | students | r_mean |
|---|---|---|---|
{table}
""" if rows else ""
    towers = ("Image towers that are not in this table" if rows else "Image towers: none was tried, so any")
    return f"""## What it is valid for

{measured}* {towers}{' were not tried: nothing is known of them.' if rows else ' is untested.'}
* The texts are features of one text encoder ({_encoder(record['text'])}): captions of any other encoder do not fit.
* The scores are on the test split of the data that the set comes from; of other data nothing was measured.
"""


def _encoder(text: Mapping) -> str:
    if text["kind"] == "bow":
        return f"hashed words, {text['width']} numbers, a function that train.py holds"
    if text["kind"] == "transformer":
        return f"{text['source']}, pooling {text['pooling']}, sha256 {str(text['sha256'])[:12]}..."
    return f"features read from the file {text['source']}, which does not say of which encoder"


def _tower_name(tower: Mapping) -> str:
    return tower.get("name") or tower["kind"]
