"""Values of cells: the captions that one holds, the file name that one stands for."""

import ast
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mdw_jax.data.problems import quoted
from mdw_jax.errors import UserError

LIST = "written as lists in one cell: read as several captions each"
TURNS = "in the form of conversations: the answers were read"
BRACKETS = "in brackets that are no list: read as they stand"
_LONGEST_LIST = 2**20  # characters of a list in one cell; Python takes a hundred times as much to read it
_OPENING = {"[": "]", "(": ")", "{": "}"}
# Fields of a turn in a conversation: who speaks, and what is said. LLaVA, ShareGPT; chat APIs; the Cauldron, where question
# and answer are one turn.
_TURN_FIELDS = (("from", "value"), ("role", "content"), ("assistant", "assistant"))
_ASKING = ("human", "user", "system")
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LITERAL = re.compile(_STRING)
_NUMPY = re.compile(rf"\[\s*{_STRING}(?:\s+{_STRING})+\s*\]")
_POSTGRES = re.compile(r"""\{"(?:[^"\\]|\\.)*"(?:,"(?:[^"\\]|\\.)*")*\}""")
NUMBERED = "with the number of a caption behind it (a.jpg#0): read without it"
_NUMBER = re.compile(r"#\d+$")
_FLOAT = re.compile(r"\d+\.0")
_PLACE = re.compile(r"\{(?::0?(\d+)d)?\}")


def captions_in(value, read_as: Counter) -> list:
    """The captions of one cell; odd ones stay as they are, for `problems.caption_problem` to judge.

    A list is a list of captions, also one that is written out as text, as JSON or as Python does; of a conversation
    (LLaVA: turns with "from" and "value") the answers are captions.

    Args:
        value: what is in the cell.
        read_as: counts cells by how they were read, where that is not plain.
    """
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in _OPENING and text[-1:] == _OPENING[text[:1]] and len(text) <= _LONGEST_LIST:
            if (found := _written_list(text)) is not None:
                read_as[LIST] += 1
                return [caption for member in found for caption in captions_in(member, read_as)]
            read_as[BRACKETS] += 1
        return [value]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(turn, dict) for turn in value) and (answers := _answers(value)) is not None:
            read_as[TURNS] += 1
            return answers
        return [caption for member in value for caption in (
            [member] if isinstance(member, dict) else captions_in(member, read_as))]
    return [value]


def is_turn(fields: Iterable[str]) -> bool:
    """Whether these are the fields of a turn of a conversation."""
    return any({speaker, said} <= set(fields) for speaker, said in _TURN_FIELDS)


def _answers(turns: Sequence[Mapping]) -> list | None:
    """What the model says in a conversation; None: it is none."""
    for speaker, said in _TURN_FIELDS:
        if all({speaker, said} <= set(turn) for turn in turns):
            return [turn[said] for turn in turns if speaker == said or turn[speaker] not in _ASKING]
    return None


def read_as_notes(name: str, read_as: Mapping[str, int], what: str = "caption") -> list[str]:
    """How odd captions (or names) of a source were read, in sentences."""
    return [f"of '{name}', {count} {what}{'s' * (count != 1)} {how}." for how, count in read_as.items()]


def _written_list(text: str) -> list | None:
    """The list of texts that a text spells, as JSON, Python, numpy or Postgres write it; None if it spells something else.

    Missing values in it stay, as None; a dict stays a dict.
    """
    if _NUMPY.fullmatch(text):  # ['one' 'two']: Python would take these for one text
        return [ast.literal_eval(literal) for literal in _LITERAL.findall(text)]
    if text[:1] == "{" and _POSTGRES.fullmatch(text):
        return next(csv.reader([text[1:-1]], escapechar="\\"))
    for parse in (json.loads, lambda written: ast.literal_eval(re.sub(r"\bnan\b(?=\s*[,\])])", "None", written))):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return [value]
        if isinstance(value, (list, tuple)) and all(member is None or isinstance(member, str) for member in value):
            return list(value)
    return None


class FileNames:
    """From the cells of a column to file names.

    Args:
        pattern: the file name, where cells hold a part of it: "{}.jpg", "{:012d}.jpg"; "": they hold it all.
        column: the column.
        where: the table.
        read_as: counts names by how they were read, where that is not plain.

    Raises:
        UserError: the pattern has no place for the cell, or more than one.
    """

    def __init__(self, pattern: str, column: str, where: str, read_as: Counter):
        self._column, self._where, self._read_as = column, where, read_as
        places = list(_PLACE.finditer(pattern or "{}"))
        if len(places) != 1:
            raise UserError(f"data.file_pattern is '{pattern}'; give a file name with one {{}} or {{:012d}} in the place "
                            "of the cell, such as {}.jpg.")
        place = places[0]
        self._head, self._tail = (pattern or "{}")[:place.start()], (pattern or "{}")[place.end():]
        self._digits, self._plain = place[1] and int(place[1]), not pattern

    def of(self, value, line: int) -> str | None:
        """The file name of a cell; None for an empty one.

        Raises:
            UserError: the cell holds something else, such as a picture or a number without a pattern.
        """
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, (bytes, bytearray)) or (isinstance(value, dict) and "bytes" in value):
            raise UserError(f"column '{self._column}' of {self._where} holds the images themselves; read it with "
                            f"data.name=hf and data.source={self._where}.")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UserError(f"column '{self._column}' of {self._where} must hold one file name in each row, but row {line} "
                            f"has {quoted(repr(value), 80)}; name another data.image_column.")
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value = int(value)  # as pandas writes a column of numbers with a gap
        elif isinstance(value, str) and (self._digits or not self._plain) and _FLOAT.fullmatch(value.strip()):
            value = value.strip()[:-2]
        if self._plain and not isinstance(value, str):
            raise UserError(f"column '{self._column}' of {self._where} holds numbers, such as {value} in row {line}; say "
                            "how files are called after them, as with data.file_pattern='{:012d}.jpg' or '{}.jpg'.")
        if self._digits:
            try:
                value = f"{int(value):0{self._digits}d}"
            except (ValueError, OverflowError):
                raise UserError(f"column '{self._column}' of {self._where} has {quoted(str(value), 80)} in row {line}, "
                                "which is no number for data.file_pattern; write {} in it instead.") from None
        name = str(value).strip()
        if "\\" in name and "/" not in name:
            name = name.replace("\\", "/")
        if "#" in name and (bare := _NUMBER.sub("", name)) != name:
            self._read_as[NUMBERED] += 1
            name = bare
        return f"{self._head}{name}{self._tail}"
