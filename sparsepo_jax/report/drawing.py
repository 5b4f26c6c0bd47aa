"""Matplotlib figures as SVG inside an HTML page, in the page's own colours (light or dark) and font.

Matplotlib takes a second to import, so only the functions that draw import it.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from sparsepo_jax.report.heatmap import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of lines in turn, then of text and grid. Simulated for the three kinds of colour blindness (Machado
# et al. 2009), no two lines come closer than 12 in CIELAB. In a page each colour becomes a CSS variable, so
# that a dark page can replace it: page.css.jinja declares these variables from the tables here.
LIGHT = ("#0060ad", "#dd6300", "#14a37f", "#d873b4", "#7a5c00", "#4aa8ea", "#55106a", "#343a40")
DARK = ("#3f93e8", "#f08030", "#35c79a", "#f0a0d4", "#8f7420", "#a8e0ff", "#8446c4", "#f4e9c0")
INK, GRID = "#5b6470", "#dde1e6"
VARIABLES = {colour: f"var(--c{n})" for n, colour in enumerate(LIGHT)} | {
    INK: "var(--soft)",
    GRID: "var(--edge)",
}

FONT_SIZE = 10.5
GLYPH = 6.4  # width of a digit in that size, at most
TOP, RIGHT, BOTTOM = 10.0, 14.0, 34.0  # margins; the left one is as wide as the labels of its ticks
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": FONT_SIZE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": FONT_SIZE,
    "grid.color": GRID,
    "lines.dash_capstyle": "round",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sparsepo_jax",  # the same data give the same bytes
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": FONT_SIZE,
    "ytick.color": INK,
    "ytick.labelsize": FONT_SIZE,
    "ytick.major.size": 0,
}


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """The style of all drawings, whatever the user's matplotlibrc says.

    Figures must be made and saved within it.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_axes(width: float, height: float) -> "Axes":
    """Axes in a figure of their own, in points: units of the viewBox of its SVG."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72).subplots()


def round_ticks(values: Sequence[float], *, most: int = 5) -> list[float]:
    """Round numbers at equal distances, from below the smallest value to above the largest.

    A constant gets room around it. most: the largest number of intervals between ticks.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if size < 1e-30:
        low, high = 0.0, 1.0
    elif high - low <= 1e-9 * size:
        low, high = low - 0.1 * size, high + 0.1 * size
    ticks = MaxNLocator(nbins=most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """As many decimals as tell the ticks apart; scientific where all are tiny or one is huge."""
    largest = max(map(abs, ticks))
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    if largest == 0 or 1e-3 <= largest < 1e6:
        form = f".{max(0, -math.floor(math.log10(step) + 1e-9))}f"
    else:
        form = f".{max(1, math.floor(math.log10(largest)) - math.floor(math.log10(step)) + 1)}g"
    return [format(tick + 0.0, form).replace("-", "\N{MINUS SIGN}") for tick in ticks]


def fit(
    axes: "Axes",
    x_limits: tuple[float, float],
    x_ticks: Sequence[float],
    y_limits: tuple[float, float],
    y_ticks: Sequence[float],
) -> None:
    """Set limits, ticks and margins; ticks outside of the limits are left out.

    A single x stands in the middle.
    """
    x_first, x_last = x_limits if x_limits[0] < x_limits[1] else (x_limits[0] - 1, x_limits[1] + 1)
    axes.set_xlim(x_first, x_last)
    axes.set_ylim(*y_limits)
    x_labels, y_labels = tick_labels(x_ticks), tick_labels(y_ticks)
    axes.set_xticks(*_within(x_ticks, x_labels, (x_first, x_last)))
    axes.set_yticks(*_within(y_ticks, y_labels, y_limits))
    figure = axes.figure
    width, height = (72 * inches for inches in figure.get_size_inches())
    left = 12 + GLYPH * max(map(len, y_labels))
    figure.subplots_adjust(
        left=left / width, right=1 - RIGHT / width, bottom=BOTTOM / height, top=1 - TOP / height
    )


def _within(
    ticks: Sequence[float], labels: Sequence[str], limits: tuple[float, float]
) -> tuple[list[float], list[str]]:
    low, high = limits
    room = 1e-9 * (high - low)
    inside = [n for n, tick in enumerate(ticks) if low - room <= tick <= high + room]
    return [ticks[n] for n in inside], [labels[n] for n in inside]


# ---------------------------------------------------------------- as SVG

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_DROPPED = (f"{_SVG}metadata", f"{_SVG}style")  # that style would hold for the whole page
_LONG_DECIMALS = re.compile(r"(\.\d\d)\d+")


class Strip(NamedTuple):
    """A rectangle that is seen, with its text, when the pointer is over it.

    left, right: x values of the data.
    """

    left: float
    right: float
    words: str


def inline_svg(
    axes: "Axes",
    *,
    name: str,
    words: str,
    titles: Mapping[str, str] | None = None,
    strips: Sequence[Strip] = (),
) -> Markup:
    """The figure of these axes as an <svg> element.

    name: unique in the page, it begins all ids. words: the drawing in words, for those who do not see it.
    titles: gid of an artist -> text when the pointer is over it.
    """
    for (
        artist
    ) in axes.figure.findobj():  # nothing lies outside the axes, and without clipping no paths need ids
        artist.set_clip_on(False)
    axes.figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _tidy(root, name, titles or {})
    root.attrib = {
        "class": "chart",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": visible(words),
    }
    height = 72 * axes.figure.get_size_inches()[1]
    for strip in strips:
        root.append(_strip_element(axes, strip, height))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tidy(element: ElementTree.Element, name: str, titles: Mapping[str, str]) -> None:
    """Turn colours into CSS variables and drop what a page must not have.

    That is fonts, styles that would hold for the page, and ids that nothing refers to.
    """
    for child in list(element):
        if child.tag in _DROPPED:
            element.remove(child)
        else:
            _tidy(child, name, titles)
    for key, value in list(element.attrib.items()):
        if key == "style":
            element.set(key, _page_style(value))
        elif key in ("d", "x", "y", "transform"):
            element.set(key, _LONG_DECIMALS.sub(r"\1", value).replace("\n", " ").strip())
        elif key == f"{_XLINK}href":
            del element.attrib[key]
            element.set("href", f"#{name}-{value.removeprefix('#')}")
    gid = element.attrib.pop("id", None)
    if element.tag == f"{_SVG}path" and gid is not None:  # a marker, to which <use> refers
        element.set("id", f"{name}-{gid}")
    if gid in titles:
        element.insert(0, _title(titles[gid]))
    element.tag = element.tag.removeprefix(_SVG)
    element.text = (element.text or "").strip() or None
    element.tail = None


def _page_style(style: str) -> str:
    declarations = [part.strip() for part in style.split(";") if not part.strip().startswith("font")]
    text = "; ".join(filter(None, declarations))
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _title(words: str) -> ElementTree.Element:
    title = ElementTree.Element("title")
    title.text = visible(words)
    return title


def _strip_element(axes: "Axes", strip: Strip, height: float) -> ElementTree.Element:
    left, right = (axes.transData.transform((x, 0))[0] for x in (strip.left, strip.right))
    top, bottom = height - axes.bbox.y1, height - axes.bbox.y0
    box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    element = ElementTree.Element("rect", {"class": "strip"} | {key: f"{x:.1f}" for key, x in box.items()})
    element.append(_title(strip.words))
    return element
