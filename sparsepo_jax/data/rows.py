"""A row as it was read, and what may be wrong with it."""

from typing import Any, NamedTuple

from sparsepo_jax.core.errors import escaped

_LONGEST_MESSAGE = 400  # characters


class BadRow(Exception):
    """What is wrong with a row, in words: one line of at most 400 characters, whatever the row holds.

    It does not say where the row stands. The code that reads the rows knows that and adds it.

    Args:
        problem: of any length; line breaks are escaped and a long text is cut.
    """

    def __init__(self, problem: str):
        shown = escaped(problem[: _LONGEST_MESSAGE + 1])
        super().__init__(shown if len(shown) <= _LONGEST_MESSAGE else shown[: _LONGEST_MESSAGE - 3] + "...")


class Row(NamedTuple):
    """A row and where it stands."""

    line: int
    """Line in the file, from 1; the number of the row where the source has no lines."""
    content: dict[str, Any] | BadRow


def one_line(error: Exception) -> str:
    """The beginning of a library's message without its line ends, so that our own message stays one line.

    Args:
        error: as it was caught.

    Returns:
        The name of its type if it has no message.
    """
    return str(BadRow(" ".join(str(error).split()) or type(error).__name__))
