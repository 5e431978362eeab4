"""What of a source cannot be used: counted by reason, and either an error or left out, by one policy for all readers."""

from collections import Counter
from collections.abc import Mapping

from mdw_jax.config.options import ON_ERROR
from mdw_jax.errors import UserError

LONGEST_CAPTION = 100_000
"""Characters; more is a broken file or an attack, and would hold up every tokenizer."""
# What a problem takes away, by its reason: its share of all images, or of all captions (rows of a table are captions).
REASONS = {
    "absent image": "image",
    "broken image": "image",
    "failed download": "image",
    "no image": "image",
    "no caption": "image",
    "unreadable json": "image",
    "empty caption": "caption",
    "missing value as caption": "caption",
    "caption too long": "caption",
    "caption not in Unicode": "caption",
    "broken row": "caption",
}
# In words where the reason with its number is none: what there is, and what is wrong with it.
_WORDS = {"no image": ("sample", "without an image"), "no caption": ("image", "without a caption"),
          "unreadable json": ("sample", "with unreadable JSON"),
          "missing value as caption": ("caption", "with a missing value (nan, None, N/A) for its text"),
          "caption too long": ("caption", f"of more than {LONGEST_CAPTION:,} characters"),
          "caption not in Unicode": ("caption", "that cannot be read as Unicode")}
# What programs write where there is no caption. (pandas reads the same words as missing.)
MISSING = frozenset(("nan", "none", "null", "n/a", "<na>", "na", "#n/a", "nat", "undefined", "\\n",
                     "[null]", "#name?", "#ref!", "#value!", "(null)"))


def caption_problem(caption) -> str | None:
    """Why a caption cannot be used, a key of `REASONS`; None for a good one."""
    if not isinstance(caption, str):
        return "empty caption" if caption is None else "missing value as caption" if caption != caption else "broken row"
    if not caption.strip():
        return "empty caption"
    if len(caption) <= 9 and caption.strip().lower() in MISSING:
        return "missing value as caption"
    if len(caption) > LONGEST_CAPTION:
        return "caption too long"
    if not caption.isascii():
        try:
            caption.encode()
        except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
            return "caption not in Unicode"
    return None


def quoted(name: str, most: int = 120) -> str:
    """A name from a source in quotation marks, cut to a length that a message can bear."""
    return f"'{name}'" if len(name) <= most else f"'{name[:most]}...'"


class Problems:
    """What a reader met in one source that it cannot use.

    Args:
        source: where it is, for messages; "": only its name is known.

    Attributes:
        source: likewise.
        counts: {reason: how many}, reasons being those of `REASONS`.
        first: {reason: where the first is, and what is there}.
    """

    def __init__(self, source=""):
        self.source = str(source)
        self.counts: Counter = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str, count: int = 1) -> None:
        """Count a problem.

        Args:
            reason: a key of `REASONS`.
            where: its place and what is there, for messages: "line 12 of 'captions.csv'", "'a.jpg' (truncated file)".
            count: how many of them.
        """
        if reason not in REASONS:
            raise ValueError(f"there is no reason '{reason}' in REASONS")
        self.counts[reason] += count
        self.first.setdefault(reason, where)

    def update(self, counts: Mapping[str, int], first: Mapping[str, str]) -> None:
        """Add the problems of a part of the source, such as those in the index of a shard."""
        for reason, count in counts.items():
            self.add(reason, first[reason], count)

    def settle(self, name: str, images: int, captions: int, on_error: str, max_skipped: float) -> dict[str, int]:
        """End reading: raise, or say what is left out.

        Args:
            name: what the source is called, for messages where `source` is "".
            images, captions: how many are left.
            on_error: `stop`: any problem is an error; `skip`: what cannot be used is left out.
            max_skipped: largest share of the images, and of the captions, that may be left out.

        Returns:
            {reason: how many are left out}.

        Raises:
            UserError: there are problems and `on_error` is `stop`, too much would be left out, or `on_error` is unknown.
        """
        if on_error not in ON_ERROR:
            raise UserError(f"there is no on_error '{on_error}'; set data.on_error to stop or skip.")
        if not self.counts:
            return {}
        name = self.source or name
        if on_error == "stop":
            raise UserError(f"'{name}' cannot be used as it is: {self}; fix it, or set data.on_error=skip to leave out "
                            "what cannot be used.")
        for unit, left in (("image", images), ("caption", captions)):
            lost = sum(count for reason, count in self.counts.items() if REASONS[reason] == unit)
            if lost > max_skipped * (lost + left):
                raise UserError(
                    f"{lost} of {lost + left} {unit}s of '{name}' cannot be used ({100 * lost / (lost + left):.3g} %): "
                    f"{self}; fix this, or raise data.max_skipped ({max_skipped:g}) to leave out so many.")
        return dict(self.counts)

    def __str__(self) -> str:
        """In words: "2 empty captions (the first: line 12 of 'captions.csv'), 1 broken image ('a.jpg' (...))"."""
        return ", ".join(f"{counted(reason, count)} ({'the first: ' if count > 1 else ''}{self.first[reason]})"
                         for reason, count in self.counts.most_common()) or "nothing"


def counted(reason: str, count: int) -> str:
    """A reason with its number, in words: "1 empty caption", "3 images without a caption"."""
    what, how = _WORDS.get(reason, (reason, ""))
    return f"{count} {what}{'s' * (count != 1)}{f' {how}' if how else ''}"


def in_words(skipped: Mapping[str, int]) -> str:
    """What was left out, in words: "3 empty captions, 1 broken image"; "" for nothing."""
    return ", ".join(counted(reason, count) for reason, count in sorted(skipped.items(), key=lambda item: -item[1]))
