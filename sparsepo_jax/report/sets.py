"""The evaluation sets of a run side by side, where they have names: for the terminal and the page."""

from typing import Any, NamedTuple

from sparsepo_jax.report.table import number, unit_of, value


class SetRow(NamedTuple):
    """An evaluation set. Numbers are None where unknown.

    is_main: whether headlines are about it. pairs: how many rows it has. unit: what these are.
    """

    name: str
    is_main: bool
    pairs: int | None
    unit: str
    accuracy_before: float | None
    accuracy: float | None
    margin: float | None
    kl: float | None
    sparsity: float | None


def set_rows(summary: dict) -> list[SetRow]:
    """The sets in summary.json, in order; none where they have no names."""
    sets = summary.get("sets")
    return [
        _row(name, figures, is_main=name == summary.get("main"))
        for name, figures in (sets.items() if isinstance(sets, dict) else ())
        if isinstance(figures, dict)
    ]


def _row(name: str, figures: dict[str, Any], *, is_main: bool) -> SetRow:
    pairs = figures.get("pairs")
    return SetRow(
        name=name,
        is_main=is_main,
        pairs=pairs if type(pairs) is int else None,
        unit=unit_of(figures),
        accuracy_before=value(figures, ("before", "accuracy_unmasked")),
        accuracy=value(figures, ("after", "accuracy_unmasked")),
        margin=value(figures, ("after", "margin_unmasked")),
        kl=value(figures, ("after", "kl")),
        sparsity=value(figures, ("mask", "sparsity_end")),
    )


def set_lines(summary: dict) -> list[list[str]]:
    """The sets as a table, headings first; none where they have no names.

    Accuracy and margin are unmasked.
    """
    rows = set_rows(summary)
    if not rows:
        return []
    units = {row.unit for row in rows}
    counted = units.pop() if len(units) == 1 else ""  # else each count says what it counts
    headings = ["set", counted or "rows", "accuracy before", "after", "margin", "KL", "mask zeros"]
    return [headings, *(_cells(row, "" if counted else f" {row.unit}") for row in rows)]


def _cells(row: SetRow, unit: str) -> list[str]:
    pairs = "-" if row.pairs is None else f"{row.pairs:,}{unit}"
    numbers = (row.accuracy_before, row.accuracy, row.margin, row.kl, row.sparsity)
    return [row.name + (" (main)" if row.is_main else ""), pairs, *map(number, numbers)]


def sets_table(summary: dict) -> str:
    """The same as plain text, "" if there are none."""
    lines = set_lines(summary)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
