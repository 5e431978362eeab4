"""Whether the command that is running may train: `mdw run` does, `mdw export` only what `--train` allows."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from mdw_jax.errors import UserError

_REFUSAL: ContextVar[tuple[str, str] | None] = ContextVar("refusal", default=None)  # the command, and its run folder


@contextlib.contextmanager
def may_train(allowed: bool, command: str, directory: str) -> Iterator[None]:
    """Inside, `require_training` raises unless training is allowed.

    Args:
        allowed: whether it is.
        command: as the user wrote it, for the message: "mdw export".
        directory: the run folder.
    """
    token = _REFUSAL.set(None if allowed else (command, directory))
    try:
        yield
    finally:
        _REFUSAL.reset(token)


def training_allowed() -> bool:
    """Whether the running command may train."""
    return _REFUSAL.get() is None


def require_training(what: str) -> None:
    """Raise UserError where the running command may not make what is missing. what: "the experts of mdw are"."""
    if (refusal := _REFUSAL.get()) is not None:
        command, directory = refusal
        raise UserError(f"{what} not in '{directory}' (with these settings), and {command} trains nothing by itself; "
                        f"finish the run with mdw run {directory}, take back settings that differ from it, or add --train.")
