"""Paths that may be here or on the Hub, and numbers that may not be known before a run."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.data.readers import suffix_of

DATA_ID = r"\w[\w.-]*/\w[\w.-]*"
MODEL_ID = rf"{DATA_ID}|\w[\w.-]*"  # old models have no owner: gpt2


class Count(NamedTuple):
    """A number of rows or steps; None: it cannot be known here."""

    number: int | None
    exact: bool = True

    def __str__(self) -> str:
        return "unknown" if self.number is None else f"{'' if self.exact else 'about '}{self.number:,}"


def is_local(path: str, where: str, mistakes: list[str], hub_id: str) -> bool:
    """Whether there is such a path here. If not, it must look like a Hub id, else that is a mistake."""
    if Path(path).exists():
        return True
    if not re.fullmatch(hub_id, path) or suffix_of(path) is not None or is_mistyped_path(path):
        mistakes.append(f"{where}: no such file or directory: {path} (nor a Hub id, which is owner/name)")
    return False


def total(numbers: Iterable[int | None]) -> int | None:
    """The sum; None if one of them is not known."""
    known = list(numbers)
    return sum(number for number in known if number is not None) if None not in known else None
