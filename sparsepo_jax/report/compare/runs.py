"""Runs to compare, read from their directories: a run, a sweep, or a directory of runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import leaves
from sparsepo_jax.report.compare.numbers import read_numbers
from sparsepo_jax.report.files import read_metrics, read_settings, read_text
from sparsepo_jax.report.series import MetricSeries

FILES = ("summary.json", "metrics.jsonl", "measures.json", "harness.json")  # a run has at least one of them
SECTION = "{...}"  # the value of a mapping's own path, to be told from null


@dataclass
class FinishedRun:
    """What is read of a run.

    config: every setting by its dotted path. numbers, pairs, cases, unit, broken: see RunNumbers; the finite
    ones only. swept: this run's values in the sweep's book; None outside of sweeps. settings: what the run's
    group is known by, by dotted path.
    """

    path: Path
    config: dict[str, Any]
    seed: int
    numbers: dict[str, float]
    metrics: MetricSeries
    pairs: int | None
    cases: int | None
    unit: str
    broken: list[str]
    swept: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class LeftOut(NamedTuple):
    run: str
    why: str


def read_runs(directories: Sequence[Path]) -> tuple[list[FinishedRun], list[LeftOut]]:
    """The runs in their order, and what is left out.

    A run with a file that cannot be read is among both. UserError: no run is left.
    """
    runs: list[FinishedRun] = []
    left_out: list[LeftOut] = []
    for directory in directories:
        book = _read_book(directory)
        read, missing = _runs_of_directory(directory) if book is None else _runs_of_sweep(directory, book)
        runs += read
        left_out += missing
    if not runs:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out[:3])
        raise UserError(
            f"nothing to compare ({reasons}); "
            "give the directories of runs with stages po or eval, or of a sweep"
        )
    return runs, left_out


def _runs_of_directory(directory: Path) -> tuple[list[FinishedRun], list[LeftOut]]:
    paths = [directory] if _is_run(directory) else _runs_within(directory)
    if not paths:
        expected = f"expected {', '.join(FILES[:-1])} or {FILES[-1]}"
        return [], [LeftOut(str(directory), f"no run: {expected} in it, or in the directories in it")]
    runs = [_read_run(path) for path in paths]
    return runs, [LeftOut(run.path.name, why) for run in runs for why in run.broken]


def _runs_of_sweep(directory: Path, book: list[dict]) -> tuple[list[FinishedRun], list[LeftOut]]:
    runs = []
    left_out = []
    for entry in book:
        if entry["status"] != "done":
            why = f"failed: {entry['error']}" if entry["status"] == "failed" else "not finished"
            left_out.append(LeftOut(str(entry["name"]), why))
    for entry in book:
        path = directory / str(entry["name"])
        if entry["status"] == "done" and not _is_run(path):
            left_out.append(LeftOut(path.name, f"no run: none of {', '.join(FILES)}"))
        elif entry["status"] == "done":
            run = _read_run(path)
            run.swept = entry["values"]
            runs.append(run)
            left_out += [LeftOut(path.name, why) for why in run.broken]
    return runs, left_out


def _read_book(directory: Path) -> list[dict] | None:
    """The runs of a sweep's book; None where there is no book."""
    text = read_text(directory / "sweep.json")
    if text is None:
        return None
    try:
        runs = json.loads(text)["runs"]
        if all(map(_is_entry, runs)):
            return runs
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    path = directory / "sweep.json"
    raise UserError(
        f"{path}: not a sweep's book; put it away, and the runs beside it are compared by their config.yaml"
    )


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry["values"], dict)
        and isinstance(entry["name"], str)
        and {"status", "error"} <= entry.keys()
    )


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES)


def _runs_within(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in sorted(directory.iterdir()) if path.is_dir() and _is_run(path)]


def _read_run(path: Path) -> FinishedRun:
    config = dict(_dotted(read_settings(path)))
    numbers = read_numbers(path)
    seed = config.get("seed")
    metrics, _ = read_metrics(path / "metrics.jsonl")
    return FinishedRun(
        path,
        config,
        seed if type(seed) is int else 0,
        numbers.finite,
        metrics,
        numbers.pairs,
        numbers.cases,
        numbers.unit,
        numbers.broken,
    )


def _dotted(config: dict) -> Iterator[tuple[str, Any]]:
    """Dotted path -> value; a mapping also has its own path, with the value SECTION."""
    for path, value in leaves(config):
        words = path.split(".")
        for n in range(1, len(words)):
            yield ".".join(words[:n]), SECTION
        yield path, value
