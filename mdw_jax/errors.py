"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake the user can mend: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with status 2; all else is a bug and keeps its traceback.
    """
