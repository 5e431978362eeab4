"""What each config key means: the comments beside the defaults, read from the source of `defaults.py`."""

import ast
import io
import tokenize
from pathlib import Path

from mdw_jax.config import defaults


def key_meanings() -> dict[str, str]:
    """The comment of every key and section that `base()` sets.

    A comment at the end of the assignment counts; without one, the comment lines directly above it.

    Returns:
        {"distill.pairs": its comment, "watch": the comment of a section}; "" where there is none.
    """
    source = Path(defaults.__file__).read_text(encoding="utf-8")
    beside, above = _comments(source)
    [function] = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "base")
    meanings = {}
    for statement in function.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
            key = ast.unparse(statement.targets[0]).partition(".")[2]  # "c.distill.pairs" without "c."
            meanings[key] = beside.get(statement.end_lineno) or _block_above(above, statement.lineno)
    return meanings


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line number: those that follow code, and those with a line of their own."""
    beside, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines = beside if token.line[: token.start[1]].strip() else alone
            lines[token.start[0]] = token.string.lstrip("#").strip()
    return beside, alone


def _block_above(alone: dict[int, str], line: int) -> str:
    """The comment lines that end right above `line`, joined."""
    block = []
    while (line := line - 1) in alone:
        block.insert(0, alone[line])
    return " ".join(block)
