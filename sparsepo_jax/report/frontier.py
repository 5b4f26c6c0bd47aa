"""What a method reaches at what KL: its frontier, two methods at the same KL, and the frontier as a drawing.

A method whose beta is larger stays nearer to the reference, so two methods at the same beta are not at the same KL, and their scores alone say little.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sparsepo_jax.report.intervals import Interval, t_interval
from sparsepo_jax.report.plots import GLYPH, drawable, y_axis
from sparsepo_jax.report.table import number

Points = Mapping[int, Sequence[tuple[float, float]]]  # seed -> (KL, value) of its runs, one a beta


class Matched(NamedTuple):
    """Two methods at one KL (nats). a, b: value by seed, of the seeds that both methods have; None where a seed's runs do not reach this KL.
    difference: a - b over the seeds that have both; None if none has."""

    kl: float
    a: dict[int, float | None]
    b: dict[int, float | None]
    differences: dict[int, float]
    difference: Interval | None

    @property
    def means(self) -> tuple[float, float] | None:
        """Of a and of b over the seeds of `differences`."""
        return (
            tuple(
                math.fsum(side[seed] for seed in self.differences) / len(self.differences)
                for side in (self.a, self.b)
            )
            if self.differences
            else None
        )


def value_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The value at a KL, linear between the nearest two of a seed's (KL, value); None outside of their range. Points of the same KL count as their mean.

    [(1, 0.5), (3, 0.9)] has 0.7 at 2 and nothing at 4.
    """
    by_kl: dict[float, list[float]] = {}
    for x, value in points:
        by_kl.setdefault(x, []).append(value)
    line = [(x, math.fsum(values) / len(values)) for x, values in sorted(by_kl.items())]
    if not line or not line[0][0] <= kl <= line[-1][0]:
        return None
    for (x0, value0), (x1, value1) in zip(line, line[1:]):
        if x0 <= kl <= x1:
            return value0 + (value1 - value0) * ((kl - x0) / (x1 - x0))
    return line[0][1]


def matched(points_a: Points, points_b: Points, at: Sequence[float]) -> list[Matched]:
    """Method a against method b at each KL of `at`: by seed, and the difference a - b with its 95 % t interval over seeds (paired).

    A seed of which one method does not reach the KL is left out there: `difference.n` says how many are left.
    """
    found = []
    for kl in at:
        seeds = [seed for seed in points_a if seed in points_b]
        a, b = ({seed: value_at(points[seed], kl) for seed in seeds} for points in (points_a, points_b))
        differences = {
            seed: a[seed] - b[seed] for seed in seeds if a[seed] is not None and b[seed] is not None
        }
        found.append(
            Matched(kl, a, b, differences, t_interval(list(differences.values())) if differences else None)
        )
    return found


def shared_range(points_a: Points, points_b: Points) -> tuple[float, float] | None:
    """(lowest, highest) KL of the stretch that both methods reach with the most seeds; None if no seed reaches any KL with both."""
    reached = []
    for seed in points_a:
        if points_a[seed] and points_b.get(seed):
            ends = [
                (min(kl for kl, _ in points[seed]), max(kl for kl, _ in points[seed]))
                for points in (points_a, points_b)
            ]
            reached.append((max(lo for lo, _ in ends), min(hi for _, hi in ends)))
    reached = [(lo, hi) for lo, hi in reached if lo < hi]
    stretches = [
        (sum(a <= lo and hi <= b for a, b in reached), lo, hi)
        for lo, _ in reached
        for _, hi in reached
        if lo < hi
    ]
    most = max(stretches, key=lambda one: (one[0], one[2] - one[1]), default=None)
    return most and most[1:]


# ---------------------------------------------------------------- drawn

WIDTH, HEIGHT, TOP, RIGHT, BOTTOM = 720, 380, 14, 20, 46


class Spot(NamedTuple):
    """A group of runs on the plane: KL and value with their intervals over seeds, and the (KL, value) of each seed."""

    label: str
    kl: Interval
    value: Interval
    seeds: Sequence[tuple[float, float]]


@dataclass
class Mark:
    """As drawn. bars: SVG path of the intervals, cut at the edges of the drawing."""

    x: float
    y: float
    bars: str
    words: str
    label: str
    seeds: list[tuple[float, float]]
    flip: bool  # the label stands left of the mark, where there is no room at its right


@dataclass
class Curve:
    name: str
    colour: int
    path: str
    marks: list[Mark] = field(default_factory=list)


@dataclass
class Plane:
    """All that the template needs, in the coordinates of a WIDTH x HEIGHT box."""

    title: str
    x_label: str
    left: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]
    width: int = WIDTH
    height: int = HEIGHT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM

    @property
    def words(self) -> str:
        return f"{self.title} against {self.x_label}. " + " ".join(
            f"{curve.name}: {mark.words}." for curve in self.curves for mark in curve.marks
        )


def _held(intervals: Sequence[Interval], seeds: Sequence[float]) -> list[float]:
    """What an axis must show: all values, and intervals as far as they are not much wider than these lie apart (two seeds can give a very wide one)."""
    values = [x for x in (*(found.mean for found in intervals), *seeds) if drawable(x)]
    if not values:
        return []
    lo, hi = min(values), max(values)
    room = 0.3 * (hi - lo) or max(abs(lo), 1e-9)
    ends = [x for found in intervals for x in (found.low, found.high) if x is not None and drawable(x)]
    return values + [min(max(x, lo - room), hi + room) for x in ends]


def draw(methods: Mapping[str, Sequence[tuple[str, Spot]]], *, title: str, x_label: str) -> Plane | None:
    """methods: name -> (short label, spot) in the order in which a line joins them; one without a spot keeps its colour for other planes. None if there is
    nothing that can be drawn."""
    spots = [spot for named in methods.values() for _, spot in named]
    kls, values = (
        _held([spot.kl for spot in spots], [kl for spot in spots for kl, _ in spot.seeds]),
        _held([spot.value for spot in spots], [value for spot in spots for _, value in spot.seeds]),
    )
    if not kls or not values:
        return None
    x_lo, x_hi, x_ticks = y_axis(kls)
    y_lo, y_hi, y_ticks = y_axis(values)
    left = 12 + GLYPH * max(len(label) for _, label in y_ticks)
    x_at = lambda x: round(left + (x - x_lo) / (x_hi - x_lo) * (WIDTH - RIGHT - left), 1)
    y_at = lambda y: round(HEIGHT - BOTTOM - (y - y_lo) / (y_hi - y_lo) * (HEIGHT - BOTTOM - TOP), 1)
    curves = []
    for colour, (name, named) in enumerate(methods.items()):
        curve = Curve(name, colour, "")
        for label, spot in named:
            if not (drawable(spot.kl.mean) and drawable(spot.value.mean)):
                continue
            x, y = x_at(spot.kl.mean), y_at(spot.value.mean)
            within = lambda x, lo, hi: min(max(x, lo), hi)
            bars = (
                ""
                if spot.kl.low is None
                else f"M{x_at(within(spot.kl.low, x_lo, x_hi)):g} {y:g}H{x_at(within(spot.kl.high, x_lo, x_hi)):g}"
            )
            bars += (
                ""
                if spot.value.low is None
                else f"M{x:g} {y_at(within(spot.value.low, y_lo, y_hi)):g}V{y_at(within(spot.value.high, y_lo, y_hi)):g}"
            )
            dots = (
                [(x_at(kl), y_at(value)) for kl, value in spot.seeds if drawable(kl) and drawable(value)]
                if len(spot.seeds) > 1
                else []
            )
            words = f"{spot.label}: {number(spot.value.mean)} at {number(spot.kl.mean)} nats"
            curve.marks.append(Mark(x, y, bars, words, label, dots, x + 14 + GLYPH * len(label) > WIDTH))
            curve.path += f"{'L' if curve.path else 'M'}{x:g} {y:g}"
        if curve.marks:
            curves.append(curve)
    return Plane(
        title,
        x_label,
        left,
        [(x_at(x), label) for x, label in x_ticks],
        [(y_at(y), label) for y, label in y_ticks],
        curves,
    )
