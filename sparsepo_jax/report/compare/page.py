"""The comparison of runs, groups side by side: an HTML file and a JSON file made of the runs' files alone."""

import functools
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.files import write_json, write_text
from sparsepo_jax.report import charts, heatmap, table
from sparsepo_jax.report.compare import numbers
from sparsepo_jax.report.compare.groups import SHARES, Group, find_baseline, find_groups
from sparsepo_jax.report.compare.plane import Plane, Spot, make_plane
from sparsepo_jax.report.compare.runs import FinishedRun, LeftOut
from sparsepo_jax.report.compare.statistics import (
    Difference,
    MethodMatch,
    choose_kl,
    differences_from,
    match_methods,
    methods_of,
    with_both,
)
from sparsepo_jax.report.files import pairs_path, read_pairs
from sparsepo_jax.report.intervals import Interval, t_interval
from sparsepo_jax.report.page import heatmap_context, make_environment
from sparsepo_jax.report.series import mean_metrics

DRAWN = SHARES[1]  # where no metric is named
PAIRS_LOOKED_AT = 64  # of a run's pairs, to find some that all groups have

Side = tuple[Group, heatmap.Pair]


class Comparison(NamedTuple):
    """What was computed of the groups.

    columns: the numbers that any run has. drawn: those to draw against the KL. kl: the name of the KL; None
    if there is none.
    """

    groups: list[Group]
    base: Group
    left_out: list[LeftOut]
    columns: list[str]
    drawn: list[str]
    kl: str | None
    differences: list[Difference]
    matches: list[MethodMatch]


def write_comparison(
    directories: Sequence[Path],
    output: Path,
    *,
    metrics: Sequence[str] = (),
    baseline: str | None = None,
    pairs: int = 3,
) -> list[LeftOut]:
    """Writes output (.html) and the same numbers as .json beside it; returns what was left out.

    directories: each a run, a sweep, or a directory of runs. metrics: drawn against the KL (accuracy_unmasked
    where none is named). baseline: a group's label, a method, an objective's kind or a run's name; None: the
    first group. pairs: shown token by token. UserError: there is nothing to compare, or no such metric or
    baseline.
    """
    comparison = make_comparison(directories, metrics, baseline)
    names = [directory.resolve().name for directory in directories]
    title = " and ".join(names[:3]) + (" and more" if len(names) > 3 else "")
    write_text(output, _as_html(comparison, title, pairs), errors="backslashreplace")
    write_json(output.with_suffix(".json"), _as_json(comparison))
    return comparison.left_out


def make_comparison(directories: Sequence[Path], metrics: Sequence[str], baseline: str | None) -> Comparison:
    groups, left_out = find_groups(directories)
    known = sorted({name for group in groups for run in group.runs for name in run.numbers})
    drawn = [numbers.find_metric(name, known) for name in metrics]
    if not drawn and DRAWN in known:
        drawn = [DRAWN]
    base = find_baseline(groups, baseline)
    columns = sorted(known, key=numbers.sort_key)
    kl = choose_kl(groups)
    matches: list[MethodMatch] = []
    for name in drawn if kl is not None else ():
        matches += match_methods(groups, base.method, name, kl)
    differences = differences_from(base, groups, columns)
    return Comparison(groups, base, left_out, columns, drawn, kl, differences, matches)


def _as_html(comparison: Comparison, title: str, pairs: int) -> str:
    groups, columns = comparison.groups, comparison.columns
    sides = _same_pairs(groups, pairs)
    group_means = {group.label: mean_metrics([run.metrics for run in group.runs]) for group in groups}
    unit = " and ".join(sorted({run.unit for group in groups for run in group.runs if run.pairs})) or "pairs"
    template = make_environment().get_template("comparison.html.jinja")
    return template.render(
        **comparison._asdict(),
        **heatmap_context([pair for row in sides for _, pair in row]),
        title=title,
        label=numbers.label_of,
        meaning=functools.partial(numbers.meaning_of, unit=unit),
        unit=unit,
        difference_of={(row.group, row.metric): row.interval for row in comparison.differences},
        main=[name for name in columns if name.startswith("after.")],
        masks=[name for name in columns if numbers.is_of_mask(name)],
        words=numbers.by_lexicon(columns),
        measures=[name for name in columns if name.startswith("measures.")],
        tasks=[name for name in columns if name.startswith("harness.")],
        planes=_planes(comparison),
        same_held_out=_same_held_out([run for group in groups for run in group.runs]),
        held_out=sorted({run.pairs for group in groups for run in group.runs if run.pairs}),
        charts=charts.make_overlay(group_means),
        sides=sides,
        table=table,
    )


def _same_held_out(runs: Sequence[FinishedRun]) -> bool:
    """Whether all runs that were evaluated were so on the same rows, as far as settings and counts tell."""
    evaluated = {repr((run.pairs, run.unit, _held_out(run))) for run in runs if run.pairs}
    return len(evaluated) < 2


def _held_out(run: FinishedRun) -> list[tuple[str, Any]]:
    """The settings that say which rows are held out. How many they are is known, and weights do not count."""
    sources = ["data.eval", "data.holdout", "evaluation.main"]
    if any(name.startswith("data.holdout.") for name in run.config):
        sources.append("data.train")
    return [
        (name, [_unweighed(part) for part in value] if isinstance(value, list) else value)
        for name, value in sorted(run.config.items())
        if name.startswith(tuple(sources))
    ]


def _unweighed(source: Any) -> Any:
    return {key: x for key, x in source.items() if key != "weight"} if isinstance(source, dict) else source


def _planes(comparison: Comparison) -> list[Plane]:
    if comparison.kl is None:
        return []
    planes = [
        make_plane(
            _spots(comparison.groups, metric, comparison.kl),
            title=numbers.label_of(metric),
            x_label=f"{numbers.label_of(comparison.kl)} (nats per response)",
            name=f"plane{n}",
        )
        for n, metric in enumerate(comparison.drawn)
    ]
    return [plane for plane in planes if plane is not None]


def _spots(groups: Sequence[Group], metric: str, kl: str) -> dict[str, list[tuple[str, Spot]]]:
    """Method -> (beta, spot) of its groups; the beta is told where there are several."""
    spots: dict[str, list[tuple[str, Spot]]] = {}
    for method, members in methods_of(groups).items():
        spots[method] = []
        for group in members:
            seeds = [point for _, point in with_both(group.runs, metric, kl)]
            if seeds:
                label = f"{group.beta:g}" if group.beta is not None and len(members) > 1 else ""
                mean_kl = t_interval([x for x, _ in seeds])
                spots[method].append((label, Spot(group.label, mean_kl, group.interval(metric), seeds)))
    return spots


def _same_pairs(groups: Sequence[Group], limit: int) -> list[list[Side]]:
    """Up to `limit` evaluation pairs as each group's first seed sees them; only pairs of the same texts."""
    pairs_of: list[tuple[Group, dict[int, heatmap.Pair]]] = []
    for group in groups:
        path = pairs_path(group.runs[0].path)
        if path is not None:
            pairs = islice(read_pairs(path), PAIRS_LOOKED_AT)
            pairs_of.append((group, {pair.index: pair for pair in pairs}))
    rows = []
    for index in pairs_of[0][1] if pairs_of else ():
        row = [(group, pairs[index]) for group, pairs in pairs_of if index in pairs]
        texts = {tuple(token.text for token in pair.tokens) for _, pair in row}
        if len(row) == len(pairs_of) and len(texts) == 1:
            rows.append(row)
    return rows[:limit]


# ---------------------------------------------------------------- as JSON


def _as_json(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.json.

    Intervals are {n, mean, low, high, kind}; kind is "t" over seeds, "wilson" over pairs, null for one seed.
    """
    return {
        "baseline": comparison.base.label,
        "kl": comparison.kl,
        "groups": [_group_as_json(group, comparison.columns) for group in comparison.groups],
        "differences": [
            row._asdict() | {"interval": _interval_as_json(row.interval)} for row in comparison.differences
        ],
        "matched": [_match_as_json(match) for match in comparison.matches],
        "left_out": [row._asdict() for row in comparison.left_out],
    }


def _group_as_json(group: Group, columns: Sequence[str]) -> dict[str, Any]:
    intervals = {name: group.interval(name) for name in columns}
    return {
        "label": group.label,
        "method": group.method,
        "beta": group.beta,
        "settings": group.runs[0].settings,
        "runs": {str(run.seed): str(run.path) for run in group.runs},
        "metrics": {
            name: interval._asdict() | {"by_seed": group.values(name)}
            for name, interval in intervals.items()
            if interval is not None
        },
    }


def _match_as_json(match: MethodMatch) -> dict[str, Any]:
    rows = [row._asdict() | {"difference": _interval_as_json(row.difference)} for row in match.at_kls]
    return {"method": match.method, "base": match.base, "metric": match.metric, "found": rows}


def _interval_as_json(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval._asdict()
