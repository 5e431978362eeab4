"""Every command in README.md and docs/ is one that the command line takes, with a config that loads."""

import re
import shlex
from pathlib import Path

import pytest

from mdw_jax.cli.arguments import parse
from mdw_jax.config.loading import load_config
from mdw_jax.config.shipped import shipped_configs

ROOT = Path(__file__).parent.parent
_FENCED = re.compile(r"```(?:sh)?\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`(mdw [a-z]+ [^`]+)`")
_PLACEHOLDER = re.compile(r"\.\.\.|\b(?:COMMAND|PATH|FILE|RUN|CONFIG|SET|STUDENT|NAME|A B)\b")


def commands() -> list[tuple[str, str]]:
    """(page, command) of all shell examples that begin with mdw, continued lines joined."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        lines = [line for block in _FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
        lines += [" ".join(command.split()) for command in _INLINE.findall(_FENCED.sub("", text))]
        found += [(page.name, part.strip()) for line in lines for part in re.split(r"&&|;|\|", line.partition(" #")[0])
                  if part.strip().startswith("mdw ") and not _PLACEHOLDER.search(part)]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_of_the_docs_is_taken(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[1:]
    call = parse(words)
    if call.config in shipped_configs() or str(call.config).endswith(".py") and Path(call.config).exists():
        load_config(call.config, call.overrides)


def test_the_docs_have_commands():
    assert len(commands()) > 20 and {"README.md", "data.md"} <= {page for page, _ in commands()}


def test_the_readme_is_short():
    """Prose, without tables and code."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len([word for line in text.splitlines() if not line.startswith("|") for word in line.split()]) <= 900
