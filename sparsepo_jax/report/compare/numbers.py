"""The numbers of a run that can be compared: how they are read, named and described.

A name is a dotted path: into summary.json (after.kl, mask.auroc_reward,
lexicons.opinion.first_pieces.auroc_reward), into measures.json (measures.text.rouge1), and
harness.TASK.METRIC in harness.json, with a comma and the filter where the answers were filtered.
"""

import difflib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import leaves
from sparsepo_jax.report import table
from sparsepo_jax.report.files import evaluation_if_sound, read_if_sound

SUMMARY_SECTIONS = ("after", "mask", "lexicons")
SECTIONS = (*SUMMARY_SECTIONS, "measures", "harness")  # how a name begins, in the order of the page
NEAREST = 3  # names that are offered in place of a wrong one


class Description(NamedTuple):
    label: str
    meaning: str


def _summary_rows(unit: str) -> dict[tuple[str, ...], Description]:
    """Path into summary.json -> what the tables of a run's report say of it, of pairs or of responses.

    Of the numbers from before training, only the mask's are among them.
    """
    descriptions = {}
    for row in table.POLICY_ROWS + table.MASK_ROWS + table.CONTROL_ROWS:
        if row.before is not None and row.before[0] == "mask":
            descriptions[row.before] = Description(f"{row.label}, before", row.meaning_for(unit))
        if row.after is not None:
            descriptions[row.after] = Description(row.label, row.meaning_for(unit))
    return descriptions


_ROWS, _ROWS_OF_RESPONSES = map(_summary_rows, ("pairs", "responses"))
_ORDER = list(_ROWS)
_MASKS = {path for row in table.MASK_ROWS for path in (row.before, row.after) if path is not None}


# ---------------------------------------------------------------- reading


class RunNumbers(NamedTuple):
    """values: name -> number; None where it is null or not finite.

    pairs: how many were held out. cases: how many independent ones these are worth. unit: what they are.
    broken: the files that cannot be read, and why.
    """

    values: dict[str, float | None]
    pairs: int | None
    cases: int | None
    unit: str
    broken: list[str]

    @property
    def finite(self) -> dict[str, float]:
        return {name: x for name, x in self.values.items() if x is not None}


def read_numbers(directory: Path) -> RunNumbers:
    broken: list[str] = []
    summary = evaluation_if_sound(directory, broken)
    measures = read_if_sound(directory / "measures.json", stage="measure", broken=broken)
    harness = read_if_sound(directory / "harness.json", stage="harness", broken=broken)
    values: dict[str, Any] = {
        name: x
        for name, x in leaves({section: summary.get(section) for section in SUMMARY_SECTIONS})
        if "." in name
    }
    values |= {f"measures.{part}.{name}": x for (part, name), x in table.measured(measures).items()}
    values |= {_task_name(row): row.value for row in table.task_rows(harness)}
    pairs = summary.get("pairs")
    return RunNumbers(
        {name: _finite(x) for name, x in values.items() if x is None or table.number_or_none(x) is not None},
        pairs if type(pairs) is int else None,
        table.cases_of(summary),
        table.unit_of(summary),
        broken,
    )


def _task_name(row: table.TaskRow) -> str:
    taken = "" if row.filter == "none" else f",{row.filter}"
    return f"harness.{row.task}.{row.metric}{taken}"


def _finite(x: Any) -> float | None:
    number = table.number_or_none(x)
    return number if number is not None and math.isfinite(number) else None


# ---------------------------------------------------------------- what a reader is told


@functools.cache
def describe(name: str, unit: str = "pairs") -> Description:
    """As in the tables of a run's report; what these do not know goes by its own name.

    unit: what was held out.
    """
    path = tuple(name.split("."))
    section, rest = path[0], name.partition(".")[2]
    if path in _ROWS:
        return (_ROWS_OF_RESPONSES if unit == "responses" else _ROWS)[path]
    if section == "lexicons" and ("mask", path[-1]) in _ROWS:
        return _describe_lexicon(path)
    if section == "measures":
        return Description(path[-1], table.meaning_of_measure(path[-1]) or "")
    if section == "harness":
        task, _, metric = rest.rpartition(".")
        return Description(
            f"{task}: {metric.replace(',', ', ')}", f"{metric} of the task {task}, in harness.json."
        )
    return Description(rest.replace("_", " ").replace(".", ", "), f"{name} in summary.json.")


def _describe_lexicon(path: tuple[str, ...]) -> Description:
    row, lexicon = _ROWS["mask", path[-1]], path[1]
    first_only = path[-2] == "first_pieces"
    label = f"{lexicon}: {row.label}{', first pieces' if first_only else ''}"
    pieces = ", of each word its first piece only" if first_only else ""
    return Description(label, f"{row.meaning} Decisive: words of {lexicon}{pieces}.")


def label_of(name: str) -> str:
    return describe(name).label


def meaning_of(name: str, unit: str) -> str:
    """Of a number of runs on held-out pairs, or responses."""
    return describe(name, unit).meaning


def sort_key(name: str) -> tuple:
    """Sorts names by section, then by lexicon, then as the summary's table has them.

    What that table does not know comes last.
    """
    path = tuple(name.split("."))
    within: tuple[str, ...] = ()
    row = path
    if path[0] == "lexicons":
        within = path[1:-1]
        row = ("mask", path[-1])
    place = _ORDER.index(row) if row in _ROWS else len(_ORDER)
    return SECTIONS.index(path[0]), within, place, name


def is_of_mask(name: str) -> bool:
    """Whether a number is in the table of masks, where the controls are not."""
    return tuple(name.split(".")) in _MASKS


def by_lexicon(names: Sequence[str]) -> dict[str, list[str]]:
    """Lexicon -> what masks make of its words, without the controls."""
    lexicons: dict[str, list[str]] = {}
    for name in names:
        path = name.split(".")
        if path[0] == "lexicons" and ("mask", path[-1]) in _MASKS:
            lexicons.setdefault(path[1], []).append(name)
    return lexicons


# ---------------------------------------------------------------- names that users give


def check_metrics(names: Sequence[str], directory: Path) -> None:
    """UserError if a --metric is none of a run's numbers.

    One that is null there counts: other runs may have it, as those with a mask have its AUROC.
    """
    numbers = read_numbers(directory)
    if not numbers.values:
        missing = (
            f"--metric: there are no numbers in {directory}: the stages eval, measure and harness write them"
        )
        raise UserError(numbers.broken[0] if numbers.broken else missing)
    # a null may stand for a mapping that other runs have there
    unknown = tuple(f"{name}." for name, x in numbers.values.items() if x is None)
    for name in names:
        if not any(candidate.startswith(unknown) for candidate in _candidates(name)):
            find_metric(name, list(numbers.values))


def _candidates(name: str) -> tuple[str, ...]:
    return name, f"after.{name}", f"mask.{name}"


def find_metric(name: str, known: Sequence[str]) -> str:
    """The number that a user means; "after." and "mask." may be left out.

    UserError, with the nearest names: there is none.
    """
    for candidate in _candidates(name):
        if candidate in known:
            return candidate
    short = [full.removeprefix("after.").removeprefix("mask.") for full in known]
    nearest = difflib.get_close_matches(name, short, n=NEAREST, cutoff=0)
    remedy = f"the nearest of {len(short)} are {', '.join(nearest)}" if nearest else "there are none"
    raise UserError(f"--metric: no number is called {name}; {remedy}")
