"""The plane of value against KL: each method's line through its betas, with intervals over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from sparsepo_jax.report.drawing import (
    FONT_SIZE,
    GLYPH,
    LIGHT,
    drawing_style,
    fit,
    inline_svg,
    new_axes,
    round_ticks,
)
from sparsepo_jax.report.intervals import Interval
from sparsepo_jax.report.series import drawable
from sparsepo_jax.report.table import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 720, 380
MARKERS = {
    "o": "●",
    "s": "■",
    "^": "▲",
    "D": "◆",
    "v": "▼",
    "P": "✚",
    "X": "✖",
    "*": "★",
}  # and for the page's text


class Spot(NamedTuple):
    """A group of runs on the plane.

    kl, value: with their intervals over seeds. seeds: (KL, value) of each.
    """

    label: str
    kl: Interval
    value: Interval
    seeds: Sequence[tuple[float, float]]

    @property
    def words(self) -> str:
        return f"{self.label}: {number(self.value.mean)} at {number(self.kl.mean)} nats"

    @property
    def can_be_drawn(self) -> bool:
        return drawable(self.kl.mean) and drawable(self.value.mean)


Methods = Mapping[str, Sequence[tuple[str, Spot]]]  # name -> (short label, spot), in the order of their line


class Method(NamedTuple):
    """An entry of the key below a plane.

    colour: index into the colours of lines. sign: its marker.
    """

    name: str
    colour: int
    sign: str


@dataclass
class Plane:
    """A drawn plane; the page shows the names of its methods below it."""

    title: str
    x_label: str
    methods: list[Method]
    svg: Markup


def look(n: int) -> tuple[int, str]:
    """(colour, marker) of method n; methods of the same colour differ in their marker."""
    markers = list(MARKERS)
    return n % len(LIGHT), markers[(n + n // len(LIGHT)) % len(markers)]


def make_plane(methods: Methods, *, title: str, x_label: str, name: str) -> Plane | None:
    """Draw the methods that have a spot; None if none has.

    name: unique in the page. A method without a spot keeps its colour for the page's other planes.
    """
    drawn = {
        method: [(label, spot) for label, spot in spots if spot.can_be_drawn]
        for method, spots in methods.items()
    }
    with drawing_style():
        axes = draw(drawn, x_label=x_label)
        if axes is None:
            return None
        words = [f"{method}: {spot.words}." for method, spots in drawn.items() for _, spot in spots]
        titles = {
            _gid(n, k): spot.words
            for n, spots in enumerate(drawn.values())
            for k, (_, spot) in enumerate(spots)
        }
        sentences = " ".join([f"{title} against {x_label}.", *words])
        svg = inline_svg(axes, name=name, words=sentences, titles=titles)
    key = []
    for n, (method, spots) in enumerate(drawn.items()):
        colour, marker = look(n)
        if spots:
            key.append(Method(method, colour, MARKERS[marker]))
    return Plane(title, x_label, key, svg)


def _gid(method: int, spot: int) -> str:
    return f"spot-{method}-{spot}"


def draw(methods: Methods, *, x_label: str, width: float = WIDTH, height: float = HEIGHT) -> "Axes | None":
    """The axes of a plane, made and saved within drawing_style(); None if there are no spots.

    All spots must have values that can be drawn.
    """
    spots = [spot for labelled in methods.values() for _, spot in labelled]
    if not spots:
        return None
    axes = new_axes(width, height)
    xs = _shown([spot.kl for spot in spots], [kl for spot in spots for kl, _ in spot.seeds])
    ys = _shown([spot.value for spot in spots], [x for spot in spots for _, x in spot.seeds])
    fit(axes, _with_room(xs), round_ticks(xs, most=8), _with_room(ys), round_ticks(ys, most=6))
    axes.set_xlabel(x_label, loc="right", labelpad=3)
    for n, labelled in enumerate(methods.values()):
        _draw_method(axes, n, [spot for _, spot in labelled])
    _draw_labels(axes, methods)
    return axes


def _shown(intervals: Sequence[Interval], of_seeds: Sequence[float]) -> list[float]:
    """What an axis must show: all values, and the ends of intervals.

    Intervals that are much wider than the values lie apart are cut: that of two seeds can be very wide.
    """
    values = [x for x in (*(interval.mean for interval in intervals), *of_seeds) if drawable(x)]
    low, high = min(values), max(values)
    room = 0.2 * (high - low) or 0.1 * abs(low) or 1.0
    ends = [
        x for interval in intervals for x in (interval.low, interval.high) if x is not None and drawable(x)
    ]
    return values + [min(max(x, low - room), high + room) for x in ends]


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.03 * (high - low) or 0.1 * abs(low) or 1.0
    return low - room, high + room


def _draw_method(axes: "Axes", n: int, spots: Sequence[Spot]) -> None:
    index, marker = look(n)
    colour = LIGHT[index]
    axes.plot([spot.kl.mean for spot in spots], [spot.value.mean for spot in spots], color=colour)
    for k, spot in enumerate(spots):
        x, y = spot.kl.mean, spot.value.mean
        interval_style = {"color": colour, "linewidth": 1.2, "alpha": 0.35}
        if kls := _within(spot.kl, axes.get_xlim()):
            axes.plot(kls, (y, y), **interval_style)
        if values := _within(spot.value, axes.get_ylim()):
            axes.plot((x, x), values, **interval_style)
        seeds = [point for point in spot.seeds if all(map(drawable, point))]
        if len(spot.seeds) > 1 and seeds:
            xs, ys = zip(*seeds, strict=True)
            axes.plot(xs, ys, marker, color=colour, markersize=3.2, markeredgewidth=0, alpha=0.45)
        axes.plot([x], [y], marker, color=colour, markersize=7.5, markeredgewidth=0, zorder=3, gid=_gid(n, k))


def _within(interval: Interval, limits: tuple[float, float]) -> tuple[float, float] | None:
    """The interval cut at the edges of the drawing."""
    if interval.low is None or interval.high is None:
        return None
    low, high = limits
    return min(max(interval.low, low), high), min(max(interval.high, low), high)


# ---------------------------------------------------------------- labels

Box = tuple[float, float, float, float]  # left, bottom, right, top in points


class LabelPlace(NamedTuple):
    """Where a label stands: which end of it (as matplotlib's ha) lies how many points from its spot."""

    end: str
    right: float
    up: float

    def box(self, x: float, y: float, label: str) -> Box:
        width = GLYPH * len(label)
        left = x + self.right - {"left": 0.0, "center": width / 2, "right": width}[self.end]
        return left, y + self.up, left + width, y + self.up + FONT_SIZE


PLACES = (
    LabelPlace("left", 6, 4),
    LabelPlace("right", -6, 4),
    LabelPlace("left", 6, -13),
    LabelPlace("right", -6, -13),
    LabelPlace("center", 0, 7),
    LabelPlace("center", 0, -17),
)


def _draw_labels(axes: "Axes", methods: Methods) -> None:
    """Each label beside its spot, where it covers least of the spots and of the labels before it."""
    labelled = [(label, spot) for pairs in methods.values() for label, spot in pairs]
    centres = [tuple(axes.transData.transform((spot.kl.mean, spot.value.mean))) for _, spot in labelled]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in centres]
    edge = 72 * axes.figure.get_size_inches()[0]
    for (label, spot), (x, y) in zip(labelled, centres, strict=True):
        if label:
            place = _free_place(x, y, label, taken, edge)
            taken.append(place.box(x, y, label))
            axes.annotate(
                label,
                (spot.kl.mean, spot.value.mean),
                (place.right, place.up),
                textcoords="offset points",
                ha=place.end,
            )


def _free_place(x: float, y: float, label: str, taken: Sequence[Box], edge: float) -> LabelPlace:
    """edge: the x at which the figure ends."""
    inside = [place for place in PLACES if place.box(x, y, label)[2] <= edge] or PLACES
    return min(inside, key=lambda place: _covered(place.box(x, y, label), taken))


def _covered(box: Box, taken: Sequence[Box]) -> float:
    """The area that a box shares with others."""
    area = 0.0
    for other in taken:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        area += max(width, 0.0) * max(height, 0.0)
    return area
