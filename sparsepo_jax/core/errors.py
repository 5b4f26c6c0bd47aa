"""Errors that are the user's to mend: the message is one line that says what was expected, what came, and what to do."""


class UserError(Exception):
    """Shown as one line, without a traceback."""
