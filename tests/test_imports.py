"""The layout of the package: which package may import which, and how long files and functions may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mdw_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = ("errors", "runtime", "io", "config", "data", "models", "method", "reporting", "pipeline", "export",
            "analysis", "cli", "__main__", "__init__")  # each imports those before it
TABLES = {"base"}  # functions that are tables of constants, of any length
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_POSITIONAL, MOST_MODULES_AT_THE_TOP = 450, 60, 8, 4


def imports(tree):
    """(line, module of this package) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "mdw_jax" else [node.module]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from ((node.lineno, name) for name in names if name.startswith("mdw_jax."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_and_files_are_short(path):
    tree = ast.parse(path.read_text())
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for line, name in imports(tree):
        imported = name.split(".")[1]
        assert PACKAGES.index(imported) <= PACKAGES.index(package), f"{path}:{line} imports {name} from {package}"
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.name not in TABLES:
            where = f"{path}:{function.lineno} {function.name}"
            assert function.end_lineno - function.lineno + 1 <= MOST_LINES_OF_A_FUNCTION, where
            positional = [argument.arg for argument in function.args.posonlyargs + function.args.args]
            assert len([name for name in positional if name not in ("self", "cls")]) <= MOST_POSITIONAL, where


def test_few_modules_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_MODULES_AT_THE_TOP
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= set(PACKAGES)


def test_test_files_have_names_of_their_own():
    """pytest imports test files of directories without ``__init__.py`` by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_test_files_import_each_other_by_bare_names():
    """`pytest` has no package ``tests`` (only ``python -m pytest`` would, from the directory it is started in)."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            assert module.split(".")[0] != "tests", f"{path}:{node.lineno} imports {module}"
