"""From metrics.jsonl to the geometry of small line charts; the page's template draws it as SVG."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from sparsepo_jax.report.table import as_float, number

WIDTH, HEIGHT = 360, 190
TOP, RIGHT, BOTTOM = 10, 10, 32
GLYPH = 6.2  # width of an axis label's character, in the units of WIDTH
MAX_POINTS = 300  # drawn per series; longer ones are thinned, extremes kept
MAX_BANDS = 150  # strips per chart that show values on hover

Series = dict[int, float]  # step -> value, by step
Metrics = dict[tuple[str, str], Series]  # (stage, metric) -> values


class ChartSpec(NamedTuple):
    """A chart: each quantity drawn as training and evaluation ("eval/" + metric) saw it. `hold`: values that y must show."""

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


def collect(rows: list[dict]) -> tuple[Metrics, int]:
    """Rows of metrics.jsonl as series, and how many rows have no stage or step.

    A later value of the same stage, step and metric replaces the earlier one (a resumed run). null counts as not a number.
    """
    metrics: Metrics = {}
    unusable = 0
    for row in rows:
        stage, step = row.get("stage"), row.get("step")
        if not (isinstance(stage, str) and _is_number(step) and abs(step) < 2**53):
            unusable += 1
            continue
        for name, x in row.items():
            if name not in ("stage", "step", "time_s") and (x is None or _is_number(x)):
                metrics.setdefault((stage, name), {})[int(step)] = math.nan if x is None else as_float(x)
    return {key: dict(sorted(series.items())) for key, series in metrics.items()}, unusable


def _is_number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def drawable(x: float) -> bool:
    return math.isfinite(x) and abs(x) < 1e100  # so that no difference overflows


class Extent(NamedTuple):
    """What a series comes to in words: of its finite values the first, last, smallest and largest, and the steps without one."""

    first: str
    last: str
    least: str
    most: str
    steps: int
    broken: tuple[int, ...]


def extent(series: Series) -> Extent:
    finite = [x for x in series.values() if drawable(x)]
    words = [number(f) for f in (finite[0], finite[-1], min(finite), max(finite))] if finite else ["-"] * 4
    return Extent(*words, len(series), tuple(step for step, x in series.items() if not drawable(x)))


@dataclass
class Line:
    """A series as drawn. `colour` counts the chart's quantities; evaluation is dashed, with a dot at each value."""

    name: str
    colour: int
    evaluation: bool
    extent: Extent
    path: str
    dots: list[tuple[float, float]]


@dataclass
class Chart:
    """All that the template needs, in the coordinates of a WIDTH x HEIGHT box; bands are (x, width, text on hover)."""

    title: str
    words: str
    left: float
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    bands: list[tuple[float, float, str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def make_charts(metrics: Metrics) -> list[Chart]:
    """The charts of CHARTS that have values. Quantities of equal values (both masks, if common) are one line, "reward = KL"."""
    charts = []
    for spec in CHARTS:
        drawn: list[tuple[str, Series, Series]] = []
        for quantity, metric in spec.quantities.items():
            training, evaluation = (
                metrics.get((spec.stage, metric), {}),
                metrics.get((spec.stage, f"eval/{metric}"), {}),
            )
            if drawn and drawn[-1][1:] == (training, evaluation):
                drawn[-1] = (f"{drawn[-1][0]} = {quantity}", training, evaluation)
            else:
                drawn.append((quantity, training, evaluation))
        found = []
        for colour, (quantity, training, evaluation) in enumerate(drawn):
            comma = ", " if quantity else ""
            found += [(f"{quantity}{comma}training", colour, False, training)] if training else []
            found += [(f"{quantity}{comma}evaluation", colour, True, evaluation)] if evaluation else []
        if found:
            charts.append(_draw(spec, found))
    return charts


def make_overlay(groups: dict[str, Metrics]) -> list[Chart]:
    """A chart for each quantity of CHARTS, with a line for each group of runs that has it (training; dashed: evaluation)."""
    charts = []
    for spec in CHARTS:
        for quantity, metric in spec.quantities.items():
            drawn = [
                (f"{name}{said}", colour, bool(said), series)
                for colour, (name, metrics) in enumerate(groups.items())
                for said, key in (("", metric), (", evaluation", f"eval/{metric}"))
                if (series := metrics.get((spec.stage, key)))
            ]
            if drawn:
                charts.append(
                    _draw(spec._replace(title=f"{spec.title}: {quantity}" if quantity else spec.title), drawn)
                )
    return charts


def mean_metrics(runs: list[Metrics]) -> Metrics:
    """The mean over runs of each series, at the steps that all of them have."""
    found: Metrics = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        series = [run[key] for run in runs if key in run]
        steps = [step for step in series[0] if all(step in one for one in series)]
        if steps and len(series) == len(runs):
            found[key] = {step: sum(one[step] for one in series) / len(series) for step in steps}
    return found


def _draw(spec: ChartSpec, found: list[tuple[str, int, bool, Series]]) -> Chart:
    steps = sorted({step for *_, series in found for step in series})
    finite = [x for *_, series in found for x in series.values() if drawable(x)]
    y_lo, y_hi, y_ticks = y_axis([*finite, *spec.hold])
    labels = [label for _, label in y_ticks]
    chart = Chart(spec.title, "", left=12 + GLYPH * max(map(len, labels)))
    first, last = steps[0], steps[-1]

    def x_at(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return round(chart.left + share * (chart.right - chart.left), 1)

    def y_at(x: float) -> float:
        return round(chart.bottom - (x - y_lo) / (y_hi - y_lo) * (chart.bottom - chart.top), 1)

    chart.y_ticks = [(y_at(x), label) for x, label in y_ticks]
    chart.x_ticks = [(x_at(x), f"{x:g}" if x < 1e6 else f"{x:.3g}") for x in x_axis(first, last)]
    for name, colour, evaluation, series in found:
        points = thin(series)
        dots = [(x_at(step), y_at(x)) for step, x in points if drawable(x)]
        dots = dots if len(dots) == 1 or (evaluation and len(dots) <= 60) else []
        chart.lines.append(Line(name, colour, evaluation, extent(series), _path(points, x_at, y_at), dots))
    chart.words = f"{spec.title}, steps {first} to {last}. " + " ".join(
        f"{line.name}: min {line.extent.least}, max {line.extent.most}, last {line.extent.last}."
        for line in chart.lines
    )
    chart.bands = _bands(steps, found, x_at, chart)
    return chart


def _path(points: list[tuple[int, float]], x_at, y_at) -> str:
    """An SVG path, broken where a value is not finite; a value between two breaks is a dot (a line of no length, round caps)."""
    pieces, pen_down = [], False
    for step, x in points:
        if not drawable(x):
            pen_down = False
            continue
        pieces.append(f"{'L' if pen_down else 'M'}{x_at(step):g} {y_at(x):g}" + ("" if pen_down else "h0"))
        pen_down = True
    return "".join(pieces)


def thin(series: Series) -> list[tuple[int, float]]:
    """At most about MAX_POINTS points: of each stretch the smallest, the largest and the first that is not finite."""
    points = list(series.items())
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [p for p in stretch if drawable(p[1])]
        chosen = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        chosen |= set([p for p in stretch if not drawable(p[1])][:1])
        kept += sorted(chosen, key=lambda p: p[0])
    return kept


def _bands(steps: list[int], found, x_at, chart: Chart) -> list[tuple[float, float, str]]:
    """Vertical strips that say the values on hover: a strip for a step, or for a few, with each series' last value among them."""
    size = math.ceil(len(steps) / MAX_BANDS)
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    centres = [(x_at(group[0]) + x_at(group[-1])) / 2 for group in groups]
    edges = [chart.left, *((a + b) / 2 for a, b in zip(centres, centres[1:])), chart.right]
    bands = []
    for group, x, x_next in zip(groups, edges, edges[1:]):
        said = [f"step {group[0]}" if len(group) == 1 else f"steps {group[0]} to {group[-1]}"]
        for name, _, _, series in found:
            at = next((step for step in reversed(group) if step in series), None)
            if at is not None:
                said.append(f"{name}: {number(series[at])}")
        bands.append((round(x, 1), round(x_next - x, 1), "\n".join(said)))
    return bands


def y_axis(values: list[float]) -> tuple[float, float, list[tuple[float, str]]]:
    """Lower end, upper end and labelled ticks at round numbers that hold all values; a constant gets room around it."""
    lo, hi = (min(values), max(values)) if values else (0.0, 1.0)
    size = max(abs(lo), abs(hi))
    if size < 1e-30:
        lo, hi = 0.0, 1.0
    elif hi - lo <= 1e-9 * size:
        lo, hi = lo - 0.1 * size, hi + 0.1 * size
    step = _round_step((hi - lo) / 4)
    # a hair of tolerance, so that 1.0000000001 steps are not two
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    most = max(abs(t) for t in ticks)
    if 1e-3 <= most < 1e6:
        spec = f".{max(0, -math.floor(math.log10(step) + 1e-9))}f"
    else:
        spec = f".{max(1, math.floor(math.log10(most)) - math.floor(math.log10(step)) + 1)}g"
    return ticks[0], ticks[-1], [(t, format(t, spec)) for t in ticks]


def x_axis(first: int, last: int) -> list[int]:
    """Round steps from first to last, at most six."""
    if first == last:
        return [first]
    step = max(1, round(_round_step((last - first) / 4)))
    return list(range(math.ceil(first / step) * step, last + 1, step))


def _round_step(about: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= about * (1 - 1e-9))
