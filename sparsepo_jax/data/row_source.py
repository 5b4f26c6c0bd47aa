"""A source of rows that is open: its name, a fingerprint of its rows, and how to read them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.rows import Row


@dataclass(frozen=True)
class RowSource:
    """An opened source."""

    name: str
    """In messages: the path, or what stands for it."""
    fingerprint: str
    """Depends on the rows, not on where they lie."""
    rows: Callable[[], Iterator[Row]]
    """Reads them, from the first on."""
    class_names: Callable[[], dict[str, list[str]]] = dict
    """What the numbers 0, 1, ... mean, by column, where the source says it (a ClassLabel of `datasets`)."""


def digest_of_files(paths: Iterable[str], beginning: str) -> str:
    """A SHA-256 of a text and the content of files, in hex digits.

    Args:
        paths: of the files.
        beginning: the text.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256(beginning.encode())
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
