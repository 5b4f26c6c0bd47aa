"""Errors that are the user's to mend: the message is one line that says what was expected, what came, and what to do."""


def escaped(text: str) -> str:
    """The text with what would break or hide in a line (line ends, control characters, halves of surrogate pairs) written as escapes."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


class UserError(Exception):
    """Shown as one line, without a traceback. What it quotes (a path, a value) may hold line ends: they are escaped."""

    def __init__(self, message: object):
        super().__init__(escaped(str(message)))
