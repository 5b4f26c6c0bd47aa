"""What the comparison says of groups: differences from the baseline by seed, and methods at the same KL."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sparsepo_jax.report import frontier
from sparsepo_jax.report.compare.groups import Group
from sparsepo_jax.report.compare.runs import FinishedRun
from sparsepo_jax.report.intervals import Interval, t_interval

KLS = ("after.generated_kl", "after.kl")  # the x axis of the plane, in order of preference


class Difference(NamedTuple):
    """A group minus the baseline, by the seeds of both. interval: None if they share none."""

    group: str
    metric: str
    by_seed: dict[int, float]
    interval: Interval | None


def differences_from(base: Group, groups: Sequence[Group], metrics: Sequence[str]) -> list[Difference]:
    return [_difference(group, base, name) for group in groups if group is not base for name in metrics]


def _difference(group: Group, base: Group, metric: str) -> Difference:
    values, base_values = group.values(metric), base.values(metric)
    by_seed = {seed: values[seed] - base_values[seed] for seed in values if seed in base_values}
    return Difference(group.label, metric, by_seed, t_interval(list(by_seed.values())) if by_seed else None)


def methods_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups that differ in beta only, ordered by it."""
    methods: dict[str, list[Group]] = {}
    for group in groups:
        methods.setdefault(group.method, []).append(group)
    for members in methods.values():
        members.sort(key=lambda group: math.inf if group.beta is None else group.beta)
    return methods


def choose_kl(groups: Sequence[Group]) -> str | None:
    """The first of KLS that all runs have; None if there is none.

    Runs that have none of them (evaluated by tasks alone) do not count.
    """
    runs = [run for group in groups for run in group.runs if not run.numbers.keys().isdisjoint(KLS)]
    return next((name for name in KLS if runs and all(name in run.numbers for run in runs)), None)


def with_both(
    runs: Sequence[FinishedRun], metric: str, kl: str
) -> Iterator[tuple[FinishedRun, tuple[float, float]]]:
    """The runs that have a place in the plane, and their (KL, value)."""
    for run in runs:
        if metric in run.numbers and kl in run.numbers:
            yield run, (run.numbers[kl], run.numbers[metric])


class MethodMatch(NamedTuple):
    """A method against the baseline's. at_kls: where both reach the same KL; empty if there is no such KL."""

    method: str
    base: str
    metric: str
    at_kls: list[frontier.Matched]


def match_methods(groups: Sequence[Group], base: str, metric: str, kl: str) -> list[MethodMatch]:
    """Each method against the method `base`, at KLs that most of their seeds reach."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for method, members in methods_of(groups).items():
        for group in members:
            for run, point in with_both(group.runs, metric, kl):
                points.setdefault(method, {}).setdefault(run.seed, []).append(point)
    if base not in points:
        return []
    matches = []
    for method, of_method in points.items():
        if method != base:
            kls = frontier.shared_kls(of_method, points[base])
            matches.append(MethodMatch(method, base, metric, frontier.matched(of_method, points[base], kls)))
    return matches
