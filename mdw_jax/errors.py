"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake the user can fix: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with status 2; any other exception is a bug and keeps its
    traceback.
    """
