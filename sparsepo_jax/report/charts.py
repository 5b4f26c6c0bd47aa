"""The curves of a run: a small line chart for each quantity that training or evaluation measured."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from sparsepo_jax.report.drawing import (
    LIGHT,
    Strip,
    drawing_style,
    fit,
    inline_svg,
    new_axes,
    round_ticks,
)
from sparsepo_jax.report.series import Extent, MetricSeries, Series, drawable, extent, thin
from sparsepo_jax.report.table import number

WIDTH, HEIGHT = 360, 190
MAX_DOTS = 60  # an evaluation with more values is a line without dots
MAX_STRIPS = 150  # strips per chart that show values when the pointer is over them


class ChartSpec(NamedTuple):
    """What a chart shows: quantity -> metric, each as training and evaluation ("eval/" + metric) measured it.

    hold: values that the y axis must show.
    """

    stage: str
    title: str
    quantities: dict[str, str]
    hold: tuple[float, ...] = ()


CHARTS = (
    ChartSpec("sft", "Fine-tuning loss (nats per token)", {"": "loss"}),
    ChartSpec("po", "Preference loss", {"": "loss"}),
    ChartSpec(
        "po",
        "Margin, chosen over rejected",
        {"masked": "rewards/margins", "unmasked": "margin_unmasked"},
        (0,),
    ),
    ChartSpec("po", "Accuracy", {"masked": "rewards/accuracies", "unmasked": "accuracy_unmasked"}, (0, 1)),
    ChartSpec(
        "po",
        "KL to the reference (nats per response)",
        {"chosen": "kl/chosen", "rejected": "kl/rejected"},
        (0,),
    ),
    ChartSpec(
        "po",
        "Mask sparsity (share of exact zeros)",
        {"reward": "mask/reward_sparsity", "KL": "mask/kl_sparsity"},
        (0, 1),
    ),
    ChartSpec("po", "Mask mean", {"reward": "mask/reward_mean", "KL": "mask/kl_mean"}, (0,)),
)


class Curve(NamedTuple):
    """A series to draw. An evaluation is dashed, with a dot at each value.

    colour: index into the colours of lines, modulo their number.
    """

    name: str
    colour: int
    evaluation: bool
    series: Series

    @property
    def extent(self) -> Extent:
        return extent(self.series)

    @property
    def dotted(self) -> bool:
        """Whether all colours are taken once by the lines before."""
        return self.colour // len(LIGHT) % 2 == 1

    @property
    def css(self) -> str:
        """Classes of its sign in the key."""
        kind = "dashed" if self.evaluation else "dotted" if self.dotted else "solid"
        return f"c{self.colour % len(LIGHT)} {kind}"


@dataclass
class Chart:
    """A drawn chart; the page shows the names of its lines with their extents below it."""

    title: str
    lines: list[Curve]
    svg: Markup


_OF_RESPONSES = {"chosen": "desirable", "rejected": "undesirable"}  # what the sides of a pair stand for
_WITHOUT_MASKS = {"masked": "by the objective's reward", "unmasked": "by the plain log-ratio"}


def _charts_for(runs: Collection[MetricSeries]) -> Sequence[ChartSpec]:
    """CHARTS, in the words of single responses where all runs were trained on these, and of no masks."""

    def all_have(metric: str) -> bool:
        return bool(runs) and all(("po", metric) in metrics for metrics in runs)

    words = dict(_OF_RESPONSES) if all_have("share/chosen") else {}
    if all_have("rewards/margins") and not any(("po", "mask/reward_mean") in metrics for metrics in runs):
        words |= _WITHOUT_MASKS
    return [
        spec._replace(
            title=spec.title.replace("chosen over rejected", "desirable over undesirable")
            if "chosen" in words
            else spec.title,
            quantities={words.get(name, name): metric for name, metric in spec.quantities.items()},
        )
        for spec in CHARTS
    ]


def make_charts(metrics: MetricSeries) -> list[Chart]:
    """The charts of CHARTS that have values."""
    with drawing_style():
        return [
            _draw(spec, lines, name=f"chart{n}")
            for n, spec in enumerate(_charts_for([metrics]))
            if (lines := _lines_of_run(spec, metrics))
        ]


def _lines_of_run(spec: ChartSpec, metrics: MetricSeries) -> list[Curve]:
    """Quantities of equal values (both masks, if common) share a line, "reward = KL"."""
    names: dict[str, tuple[Series, Series]] = {}
    for quantity, metric in spec.quantities.items():
        both = metrics.get((spec.stage, metric), {}), metrics.get((spec.stage, f"eval/{metric}"), {})
        before = next(reversed(names), None)
        if before is not None and names[before] == both:
            del names[before]
            quantity = f"{before} = {quantity}"
        names[quantity] = both
    lines = []
    for colour, (quantity, (training, evaluation)) in enumerate(names.items()):
        start = f"{quantity}, " if quantity else ""
        lines.append(Curve(f"{start}training", colour, False, training))
        lines.append(Curve(f"{start}evaluation", colour, True, evaluation))
    return [line for line in lines if line.series]


def make_overlay(groups: Mapping[str, MetricSeries]) -> list[Chart]:
    """A chart for each quantity of CHARTS, with the line of each group of runs (dashed: evaluation)."""
    charts = []
    with drawing_style():
        for spec in _charts_for([metrics for metrics in groups.values() if metrics]):
            for quantity, metric in spec.quantities.items():
                lines = _lines_of_groups(spec.stage, metric, groups)
                if lines:
                    title = f"{spec.title}: {quantity}" if quantity else spec.title
                    charts.append(_draw(spec._replace(title=title), lines, name=f"chart{len(charts)}"))
    return charts


def _lines_of_groups(stage: str, metric: str, groups: Mapping[str, MetricSeries]) -> list[Curve]:
    lines = []
    for colour, (name, metrics) in enumerate(groups.items()):
        lines.append(Curve(name, colour, False, metrics.get((stage, metric), {})))
        lines.append(Curve(f"{name}, evaluation", colour, True, metrics.get((stage, f"eval/{metric}"), {})))
    return [line for line in lines if line.series]


# ---------------------------------------------------------------- drawing


def _draw(spec: ChartSpec, lines: list[Curve], *, name: str) -> Chart:
    axes = new_axes(WIDTH, HEIGHT)
    steps = sorted({step for line in lines for step in line.series})
    values = [x for line in lines for x in line.series.values() if drawable(x)]
    ticks = round_ticks([*values, *spec.hold])
    fit(
        axes,
        (steps[0], steps[-1]),
        step_ticks(steps[0], steps[-1]),
        (ticks[0], ticks[-1]),
        ticks,
    )
    axes.set_xlabel("step", loc="right", labelpad=2)
    for line in lines:
        points = thin(line.series)
        axes.plot(
            [step for step, _ in points],
            [x if drawable(x) else math.nan for _, x in points],
            color=LIGHT[line.colour % len(LIGHT)],
            linestyle=_dashes(line),
            marker="o",
            markersize=4,
            markevery=_dots(points, everywhere=line.evaluation and len(points) <= MAX_DOTS),
        )
    svg = inline_svg(axes, name=name, words=_words(spec.title, steps, lines), strips=_strips(steps, lines))
    return Chart(spec.title, lines, svg)


def _dashes(line: Curve) -> str | tuple[float, tuple[float, ...]]:
    if line.dotted:
        return (0, (3, 2.5, 0.1, 2.5)) if line.evaluation else (0, (0.1, 2))
    return (0, (3, 2.5)) if line.evaluation else "-"


def step_ticks(first: int, last: int) -> list[int]:
    """Round steps from first to last, at most six."""
    if first == last:
        return [first]
    return [int(tick) for tick in round_ticks([first, last]) if first <= tick <= last and tick == int(tick)]


def _dots(points: Sequence[tuple[int, float]], *, everywhere: bool) -> list[int]:
    """Which points get a dot: else those without a neighbour, of which no line would be seen."""
    seen = [False, *(drawable(x) for _, x in points), False]
    return [n for n in range(len(points)) if everywhere or not (seen[n] or seen[n + 2])]


def _words(title: str, steps: Sequence[int], lines: Sequence[Curve]) -> str:
    extents = [(line.name, line.extent) for line in lines]
    return f"{title}, steps {steps[0]} to {steps[-1]}. " + " ".join(
        f"{name}: min {ends.least}, max {ends.most}, last {ends.last}." for name, ends in extents
    )


def _strips(steps: Sequence[int], lines: Sequence[Curve]) -> list[Strip]:
    """A strip for each step, or for a few, with each line's last value among them."""
    size = math.ceil(len(steps) / MAX_STRIPS)
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    centres = [(group[0] + group[-1]) / 2 for group in groups]
    inner = [(a + b) / 2 for a, b in pairwise(centres)]
    edges = [steps[0], *inner, steps[-1]] if inner else [steps[0] - 1, steps[-1] + 1]
    return [
        Strip(left, right, _values_in(group, lines))
        for group, (left, right) in zip(groups, pairwise(edges), strict=True)
    ]


def _values_in(group: Sequence[int], lines: Sequence[Curve]) -> str:
    rows = [f"step {group[0]}" if len(group) == 1 else f"steps {group[0]} to {group[-1]}"]
    for line in lines:
        last = next((step for step in reversed(group) if step in line.series), None)
        if last is not None:
            rows.append(f"{line.name}: {number(line.series[last])}")
    return "\n".join(rows)
