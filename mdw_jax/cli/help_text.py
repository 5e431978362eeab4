"""The help texts: usage lines, and the config keys that a command reads, with their defaults and meanings."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence

from mdw_jax.cli.commands import COMMANDS
from mdw_jax.config.defaults import base
from mdw_jax.config.key_meanings import key_meanings
from mdw_jax.config.options import CHOICES
from mdw_jax.config.sections import flat

_COLUMN = 36  # where meanings of keys begin


def make_formatter(prog: str) -> argparse.HelpFormatter:
    """argparse's formatter, as wide as the rest of the help."""
    return argparse.HelpFormatter(prog, max_help_position=28, width=_width())


def usage(name: str | None) -> str:
    """The usage of a command, without "usage: "; of all commands for None. Percent signs are escaped for argparse."""
    if name is None:
        return "mdw COMMAND [CONFIG] [--config.SECTION.KEY=VALUE ...] [--quiet] [--debug]"
    command = COMMANDS[name]
    parts = ["mdw", name]
    if (operands := command.operands) is not None:
        parts += [operands.metavar] * operands.least
        if operands.most is None:
            parts.append(f"[{operands.metavar} ...]")
        else:
            parts += [f"[{operands.metavar}]"] * (operands.most - operands.least)
    if command.sections:
        parts += ["CONFIG" if command.needs_file and not command.takes_data else "[CONFIG]",
                  "[--config.SECTION.KEY=VALUE ...]"]
        parts += [] if command.trains else ["[--train]"]
    for option in command.options:
        value = "" if option.metavar is None else f" {option.metavar}{' ...' if option.many else ''}"
        parts.append(f"[{option.flag}{value}]{' ...' if option.repeated else ''}")
    parts += ["[--quiet]", "[--debug]"]
    unbroken = [part.replace(" ", "\0") for part in parts]
    text = textwrap.fill(" ".join(unbroken), _width() - len("usage: "), subsequent_indent=" " * 11, break_long_words=False,
                         break_on_hyphens=False)
    return text.replace("\0", " ").replace("%", "%%")


def after_commands() -> str:
    """The end of `mdw --help`."""
    return ("\nfirst words:\n  mdw run quickstart                        generated data, from start to end in minutes\n"
            "  mdw inspect photos/ captions.csv          what your own files are taken for\n"
            "  mdw run --data photos/ captions.csv       a small set and a model of them\n"
            "  mdw runs                                  what there is\n\n"
            "CONFIG is a run folder, a name that mdw config --list shows, or a config file.\n\n"
            ) + _overrides("distill.pairs") + _paragraph(
        "A command does only what is not done yet: after an interruption, give it again. `mdw config` lists all keys with "
        "their values; `mdw COMMAND --help` shows the flags of a command, an example and the config keys that it reads.")


def after_flags(name: str) -> str:
    """The end of `mdw COMMAND --help`: an example, and the config keys."""
    command = COMMANDS[name]
    text = f"\nexample:\n  {command.example}\n"
    if command.sections:
        text += "\n" + _overrides("distill.pairs" if "distill" in command.sections else "data.size")
        text += f"config keys that mdw {name} reads, with their defaults:\n" + _keys(command.sections)
    return text


def key_descriptions() -> dict[str, str]:
    """What every key and section of the config means, in the order of the defaults, with the choices of each key."""
    defaults = flat(base())
    return {name: meaning + _choices(name, defaults[name]) if name in CHOICES else meaning
            for name, meaning in key_meanings().items()}


def _choices(key: str, default) -> str:
    """The end of a description: "; one of a, b or module:function"."""
    choice = CHOICES[key]
    names = [*filter(None, choice.names), *(["module:function"] if choice.plugin else [])]
    return f"; {'some' if isinstance(default, tuple) else 'one'} of {', '.join(names[:-1])} or {names[-1]}"


def _default_text(value) -> str:
    """A value as it is written after --config.SECTION.KEY=."""
    if isinstance(value, tuple):
        return ",".join(map(_default_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _overrides(key: str) -> str:
    return ("overrides of the config file, as many as needed:\n"
            f"  --config.SECTION.KEY=VALUE   one key: --config.{key}=200\n"
            "  switches                     --config.data.stream or =true; --noconfig.data.stream or =false\n"
            "  lists                        --config.evaluate.lr_scales=0.1,0.3 or --config.run.presets=random,mdw\n\n")


def _keys(sections: Sequence[str]) -> str:
    """One line for each key of these sections: default and meaning, wrapped."""
    defaults, lines = flat(base()), []
    for name, meaning in key_descriptions().items():
        section, _, leaf = name.partition(".")
        if section not in sections:
            continue
        if leaf:
            lines.append(_key_line(f"{name}={_default_text(defaults[name])}", meaning))
        else:
            lines += ["", f"  {section}{f': {meaning}' if meaning else ''}"]
    return "\n".join(lines) + "\n"


def _key_line(setting: str, meaning: str) -> str:
    head = f"    {setting}"
    if not meaning:
        return head
    if len(head) >= _COLUMN - 1:
        return f"{head}\n{_wrapped(meaning, ' ' * _COLUMN)}"
    return _wrapped(meaning, head.ljust(_COLUMN))


def _wrapped(text: str, first: str) -> str:
    return textwrap.fill(text, _width(), initial_indent=first, subsequent_indent=" " * _COLUMN, break_on_hyphens=False)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _width(), break_on_hyphens=False) + "\n"


def _width() -> int:
    """Columns of the terminal, between 80 and 120; 120 without a terminal."""
    return min(max(shutil.get_terminal_size((120, 24)).columns, 80), 120)
