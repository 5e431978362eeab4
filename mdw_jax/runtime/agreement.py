"""What has to be the same in all processes of a run, and the sentence for what is not."""

import collections
import functools
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdw_jax.errors import UserError

# {what: {key: value}}; values are compared by their JSON text.
Facts = Mapping[str, Mapping[str, Any]]
_ENVIRONMENT = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")  # change numbers or programs
_PACKAGES = ("jax", "jaxlib", "numpy")
_MOST_KEYS, _MOST_CHARACTERS = 3, 60  # of a message


class Disagreement(UserError):
    """The processes of a run differ in what has to be the same; raised in all of them."""


def program_facts() -> dict[str, dict[str, str]]:
    """Of this process: the files of this package, the versions of those it computes with, jax's settings."""
    versions = {name: importlib.import_module(name).__version__ for name in _PACKAGES}
    return {
        "versions": {"python": "{}.{}".format(*sys.version_info), **versions},
        "code": code_digests(Path(__file__).parents[1]),
        "environment": {name: os.environ.get(name, "") for name in _ENVIRONMENT},
    }


@functools.lru_cache(maxsize=1)
def code_digests(directory: Path) -> dict[str, str]:
    """{path of each Python file below a directory: sha256 of its bytes, in 16 hexadecimal digits}."""
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for path in sorted(directory.rglob("*.py"))}


def difference(facts: Sequence[Facts], hosts: Sequence[str]) -> str | None:
    """The sentence for the first kind of facts in which processes differ; None if all agree.

    Processes are compared with what most of them have; of equally many, with the first.

    Args:
        facts: of each process.
        hosts: the machine of each process.
    """
    for what in dict.fromkeys(name for one in facts for name in one):
        texts = [json.dumps(one.get(what, {}), sort_keys=True, default=str) for one in facts]
        counted = collections.Counter(texts)
        if len(counted) == 1:
            continue
        usual = texts.index(max(counted, key=counted.get))
        others = [process for process, text in enumerate(texts) if text != texts[usual]]
        first = others[0]
        which = _which(facts[first].get(what, {}), facts[usual].get(what, {}), usual)
        more = f" (and so {'do' if len(others) > 2 else 'does'} {_numbers(others[1:])})" if len(others) > 1 else ""
        return (f"process {first} on {hosts[first]} and process {usual} on {hosts[usual]} differ in their {what}{more}: "
                f"{which}; start all processes with the same command, config, code and data.")
    return None


def _which(there: Mapping[str, Any], here: Mapping[str, Any], usual: int) -> str:
    """The keys in which two processes differ: "distill.pairs is 100 there and 200 in process 0"."""
    text = lambda values, key: _short(values[key]) if key in values else "missing"
    keys = [key for key in sorted({*there, *here}) if text(there, key) != text(here, key)
            or json.dumps(there.get(key), default=str) != json.dumps(here.get(key), default=str)]
    shown = ", ".join(f"{key} is {text(there, key)} there and {text(here, key)} in process {usual}"
                      for key in keys[:_MOST_KEYS])
    return shown + (f", and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."


def _numbers(processes: Sequence[int]) -> str:
    """"process 2", "processes 1, 2 and 3"."""
    *firsts, last = map(str, processes)
    return f"processes {', '.join(firsts)} and {last}" if firsts else f"process {last}"
