"""The evaluation sets of a run side by side, where they have names: for the terminal and the page."""

from typing import Any, NamedTuple

from sparsepo_jax.report.table import number, value


class SetRow(NamedTuple):
    """An evaluation set. is_main: the one that headlines are about. Numbers are None where unknown."""

    name: str
    is_main: bool
    pairs: int | None
    accuracy_before: float | None
    accuracy: float | None
    margin: float | None
    kl: float | None
    sparsity: float | None


COLUMNS = ("set", "pairs", "accuracy before", "after", "margin", "KL", "mask zeros")


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
        accuracy_before=value(figures, ("before", "accuracy_unmasked")),
        accuracy=value(figures, ("after", "accuracy_unmasked")),
        margin=value(figures, ("after", "margin_unmasked")),
        kl=value(figures, ("after", "kl")),
        sparsity=value(figures, ("mask", "sparsity_end")),
    )


def cells(row: SetRow) -> list[str]:
    """What stands in COLUMNS of a row."""
    pairs = "-" if row.pairs is None else f"{row.pairs:,}"
    numbers = (row.accuracy_before, row.accuracy, row.margin, row.kl, row.sparsity)
    return [row.name + (" (main)" if row.is_main else ""), pairs, *map(number, numbers)]


def sets_table(summary: dict) -> str:
    """The rows as plain text, "" if there are none. Accuracy and margin are unmasked."""
    rows = set_rows(summary)
    if not rows:
        return ""
    lines = [list(COLUMNS), *map(cells, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    return "\n".join(
        f"{line[0]:<{widths[0]}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
