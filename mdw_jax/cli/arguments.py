"""Arguments: the argparse parsers of all commands, and what is read off a command line."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mdw_jax.cli.commands import COMMANDS, Command
from mdw_jax.cli.help_text import after_commands, after_flags, make_formatter, usage
from mdw_jax.config.defaults import base
from mdw_jax.config.loading import did_you_mean
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError

GLOBAL_FLAGS = ("--config", "--debug", "--quiet", "--help", "--version")
_NEXT_FLAG = re.compile(r"-(?![\d.])")  # a word that begins so is a flag, not the value of the flag before: -1 is a value


class Invocation(NamedTuple):
    """One command line, read."""

    name: str
    command: Command
    config: str | None  # name, run folder or file of the config
    data: list[str]  # paths of --data
    train: bool  # whether a command that trains nothing by itself may
    overrides: list[tuple[str, str | None]]  # (dotted key, text of its value), in order
    arguments: list[Any]  # of the command's function, after the config
    dry_run: bool
    sharded: bool  # whether other processes work in the same run directory


def parse(argv: Sequence[str]) -> Invocation:
    """Reads a command line without --help and --version.

    Raises:
        UserError: there is no such command or flag, a value is missing, or something is given that the command does
            not take.
    """
    config_file, overrides, words = _take_config_flags(argv)
    words = _command_first(words)
    name = command_name(words)
    command = COMMANDS[name]
    try:
        values, others = make_parsers()[None].parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(_value_mistake(name, error)) from None
    _refuse_unknown_flag(name, others)
    operands = [*(getattr(values, "operands", None) or ()), *others]  # argparse leaves operands after a flag in others
    if not command.sections and (config_file or overrides):
        raise UserError(f"mdw {name} reads no config; leave --config out.")
    config = _config_of(name, operands, config_file) if command.sections else None
    arguments = [] if command.sections else _operand_arguments(name, operands)
    data: list[str] = []
    for option in command.options:
        value = getattr(values, option.flag.removeprefix("--").replace("-", "_"))
        if option.flag == "--data" and command.sections:
            data = value or []
        elif option.override is None:
            config = option.config if config is None and value is not None and option.config else config
            arguments.append(option.parse(option.default if value is None else value))
        elif value is not None:
            overrides.append((option.override, value))
    if command.needs_file and command.sections and config is None and not data:
        own = f" For your own data: mdw {name} --data PATH." if command.takes_data else ""
        raise UserError(f"no config given; write mdw {name} CONFIG, where CONFIG is a run folder, a name that mdw config "
                        f"--list shows, or a config file.{own}")
    return Invocation(name, command, config, data, getattr(values, "train", False), overrides, arguments,
                      getattr(values, "dry_run", False), getattr(values, "shard", None) is not None)


def _config_of(name: str, words: list[str], config_file: str | None) -> str | None:
    """The config of a command line: its one operand, or --config."""
    if words and words[0] in COMMANDS:
        raise UserError(f"one command at a time: '{words[0]}' follows '{name}'.")
    if len(words) + (config_file is not None) > 1:
        other = words[1] if len(words) > 1 else config_file
        if COMMANDS[name].takes_data and all(
                os.path.exists(word) and not word.endswith((".py", ".json")) for word in words):
            raise UserError(f"mdw {name} takes one config, and '{words[0]}' is none; for your own data write mdw {name} "
                            f"--data {' '.join(words)}.")
        raise UserError(f"mdw {name} takes one config, not both '{words[0]}' and '{other}'; keep one.")
    return words[0] if words else config_file


def command_name(words: Sequence[str]) -> str:
    """The first word that is no flag. Raises UserError where there is none, or it is no command."""
    names = [word for word in words if not word.startswith("-")]
    if not names:
        _refuse_unknown_flag(None, [word for word in words if word not in GLOBAL_FLAGS])
        raise UserError("no command given; begin with mdw run quickstart, or, for your own data, mdw run --data photos/ "
                        "captions.csv; mdw --help lists all commands.")
    if names[0] not in COMMANDS:
        choose = f"; choose one of {', '.join(COMMANDS)}."
        raise UserError(f"there is no command '{names[0]}'{did_you_mean(names[0], COMMANDS) or choose}")
    return names[0]


def make_parsers(keys: Mapping[str, str] | None = None,
                 complete_paths: Any = None) -> dict[str | None, argparse.ArgumentParser]:
    """The parser of each command, by name; under None that of `mdw`, which has them as sub-parsers.

    The flags --config.SECTION.KEY are not part of it: they may stand anywhere and are taken out before. For shell
    completion alone they are added.

    Args:
        keys: for completion, {config key: meaning}.
        complete_paths: for completion, what `shtab` calls the completion of file names.
    """
    parser = _Parser("mdw", usage=usage(None), after=after_commands)
    parser.add_argument("--version", action="store_true", help="print the version")
    path_actions = [_add_config_flag(parser)]
    _add_global_flags(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        sub_parser = commands.add_parser(
            name, help=_escape(command.help), usage=usage(name), after=lambda name=name: after_flags(name),
            description=_escape(f"{command.help[0].upper()}{command.help[1:]}. {command.details}".strip()))
        path_actions += _add_arguments(sub_parser, command, for_completion=keys is not None)
        for key, meaning in (keys or {}).items():
            if key.partition(".")[0] in command.sections:
                sub_parser.add_argument(f"--config.{key}", metavar="VALUE", help=_escape(meaning or key))
    if complete_paths is not None:
        for action in path_actions:
            action.complete = complete_paths  # type: ignore[attr-defined]  # where shtab looks for it
    return {None: parser, **commands.choices}


class _Parser(argparse.ArgumentParser):
    """Raises its errors; makes the end of its help, which lists config keys, only when the help is printed."""

    def __init__(self, prog: str, after, **settings):
        super().__init__(prog, formatter_class=make_formatter, allow_abbrev=False, exit_on_error=False, **settings)
        self.after = after

    def format_help(self) -> str:
        return f"{super().format_help()}{self.after()}"

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help.")


class _Once(argparse.Action):
    """Stores a value; a second one is a mistake."""

    def __call__(self, parser, namespace, values, option_string=None):
        if getattr(namespace, self.dest) is not None:
            raise UserError(f"{option_string} is given twice; keep one.")
        setattr(namespace, self.dest, values)


def _add_arguments(parser: argparse.ArgumentParser, command: Command, for_completion: bool) -> list[argparse.Action]:
    """Adds the operands and flags of a command; returns those whose value is a path."""
    paths = []
    if command.operands is not None:
        action = parser.add_argument("operands", nargs="*", metavar=command.operands.metavar,
                                     help=_escape(command.operands.help))
        if command.operands.paths:
            paths.append(action)
        elif for_completion:  # when a command line is read, they are checked by `_operand_arguments`
            action.choices = command.operands.choices or tuple(COMMANDS)
    if command.sections:
        paths.append(parser.add_argument("operands", nargs="*", metavar="CONFIG", help="a run folder, a name that mdw "
                                         "config --list shows, or a config file"))
        paths.append(_add_config_flag(parser))
        if not command.trains:
            parser.add_argument("--train", action="store_true", help="train and distill what is not there yet; without "
                                "it, what is missing is an error")
    for option in command.options:
        if option.metavar is None:
            parser.add_argument(option.flag, action="store_true", help=_escape(option.help))
            continue
        action = parser.add_argument(option.flag, action="append" if option.repeated else _Once, metavar=option.metavar,
                                     nargs="+" if option.many else None, help=_escape(option.help))
        paths += [action] if option.path else []
    _add_global_flags(parser)
    return paths


def _add_config_flag(parser: argparse.ArgumentParser) -> argparse.Action:
    return parser.add_argument("--config", metavar="FILE", help="the same as CONFIG. A config file is a "
                               "Python program with a function get_config() that returns a changed "
                               "mdw_jax.config.base(): it can do whatever a program can; run no stranger's")


def _add_global_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only, beside the results")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _escape(text: str) -> str:
    """argparse formats help texts with %."""
    return text.replace("%", "%%")


def _take_config_flags(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str | None]], list[str]]:
    """The config file, the overrides in order, and all other words."""
    words, others = list(argv), []
    path, overrides = None, []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--noconfig.") and not equals:
            overrides.append((name.removeprefix("--noconfig."), "false"))
            continue
        if name != "--config" and not name.startswith("--config."):
            others.append(word)
            continue
        if not equals:
            value = words.pop(0) if words and not _NEXT_FLAG.match(words[0]) else None
        if name != "--config":
            overrides.append((name.removeprefix("--config."), value))
        elif not value:
            raise UserError("--config names no file; write --config=FILE.")
        elif path is not None:
            raise UserError(f"--config is given twice ({path} and {value}); keep one.")
        else:
            path = value
    return path, overrides, others


def _command_first(words: list[str]) -> list[str]:
    """The words with the command in front of the flags that were written before it."""
    if not words or not words[0].startswith("-"):
        return words
    names = [word for word in words if word in COMMANDS] or [word for word in words if not word.startswith("-")]
    if not names:
        return words
    index = words.index(names[0])
    return [words[index], *words[:index], *words[index + 1:]]


def _value_mistake(name: str, error: argparse.ArgumentError) -> str:
    """The sentence for a flag that lacks its value, or has one that it does not take."""
    flag = (error.argument_name or "").split("/")[-1]
    takes_value = any(option.flag == flag and option.metavar is not None for option in COMMANDS[name].options)
    return f"{flag} {'needs a value' if takes_value else 'takes no value'}; see mdw {name} --help."


def _refuse_unknown_flag(name: str | None, words: Sequence[str]) -> None:
    """Raises UserError for the first flag among the words that argparse does not know. name: of the command, if any."""
    unknown = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if unknown is None:
        return
    flags = ["--train", *(option.flag for command in COMMANDS.values() for option in command.options)]
    if unknown in flags and name is not None:
        raise UserError(f"mdw {name} has no flag {unknown}; see mdw {name} --help.")
    flags += [*GLOBAL_FLAGS, *(f"--config.{key}" for key in flat(base()))]
    raise UserError(f"there is no flag {unknown}{did_you_mean(unknown, flags) or '; see mdw --help.'}")


def _operand_arguments(name: str, words: list[str]) -> list[Any]:
    """The words after the command as arguments of its function: one list, or one by one where at most a few may be."""
    operands = COMMANDS[name].operands
    if operands is None:
        if words:
            raise UserError(f"one command at a time: '{words[0]}' follows '{name}'.")
        return []
    words = words or list(operands.default)
    if len(words) < operands.least or (operands.most is not None and len(words) > operands.most):
        raise UserError(operands.mistake.format(count=len(words), last=words[-1] if words else ""))
    for word in words:
        if operands.choices and word not in operands.choices:
            raise UserError(f"{operands.metavar} of mdw {name} must be one of {', '.join(operands.choices)}, not '{word}'.")
    return [words] if operands.most is None else words
