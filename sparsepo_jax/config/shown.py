"""How messages show values, texts and places: on one line, cut where they are long."""

from collections.abc import Sequence
from typing import Any

LONGEST_SHOWN = 60  # characters of a key or a value


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def shown(value: Any) -> str:
    """A value as YAML or Python writes it."""
    if value is None:
        return "null"
    return cut(str(value).lower() if isinstance(value, bool) else repr(value))


def dotted(keys: Sequence[str]) -> str:
    """('data', 'train', '0') -> 'data.train.0'."""
    return ".".join(cut(str(key)) for key in keys)
