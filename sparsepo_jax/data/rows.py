"""A row as it was read, and what may be wrong with it."""

from typing import Any, NamedTuple

from sparsepo_jax.core.errors import escaped

_LONGEST_MESSAGE = 400  # characters


class BadRow(Exception):
    """What is wrong with a row, in words, on one line whatever the row holds. Where it stands is known to whoever reads."""

    def __init__(self, problem: str):
        shown = escaped(problem[: _LONGEST_MESSAGE + 1])
        super().__init__(shown if len(shown) <= _LONGEST_MESSAGE else shown[: _LONGEST_MESSAGE - 3] + "...")


class Row(NamedTuple):
    line: int
    """Line, or number of the row where the source has no lines; from 1."""
    content: dict[str, Any] | BadRow


def one_line(error: Exception) -> str:
    """The first line of what a library says, so that our message stays one line."""
    return str(
        BadRow(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__))
    )
