"""Errors that the user can mend.

The message is one line that says what was expected, what came, and what to do.
"""


def escaped(text: str) -> str:
    """The text on one line.

    Args:
        text: may hold what breaks a line or hides in it (line ends, control characters, halves of surrogate
            pairs). These are written as escapes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """Shown as one line, without a traceback.

    Args:
        message: what it quotes (a path, a value) may hold line ends; they are escaped.
    """

    def __init__(self, message: object):
        super().__init__(escaped(str(message)))
