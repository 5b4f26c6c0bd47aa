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


def read_labelled(sources: Sequence[Any], positive: int | str, *, on_bad_row: str) -> Labelled:
    """All rows {"text", "label"} of some sources; other columns are ignored.

    Args:
        sources: FileRows or GeneratedRows.
        positive: the label that is looked for; a number also stands for its text, as in a cell of a CSV file.
        on_bad_row: "error", or "skip" to leave bad rows out.

    Raises:
        UserError: a bad row, by file and line, unless on_bad_row is "skip"; or rows of one class only.
    """
    texts: list[str] = []
    labels: list[Any] = []
    weights: list[float] = []
    for configured in sources:
        for source in open_sources(configured):
            for row in source.rows():
                problem = _problem(row.content)
                if problem is None:
                    texts.append(row.content["text"])
                    labels.append(row.content["label"])
                    weights.append(configured.weight)
                elif on_bad_row != "skip":
                    raise UserError(
                        f"{source.name}:{row.line}: {problem}; mend it, "
                        "or leave such rows out with data.on_bad_row=skip"
                    )
    positive_N = np.array([label in (positive, str(positive)) for label in labels], bool)
    if not positive_N.any() or positive_N.all():
        names = ", ".join(source_name(configured) for configured in sources)
        seen = ", ".join(sorted({repr(label) for label in labels})[:8]) or "none"
        raise UserError(
            f"{names}: expected rows with the label {positive!r} and rows with another one, "
            f"found the labels {seen}: set scorer.positive"
        )
    return Labelled(texts, positive_N, np.array(weights))


def _problem(content: dict[str, Any] | BadRow) -> str | None:
    """What is wrong with a row, if anything."""
    if isinstance(content, BadRow):
        return str(content)
    if not isinstance(content.get("text"), str):
        return f"expected a text in the column text, and the row has: {', '.join(content)}"
    if not isinstance(content.get("label"), int | str):
        return "expected a whole number or a word in the column label"
    return None
