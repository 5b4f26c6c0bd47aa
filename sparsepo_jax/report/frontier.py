"""What a method reaches at what KL: its frontier, and two methods at the same KL.

A method of larger beta stays nearer to the reference. Two methods at the same beta are therefore not at the
same KL, and their scores alone say little.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from sparsepo_jax.report.intervals import Interval, t_interval

LEVELS = (0.0, 0.5, 1.0)  # of the KLs that two methods share, those at which they are compared
Points = Mapping[int, Sequence[tuple[float, float]]]  # seed -> (KL, value) of its runs, one for each beta


class Matched(NamedTuple):
    """Two methods at one KL (nats).

    a, b: value by seed, for the seeds that both methods have; None where a seed's runs do not reach this KL.
    difference: a - b over the seeds that have both values; None if none has.
    """

    kl: float
    a: dict[int, float | None]
    b: dict[int, float | None]
    differences: dict[int, float]
    difference: Interval | None

    @property
    def means(self) -> tuple[float, float] | None:
        """Of a and of b over the seeds of `differences`."""
        if not self.differences:
            return None
        sides = ([side[seed] for seed in self.differences] for side in (self.a, self.b))
        mean_a, mean_b = (math.fsum(values) / len(values) for values in sides)
        return mean_a, mean_b


def value_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The value at a KL, linear between the nearest two of a seed's (KL, value) points.

    None outside of their range. Points of the same KL count as their mean. [(1, 0.5), (3, 0.9)] has 0.7 at 2
    and nothing at 4.
    """
    by_kl: dict[float, list[float]] = {}
    for x, value in points:
        by_kl.setdefault(x, []).append(value)
    line = [(x, math.fsum(values) / len(values)) for x, values in sorted(by_kl.items())]
    if not line or not line[0][0] <= kl <= line[-1][0]:
        return None
    for (x0, value0), (x1, value1) in pairwise(line):
        if x0 <= kl <= x1:
            return value0 + (value1 - value0) * ((kl - x0) / (x1 - x0))
    return line[0][1]


def matched(points_a: Points, points_b: Points, at: Sequence[float]) -> list[Matched]:
    """Method a against method b at each KL of `at`: a - b paired by seed, with its 95 % t interval.

    A seed that does not reach a KL with both methods is left out there; `difference.n` is the number of those
    left.
    """
    seeds = [seed for seed in points_a if seed in points_b]
    rows = []
    for kl in at:
        a, b = ({seed: value_at(points[seed], kl) for seed in seeds} for points in (points_a, points_b))
        both = {seed: (a[seed], b[seed]) for seed in seeds}
        differences = {seed: x - y for seed, (x, y) in both.items() if x is not None and y is not None}
        interval = t_interval(list(differences.values())) if differences else None
        rows.append(Matched(kl, a, b, differences, interval))
    return rows


def shared_kls(points_a: Points, points_b: Points, levels: Sequence[float] = LEVELS) -> list[float]:
    """Levels of the KLs that both methods reach with the most seeds, 0 the lowest and 1 the highest.

    [] if they share none.
    """
    reached = shared_range(points_a, points_b)
    if reached is None:
        return []
    low, high = reached
    return [(1 - level) * low + level * high for level in levels]  # exact at both ends


def shared_range(points_a: Points, points_b: Points) -> tuple[float, float] | None:
    """The lowest and highest KL of the stretch that both methods reach with the most seeds.

    The longest if there are several; None if no seed reaches any stretch with both.
    """
    reached = []
    for seed in points_a:
        if points_a[seed] and points_b.get(seed):
            kls_of_both = [[kl for kl, _ in points[seed]] for points in (points_a, points_b)]
            reached.append((max(map(min, kls_of_both)), min(map(max, kls_of_both))))
    reached = [(low, high) for low, high in reached if low < high]
    stretches = [(low, high) for low, _ in reached for _, high in reached if low < high]

    def seeds_and_length(stretch: tuple[float, float]) -> tuple[int, float]:
        low, high = stretch
        return sum(first <= low and high <= last for first, last in reached), high - low

    return max(stretches, key=seeds_and_length, default=None)
