"""What a training.json must hold; `mdw train` and train.py check it alike. The standard library alone.

And SHA256SUMS, the sha256 of the files beside it, as `sha256sum` writes and checks it; its last line, which is a comment to
that program, is the sha256 of the lines above.
"""

import hashlib
import math

MOST_STEPS, LARGEST_STEP_SIZE, WIDEST, LARGEST_SIDE, SEEDS = 10**7, 1e6, 1 << 16, 4096, 1 << 63
METRICS = (*(f"{side}@{k}" for side in ("IR", "TR") for k in (1, 5, 10)), "r_mean")
SUMS, _LAST_LINE = "SHA256SUMS", "# sha256 of the lines above: "
_MOST_PERCENT = 100 + 1e-4  # float32 rounds means of recalls


class InputError(Exception):
    """A mistake in what a program was given; the message is one sentence for its user."""


def is_whole(value, low, high):
    """Whether a value is an int, and no bool, from low to high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value, low, high):
    """Whether a value is a finite number, and no bool, from low to high."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
            and math.isfinite(value))


def _whole(low, high):
    return lambda value: is_whole(value, low, high), f"a whole number from {low} to {high}"


def _one_of(*choices):
    named = " or ".join(str(choice).lower() if isinstance(choice, bool) else f'"{choice}"' for choice in choices)
    return lambda value: type(value) in map(type, choices) and value in choices, named


def _is_interval(value):
    return value is None or (isinstance(value, list) and len(value) == 2
                             and all(is_number(end, -math.inf, math.inf) for end in value))


def _is_digest(value):
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


_TEXT = (lambda value: isinstance(value, str), "text")
_SECTION = (lambda value: isinstance(value, dict), "an object")
_STEP_SIZE = (lambda value: is_number(value, 0, LARGEST_STEP_SIZE) and 0 < value < LARGEST_STEP_SIZE,
              f"a finite number above 0 and below {LARGEST_STEP_SIZE:,.0f}")
_PERCENTAGE = (lambda value: is_number(value, 0, _MOST_PERCENT), "a number from 0 to 100")
_INTERVAL = (_is_interval, "two numbers or null")
_POSITIVE = (lambda value: is_number(value, 0, math.inf) and value > 0, "a finite number above 0")
_NOT_NEGATIVE = (lambda value: is_number(value, 0, math.inf), "a finite number of at least 0")
_SHAPE = (lambda value: isinstance(value, list) and len(value) == 3 and all(is_whole(n, 1, LARGEST_SIDE) for n in value),
          f"three whole numbers from 1 to {LARGEST_SIDE}")
_PHASES = (lambda value: isinstance(value, list) and 1 <= len(value) <= 2, "a list of one or two phases")

RECORD = (  # (key, (test, what it must be)); a key stands after the sections that it is in
    ("image", _SECTION), ("image.shape", _SHAPE), ("image.fit", _one_of("crop", "squash")),
    ("image.mode", _one_of("projection", "full")), ("image.dtype", _one_of("float32", "bfloat16")),
    ("image.head", _one_of(True, False)), ("image.start", _one_of("stored", "drawn")),
    ("image.tower", _SECTION), ("image.tower.kind", _TEXT),
    ("text", _SECTION), ("text.kind", _one_of("bow", "transformer", "precomputed")), ("text.width", _whole(1, WIDEST)),
    ("dim", _whole(1, WIDEST)), ("tau", _POSITIVE), ("head", _SECTION), ("head.computes", _TEXT),
    ("head.starts_from", _TEXT), ("loss", _TEXT), ("alpha", _NOT_NEGATIVE),
    ("optimizer", _SECTION), ("optimizer.name", _one_of("sgd")),
    ("optimizer.momentum", (lambda value: is_number(value, 0, 1) and value < 1, "a number from 0 to below 1")),
    ("optimizer.weight_decay", _NOT_NEGATIVE), ("batch", _whole(1, MOST_STEPS)),
    ("step_sizes", (lambda value: isinstance(value, dict) and set(value) == {"image", "text"},
                    "an object with image and text alone")),
    ("step_sizes.image", _STEP_SIZE), ("step_sizes.text", _STEP_SIZE), ("phases", _PHASES),
    ("chosen", _SECTION), ("chosen.how", _TEXT), ("chosen.scale", _STEP_SIZE), ("chosen.seed", _whole(0, SEEDS - 1)),
    ("expected", (lambda value: value is None or isinstance(value, dict), "an object or null")),
    ("test", _SECTION), ("test.images", _whole(1, 10**9)), ("test.captions", _whole(1, 10**9)),
    ("test.file", (lambda value: value is None or isinstance(value, str), "text or null")))
OF_KIND = {"bow": (("text.seed", _whole(0, SEEDS - 1)), ("text.check", _TEXT)),
           "transformer": (("text.source", _TEXT), ("text.sha256", _TEXT), ("text.pooling", _TEXT),
                           ("text.max_tokens", _whole(1, WIDEST))),
           "precomputed": (("text.source", _TEXT),)}
EXPECTED = (("expected.students", _whole(1, 10**6)), ("expected.mean", _SECTION), ("expected.std", _SECTION),
            *((f"expected.{part}.{name}", _PERCENTAGE) for part in ("mean", "std") for name in METRICS),
            ("expected.select_on", _one_of("val", "test")),
            ("expected.t", (lambda value: value is None or is_number(value, 0, math.inf), "a number or null")),
            ("expected.interval_of_mean", _INTERVAL), ("expected.interval_of_one", _INTERVAL))
FILES = (("set", _SECTION), ("set.file", _TEXT), ("set.sha256", _TEXT),
         ("backbone", (lambda value: value is None or isinstance(value, dict), "an object or null")))
_MISSING = object()


def check_record(record):
    """Check how a student is trained.

    Args:
        record: the contents of training.json.

    Raises:
        InputError: a key is missing, or holds what training cannot be done with; names the key.
    """
    if not isinstance(record, dict):
        raise InputError("it is no JSON object")
    _check(record, RECORD)
    _check(record, OF_KIND[record["text"]["kind"]])
    for number, factor in zip(range(len(record["phases"])), (1.0, 0.1)):
        phase = record["phases"][number]
        if not isinstance(phase, dict) or not is_whole(phase.get("steps"), 1, MOST_STEPS):
            raise InputError(f"phases[{number}] is {_shown(phase)} and must have steps, a whole number from 1 to "
                             f"{MOST_STEPS}")
        if not is_number(phase.get("factor"), factor, factor):
            raise InputError(f"phases[{number}].factor is {_shown(phase.get('factor'))} and must be {factor:g}")
    steps = sum(phase["steps"] for phase in record["phases"])
    if steps > MOST_STEPS:
        raise InputError(f"phases have {steps} steps and may have {MOST_STEPS}")
    if record["expected"] is not None:
        _check(record, EXPECTED)
    if not _is_digest(record.get("test_captions_sha256", "0" * 64)):
        raise InputError(f"test_captions_sha256 is {_shown(record['test_captions_sha256'])} and must be a sha256")


def check_files(record):
    """Check the names of the files that training.json goes with. Raises InputError as `check_record`."""
    _check(record, FILES)
    for key in ("backbone", "test"):
        if record[key] is not None and record[key].get("file") is not None:
            _check(record, ((f"{key}.file", _TEXT), (f"{key}.sha256", _TEXT)))


def check_texts(record, shape):
    """Raises InputError where the texts of the set, of this shape, are not of the width that training.json says."""
    if len(shape) != 2 or shape[1] != record["text"]["width"]:
        raise InputError(f"text.width is {record['text']['width']} and the texts of the set are of shape {tuple(shape)}")


def _check(record, rules):
    for key, (holds, words) in rules:
        value = record
        for name in key.split("."):
            value = value.get(name, _MISSING)
        if value is _MISSING:
            raise InputError(f"{key} is missing")
        if not holds(value):
            raise InputError(f"{key} is {_shown(value)} and must be {words}")


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_listed(path):
    """The bytes of a file.

    Raises:
        OSError: it cannot be read.
        InputError: SHA256SUMS beside it lists another content. A file that is not listed, as of earlier versions, is taken.
    """
    data = path.read_bytes()
    text, lines = _read_sums(path.parent)
    listed = [line[:64] for line in lines if line[66:] == path.name]
    if text and hashlib.sha256(data).hexdigest() not in listed:
        head, _, last = text.rpartition(_LAST_LINE)
        if listed or last != _digest(head) + "\n":
            raise InputError(f"it is not as it was written: {SUMS} beside it lists another sha256, or is damaged")
    return data


def list_files(directory, names):
    """List the sha256 of files that were just written into SHA256SUMS beside them, with what it lists of other files."""
    _, lines = _read_sums(directory)
    listed = {line[66:]: line for line in lines if (directory / line[66:]).is_file()}
    listed.update((name, f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}") for name in names)
    head = "".join(f"{listed[name]}\n" for name in sorted(listed))
    (directory / SUMS).write_bytes(f"{head}{_LAST_LINE}{_digest(head)}\n".encode())


def _read_sums(directory):
    """The text of SHA256SUMS in a directory, "" where there is none, and those of its lines that name a file."""
    path = directory / SUMS
    text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    return text, [line for line in text.split("\n") if line[64:66] in ("  ", " *")]


def _digest(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def captions_digest(captions):
    """sha256 of captions in any order: sorted, white space around them left out, joined by newlines, in UTF-8."""
    joined = "\n".join(sorted(caption.strip() for caption in captions))
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()
