"""Labelled texts, for a classifier that is trained here."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.sources import open_sources, source_name


class Labelled(NamedTuple):
    """N texts with their labels."""

    texts: list[str]
    positive_N: np.ndarray
    """Whether the text has the label that is looked for."""
    weight_N: np.ndarray
    """How much it counts: its source's weight."""


def read_labelled(sources: Sequence[Any], positive: int | bool | str, *, on_bad_row: str) -> Labelled:
    """All rows {"text", "label"} of some sources; other columns are ignored.

    Args:
        sources: FileRows or GeneratedRows.
        positive: the label that is looked for; a number or truth value also stands for its text, as in a cell
            of a CSV file, and a name for its number, where the source says which that is.
        on_bad_row: "error", or "skip" to leave bad rows out.

    Raises:
        UserError: a bad row, by file and line, unless on_bad_row is "skip"; or rows of one class only.
    """
    texts: list[str] = []
    is_positive: list[bool] = []
    seen: set[str] = set()
    weights: list[float] = []
    for configured in sources:
        for source in open_sources(configured):
            names = source.class_names().get("label", [])
            for row in source.rows():
                problem = _problem(row.content)
                if problem is None:
                    label = row.content["label"]
                    name = names[label] if type(label) is int and 0 <= label < len(names) else None
                    texts.append(row.content["text"])
                    is_positive.append(positive == name or _is_same(label, positive))
                    seen.add(repr(label) if name is None else f"{label} ({name})")
                    weights.append(configured.weight)
                elif on_bad_row != "skip":
                    raise UserError(
                        f"{source.name}:{row.line}: {problem}; mend it, "
                        "or leave such rows out with data.on_bad_row=skip"
                    )
    positive_N = np.array(is_positive, bool)
    if not positive_N.any() or positive_N.all():
        where = ", ".join(source_name(configured) for configured in sources)
        labels = ", ".join(sorted(seen)[:8]) or "none"
        raise UserError(
            f"{where}: expected rows with the label {positive!r} and rows with another one, "
            f"found the labels {labels}: set scorer.positive"
        )
    return Labelled(texts, positive_N, np.array(weights))


def _is_same(label: int | bool | str, positive: int | bool | str) -> bool:
    """Whether a row's label is the one that is looked for.

    The truth values are the numbers 1 and 0 where those are looked for, and not the other way round.
    """
    if isinstance(positive, bool):
        return label is positive or (isinstance(label, str) and label.lower() == str(positive).lower())
    return label in (positive, str(positive))


def _problem(content: dict[str, Any] | BadRow) -> str | None:
    """What is wrong with a row, if anything."""
    if isinstance(content, BadRow):
        return str(content)
    if not isinstance(content.get("text"), str):
        return f"expected a text in the column text, and the row has: {', '.join(content)}"
    if not isinstance(content.get("label"), int | str):
        return "expected a whole number or a word in the column label"
    return None
