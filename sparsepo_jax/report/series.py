"""The rows of metrics.jsonl as series: a value for each step, by stage and metric."""

import math
from typing import Any, NamedTuple

from sparsepo_jax.report.table import as_float, number

LARGEST_STEP = 2**53  # beyond it floats skip integers
LARGEST_DRAWN = 1e100  # so that no difference of two values overflows
MAX_POINTS = 300  # of a series after thinning

Series = dict[int, float]  # step -> value, ordered by step
MetricSeries = dict[tuple[str, str], Series]  # (stage, metric) -> values


def collect(rows: list[dict]) -> tuple[MetricSeries, int]:
    """Rows of metrics.jsonl as series, and how many rows have no stage or step.

    A later value of the same stage, step and metric replaces the earlier one (a resumed run).
    null counts as not a number, but for what a class of single responses has in rows without any of it.
    """
    metrics: MetricSeries = {}
    unusable = 0
    for row in rows:
        stage, step = row.get("stage"), row.get("step")
        if not (isinstance(stage, str) and _is_number(step) and abs(step) < LARGEST_STEP):
            unusable += 1
            continue
        for name, x in row.items():
            if name in ("stage", "step", "time_s") or (x is None and _is_of_empty_class(name, row)):
                continue
            if x is None or _is_number(x):
                metrics.setdefault((stage, name), {})[int(step)] = math.nan if x is None else as_float(x)
    return {key: dict(sorted(series.items())) for key, series in metrics.items()}, unusable


def _is_of_empty_class(name: str, row: dict) -> bool:
    """Whether a metric is of responses of which a batch or evaluation has none; see core/labels."""
    start = f"{name.split('/')[0]}/" if name.startswith(("eval/", "eval_")) else ""
    empty = [side for side in ("chosen", "rejected") if row.get(f"{start}share/{side}") == 0]
    of_both = name.removeprefix(start) in ("rewards/margins", "margin_unmasked")
    return bool(empty) and (of_both or name.rpartition("/")[2] in empty)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def drawable(x: float) -> bool:
    return math.isfinite(x) and abs(x) < LARGEST_DRAWN


class Extent(NamedTuple):
    """A series in words: the first, last, smallest and largest of its finite values.

    steps: how many it has. broken: the steps whose value is not finite.
    """

    first: str
    last: str
    least: str
    most: str
    steps: int
    broken: tuple[int, ...]


def extent(series: Series) -> Extent:
    finite = [x for x in series.values() if drawable(x)]
    words = [number(x) for x in (finite[0], finite[-1], min(finite), max(finite))] if finite else ["-"] * 4
    return Extent(*words, len(series), tuple(step for step, x in series.items() if not drawable(x)))


def thin(series: Series) -> list[tuple[int, float]]:
    """At most about MAX_POINTS points.

    Of each stretch of steps the smallest, the largest and the first that is not finite are kept.
    """
    points = list(series.items())
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        kept += _ends(points[start : start + size])
    return kept


def _ends(stretch: list[tuple[int, float]]) -> list[tuple[int, float]]:
    finite = [point for point in stretch if drawable(point[1])]
    kept = set([point for point in stretch if not drawable(point[1])][:1])
    if finite:
        kept |= {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
    return sorted(kept, key=lambda point: point[0])


def mean_metrics(runs: list[MetricSeries]) -> MetricSeries:
    """The mean over runs of each series that all of them have, at the steps that all of them have."""
    means: MetricSeries = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        all_series = [run[key] for run in runs if key in run]
        if len(all_series) < len(runs):
            continue
        steps = [step for step in all_series[0] if all(step in series for series in all_series)]
        if steps:
            means[key] = {step: sum(series[step] for series in all_series) / len(runs) for step in steps}
    return means
