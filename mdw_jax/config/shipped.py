"""Configs that travel with the package, by name: `mdw run quickstart`."""

import ast
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def shipped_configs() -> dict[str, Path]:
    """{name: file} of the configs that the package holds: installed in it, and `configs/` beside it in a checkout."""
    directory = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), None)
    return {path.stem: path for path in sorted(directory.glob("*.py"))} if directory else {}


def summary_of(path: Path) -> str:
    """The first line of a config file's docstring; nothing in it is run."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
