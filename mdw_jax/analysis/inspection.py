"""`mdw inspect`: what files are taken for, what is in them, what would be left out, and the config that reads them."""

import itertools
import math
import shlex
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mdw_jax.data.decoding import Encoded, open_image
from mdw_jax.data.detect import Detection, detect
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.own import hold_out_missing
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.problems import REASONS, in_words
from mdw_jax.data.records import SPLITS
from mdw_jax.data.registry import load, settings_of

EXAMPLES = 5
_MEASURED = 500  # images whose size is looked at
_WIDEST = 100  # characters of a caption that are shown


def inspect_command(paths: Sequence[str], no_check: bool = False) -> None:
    """Print what the data set at `paths` is; nothing is written.

    Args:
        paths: see `detect`.
        no_check: do not decode every image once to find broken ones.
    """
    detection = detect(paths)
    print(f"form:      {detection.form}")
    pairs, settings = _read(detection, not no_check)
    for split in SPLITS:
        _print_split(split, getattr(pairs, split), f"holdout_{split}" in settings)
    _print_sizes(pairs)
    for note in pairs.notes:
        print(f"note:      {note}")
    print(f"left out:  {in_words(pairs.skipped) or 'nothing'}" + (
        " (broken images were not looked for)" if no_check else ""))
    print(f"\n{EXAMPLES} pairs:")
    for key, caption in _examples(pairs.train):
        print(f"  {key}: {caption}")
    _print_config(paths, detection, settings | _tolerance(pairs))


def _read(detection: Detection, check: bool) -> tuple[Pairs, dict]:
    """The data set, with a tenth held out for each split that it does not have; and the settings that read it so."""
    allowed = settings_of(detection.name)
    tolerant = {"on_error": "skip", "max_skipped": 1.0} if "on_error" in allowed else {}
    streamed = {"stream": True, "check": check} if "stream" in allowed else {}
    complete = {"val", "test"} <= set(detection.has)
    settings = dict(detection.settings) if complete else hold_out_missing(detection, tolerant)[0]
    return load(detection.name, **settings, **tolerant, **streamed), settings


def _print_split(name: str, split: Split, held_out: bool) -> None:
    counts = Counter(np.bincount(split.image_of, minlength=len(split.images)).tolist())
    per_image = ", ".join(f"{count} images with {number}" for number, count in sorted(counts.items())[:6])
    each = f"{next(iter(counts))} each" if len(counts) == 1 else per_image
    print(f"{name + ':':10} {len(split.images)} images, {len(split.captions)} captions ({each})"
          + (" (held out of train)" if held_out else ""))


def _print_sizes(pairs: Pairs) -> None:
    images = pairs.train.images
    if not isinstance(images, LazyImages):
        return
    sizes: Counter = Counter()
    for encoded in itertools.islice(images.encoded, _MEASURED):
        sizes[_size_of(encoded)] += 1
    known = [size for size in sizes.elements() if size is not None]
    if known:
        widths, heights = zip(*known, strict=True)
        print(f"sizes:     {min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high"
              f" (the first {len(known)} of train)")


def _size_of(encoded: Encoded) -> tuple[int, int] | None:
    try:
        with open_image(encoded.read()) as image:
            return image.size
    except Exception:  # what cannot be decoded is reported elsewhere
        return None


def _examples(split: Split) -> list[tuple[str, str]]:
    rows = np.unique(np.linspace(0, len(split.captions) - 1, EXAMPLES).astype(int))
    keys = split.attributes["key"] if "key" in split.attributes else split.image_of.astype(str)
    shorten = lambda text: text if len(text) <= _WIDEST else f"{text[:_WIDEST]}..."
    return [(str(keys[split.image_of[row]]), shorten(" ".join(split.captions[row].split()))) for row in rows]


def _tolerance(pairs: Pairs) -> dict:
    """The settings without which a data set of which something cannot be used is an error."""
    if not pairs.skipped:
        return {}
    splits = [getattr(pairs, name) for name in SPLITS]
    left = {"image": sum(len(split.images) for split in splits), "caption": sum(len(split.captions) for split in splits)}
    lost = {unit: sum(count for reason, count in pairs.skipped.items() if REASONS[reason] == unit) for unit in left}
    share = max(lost[unit] / (lost[unit] + left[unit]) for unit in left)
    largest = settings_of("folder")["max_skipped"]
    return {"on_error": "skip", **({"max_skipped": math.ceil(100 * share) / 100} if share > largest else {})}


def _print_config(paths: Sequence[str], detection: Detection, settings: dict) -> None:
    """The lines of a config that reads this data set, and the same as flags."""
    lines = {"name": detection.name, **settings}
    tolerance = f" --config.data.max_skipped={settings['max_skipped']}" if "max_skipped" in settings else ""
    if tolerance:
        print("\nMore than 5 % cannot be used: check the paths above first. If that is right, data.max_skipped allows it.")
    print(f"\nto use it: mdw run --data {' '.join(map(shlex.quote, paths))}{tolerance}")
    print("or in a config of your own, for mdw run FILE.py (images are cut to squares of c.data.size):")
    print("    from mdw_jax.config import base\n\n\n    def get_config():\n        c = base()")
    for key, value in lines.items():
        print(f"        c.data.{key} = {value!r}")
    print("        return c")
    print("or as flags beside the config of another data set, such as quickstart:")
    print("    " + " ".join(f"--config.data.{key}={shlex.quote(str(value))}" for key, value in lines.items()))
