"""Labelled texts, for a classifier that is trained here."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.sources import open_sources, source_name


class Labelled(NamedTuple):
    """N texts, whether each has the label that is looked for, and how much it counts (its source's weight)."""

    texts: list[str]
    positive_N: np.ndarray
    weight_N: np.ndarray


def read_labelled(sources: Sequence[Any], positive: int | str, *, on_bad_row: str) -> Labelled:
    """All rows {"text", "label"}; other columns are ignored. UserError: a bad row, unless on_bad_row is "skip"; rows of one class only."""
    texts: list[str] = []
    labels: list[Any] = []
    weights: list[float] = []
    for configured in sources:
        for source in open_sources(configured):
            for row in source.rows():
                fault = _fault(row.content)
                if fault is None:
                    texts.append(row.content["text"])
                    labels.append(row.content["label"])
                    weights.append(configured.weight)
                elif on_bad_row != "skip":
                    raise UserError(
                        f"{source.name}:{row.line}: {fault}; mend it, or leave such rows out with data.on_bad_row=skip"
                    )
    positive_N = np.array(
        [label in (positive, str(positive)) for label in labels], bool
    )  # cells of a CSV file are text
    if not positive_N.any() or positive_N.all():
        names = ", ".join(source_name(configured) for configured in sources)
        seen = ", ".join(sorted({repr(label) for label in labels})[:8]) or "none"
        raise UserError(
            f"{names}: expected rows with the label {positive!r} and rows with another one, found the labels {seen}: set scorer.positive"
        )
    return Labelled(texts, positive_N, np.array(weights))


def _fault(content: dict[str, Any] | BadRow) -> str | None:
    if isinstance(content, BadRow):
        return str(content)
    if not isinstance(content.get("text"), str):
        return f"expected a text in the column text, and the row has: {', '.join(content)}"
    return (
        None
        if isinstance(content.get("label"), int | str)
        else "expected a whole number or a word in the column label"
    )
