"""The command line `mdw`: finds the command, reads the config, calls the command's function.

Only here are errors turned into exit statuses, logging set up and tracebacks shown.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.cli.arguments import Invocation, command_name, parse
from mdw_jax.cli.commands import COMMANDS
from mdw_jax.cli.terminal import terminal_safe_output
from mdw_jax.config import resolve
from mdw_jax.config.loading import load_config, override
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError
from mdw_jax.runtime import processes
from mdw_jax.runtime.may_train import may_train
from mdw_jax.runtime.preemption import Interrupted, exit_status, handle_signals

__all__ = ["COMMANDS", "main", "use_compilation_cache"]

_PASSING, _KEPT_AFTER = ("cache", "noise"), 60.0  # folders of a run, and seconds after which they are worth keeping
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_MACHINE_ERRORS = _WRITE_ERRORS | {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `mdw`; those of the process by default.

    Returns:
        The exit status: 0; 2 after a mistake of the user (one sentence on stderr); 130 after Ctrl-C; after SIGTERM what
        `preemption.exit_status` says.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--debug" not in argv:  # of XLA's C++, errors alone; jax reads it when it is imported, and a user's choice stays
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with terminal_safe_output(), _logging_to_stderr(logging.WARNING if "--quiet" in argv else logging.INFO):
        try:
            _dispatch(argv)
            return 0
        except Interrupted as stop:
            processes.stopped(stop.number)
            print("mdw: stopped; the same command goes on where it stopped.", file=sys.stderr)
            return exit_status(stop.number)
        except BrokenPipeError:  # the reader of the output, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is said at exit
            processes.fail("nobody reads its output any more.", 128 + signal.SIGPIPE)
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            processes.stopped(signal.SIGINT)
            print("mdw: interrupted; the same command goes on where it stopped.", file=sys.stderr)
            return 130
        except Exception as error:
            return _failed(error, "--debug" in argv)


def _failed(error: Exception, debug: bool) -> int:
    """Says what went wrong, in all processes of the run: the exit status. A bug is raised again if there is one process."""
    sentence = str(error) if isinstance(error, UserError) else _machine_error(error)

    def say() -> None:
        if sentence is None or debug:
            traceback.print_exception(error)
        if sentence is not None:
            print(f"mdw: {sentence}", file=sys.stderr)

    if sentence is not None:
        processes.fail(sentence, 2, last=say)
        return 2
    first_line = (str(error).splitlines() or [""])[0]
    processes.fail(f"{type(error).__name__}: {first_line}; its own output has the traceback.", 1, certain=False,
                   last=say if processes.several_processes() else lambda: None)
    raise error


def use_compilation_cache() -> None:
    """Lets jax keep compiled programs in ~/.cache/mdw-jax/xla, unless the user chose a place or home is read-only."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        directory = Path.home() / ".cache" / "mdw-jax" / "xla"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home at all
        return
    if os.access(directory, os.W_OK):
        import jax  # here, because many commands do without it

        jax.config.update("jax_compilation_cache_dir", str(directory))


def _dispatch(argv: list[str]) -> None:
    """Does what the command line asks for."""
    if "--version" in argv:
        print(f"mdw {_version()}")
        return
    if "--help" in argv or "-h" in argv:
        words = [word for word in argv if word not in ("--help", "-h", "--quiet", "--debug")]
        if words and not words[0].startswith("-"):
            command_name(words[:1])  # refuses an unknown command
        name = next((word for word in argv if word in COMMANDS), None)
        COMMANDS["help"].load()(name)
        return
    call = parse(argv)
    command = call.command
    if not command.sections:
        command.load()(*call.arguments)
        return
    with_others = command.in_run_directory and not call.dry_run
    if with_others:
        processes.join(facts={"command": {"mdw": call.name, "--train": call.train,
                                          "its arguments": re.sub(r" at 0x\w+", "", str(call.arguments))}})
    config = _config(call)
    if with_others:
        processes.agree({"config": flat(config)})
    if command.checked:
        _check(config)
    if command.compiles:
        use_compilation_cache()
    function = command.load()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_refusal_leaves_nothing(config.run.dir))
        if with_others:
            stack.enter_context(_working_in(config.run.dir, call.sharded))
        # Unresolved: a preset may name another recipe, which must not be filled in on top of this config's.
        stack.enter_context(may_train(command.trains or call.train, f"mdw {call.name}", config.run.dir))
        function(config, *call.arguments)


def _config(call: Invocation) -> ConfigDict:
    """The config of a command line, with its data where they are the user's own."""
    if not call.data:
        return load_config(call.config, call.overrides)
    from mdw_jax.pipeline.own_data import own_config, refuse_other_data  # here, because it imports the readers

    config = own_config(call.data, None if call.config is None else load_config(call.config))
    override(config, call.overrides)
    refuse_other_data(config)
    return config.lock()


def _check(config: ConfigDict) -> None:
    """Raises UserError for a config, or a preset of it, that cannot be run: before data or directories are touched."""
    resolve(config)
    for name in config.run.presets:
        preset_config(config, name)


@contextlib.contextmanager
def _working_in(directory: str, shared: bool) -> Iterator[None]:
    """Keeps other runs out of the directory, and lets signals stop this one safely.

    shared: other processes that share may work in the directory too.
    """
    from mdw_jax.io.run_lock import hold_run_directory  # here, because many commands do without it

    with contextlib.ExitStack() as stack:
        if processes.is_main():
            stack.enter_context(hold_run_directory(directory, shared))
        else:  # it would print the same as the first process; its mistakes still go to stderr
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            logging.getLogger("mdw_jax").setLevel(logging.WARNING)
        stack.enter_context(handle_signals())
        yield


@contextlib.contextmanager
def _refusal_leaves_nothing(directory: str) -> Iterator[None]:
    """After a UserError inside, removes a run directory that did not exist before, if it holds nothing worth keeping.

    That is: locks, and features and noise draws of less than a minute, which the next command makes again.
    """
    path, start = Path(directory), time.monotonic()
    missing = [one for one in (path, *path.parents) if not os.path.lexists(one)]
    try:
        yield
    except UserError:
        with contextlib.suppress(OSError):
            passing = _PASSING if time.monotonic() - start < _KEPT_AFTER else ()
            if missing and processes.is_main() and all(
                    file.name.endswith(".lock") or file.relative_to(path).parts[0] in passing
                    for file in path.rglob("*") if not file.is_dir()):
                shutil.rmtree(path)
                for one in missing[1:]:
                    one.rmdir()  # fails, and ends this, where something else is in it
        raise


@contextlib.contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    """Lets what the package logs from this level up appear on stderr, as in "mdw: the message"."""
    logger, handler = logging.getLogger("mdw_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mdw: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _machine_error(error: Exception) -> str | None:
    """The sentence for what the machine ran out of, or does not allow; None for all else, which is a bug."""
    if not isinstance(error, (OSError, MemoryError, RuntimeError, ValueError)):
        return None
    text = str(error)
    if isinstance(error, ValueError) and text == "embedded null byte":  # what Python says of any path with one
        return "a path of the config, or of the data, holds a null byte, which no file name can; correct it."
    if isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and "memory" in text):
        return (f"there is not enough memory{f' ({text.splitlines()[0][:120]})' if text else ''}; lower what is too "
                "large (data.size, data.limit, experts.batch, distill.pairs), or set data.stream.")
    disk_full = "No space left on device" in text  # libraries pass it on as errors of other types
    if not disk_full and not (isinstance(error, OSError) and error.errno in _MACHINE_ERRORS):
        return None
    name = getattr(error, "filename", None)
    file = f"'{name}'" if name else "a file"
    reason = "No space left on device" if disk_full else getattr(error, "strerror", "")
    action = "write" if disk_full or getattr(error, "errno", None) in _WRITE_ERRORS else "open or write"
    return (f"cannot {action} {file} ({reason}); make room or change its permissions, and give the same command "
            "again.")


def _version() -> str:
    import importlib.metadata  # here, because nothing else needs it

    try:
        return importlib.metadata.version("mdw-jax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
