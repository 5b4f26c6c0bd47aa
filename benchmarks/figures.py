"""Draws the pictures of the results from the files in results/, for the README and the documentation.

    python benchmarks/figures.py [--output DIR]     default: beside the result files
    python benchmarks/figures.py --pairs runs/quickstart/pairs.jsonl
    python benchmarks/figures.py --pairs runs/polite_examples/pairs.jsonl --of polite

long_run-DEVICE.svg and scaling-DEVICE.svg of the JSON files of these names, sentiment-frontier.png of
sentiment-cpu.json, and heatmap-NAME.png of NAME_pairs.jsonl. The other forms first take the rows of that file
from a run: of configs/quickstart.yaml, or one that docs/results/evidence.md names.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import patches, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from sparsepo_jax.report.compare import plane
from sparsepo_jax.report.drawing import GRID, INK, LIGHT, drawing_style
from sparsepo_jax.report.heatmap import REWARD_MASK, Pair, Scale, Token, make_scales, parse_pair, zero_share
from sparsepo_jax.report.intervals import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
SHOWN_PAIRS = {"quickstart": 3, "polite": 4}
MEASURED, FLOOR = LIGHT[0], LIGHT[-1]
BLACK = "#1c2127"
FACTORS = {"response": "response tokens", "vocab": "vocabulary"}  # how a factor of scaling.py is named


def save(figure: Figure, path: Path) -> None:
    """On white. The same data give the same bytes; a PNG has few colours, so that it is small."""
    style = {"facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.1}
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None}, **style)
    else:
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130, **style)
        Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)
    print(path)


# ---------------------------------------------------------------- a long run, and scaling


def draw_long_run(result: dict[str, Any]) -> Figure:
    """Milliseconds a step and resident memory by step, each from zero."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    panels = (
        (upper, "milliseconds a step", [(step, 1e3 * seconds) for step, seconds in result["step_s"]]),
        (lower, "resident memory, MB", result["resident_mb"]),
    )
    for axes, title, points in panels:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=MEASURED)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_ylim(0, 1.15 * max(values))
        axes.set_xlim(0, result["steps"])
    lower.set_xlabel("step", loc="right")
    return figure


def draw_scaling(result: dict[str, Any]) -> Figure:
    """A log-log panel for each factor: seconds measured, and operations over the matrix rate."""
    rows = result["rows"]
    figure = Figure(figsize=(3 * len(rows), 3.6), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, (factor, of_factor) in zip(panels, rows.items(), strict=True):
        _draw_factor(axes, [row[factor] for row in of_factor], of_factor)
        axes.set_xlabel(FACTORS.get(factor, factor))
    seconds = [row[key] for of_factor in rows.values() for row in of_factor for key in ("floor_s", "max_s")]
    powers = range(int(log10(min(seconds))) - 2, int(log10(max(seconds))) + 2)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_ylim(0.8 * min(seconds), 1.25 * max(seconds))
    panels[0].set_ylabel("seconds a step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    return figure


def _draw_factor(axes: "Axes", values: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    medians = [row["median_s"] for row in rows]
    ranges = [
        [row["median_s"] - row["min_s"] for row in rows],
        [row["max_s"] - row["median_s"] for row in rows],
    ]
    axes.set_xscale("log")
    axes.set_yscale("log")
    floors = [row["floor_s"] for row in rows]
    measured = "measured (median, fastest to slowest)"
    axes.errorbar(values, medians, ranges, color=MEASURED, marker="o", markersize=5, label=measured)
    axes.plot(values, floors, color=FLOOR, linestyle="--", label="operations / measured matrix rate")
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    room = (values[-1] / values[0]) ** 0.08
    axes.set_xlim(values[0] / room, values[-1] * room)


# ---------------------------------------------------------------- the frontier of the sentiment benchmark


def draw_frontier(points: Sequence[dict[str, Any]]) -> Figure:
    """Reward against KL: each objective's line through its betas, with 95 % intervals over seeds."""
    methods: dict[str, list[tuple[str, plane.Spot]]] = {}
    keys = dict.fromkeys((point["objective"], point["beta"]) for point in points)
    for objective, beta in keys:
        runs = [point for point in points if (point["objective"], point["beta"]) == (objective, beta)]
        seeds = [(point["kl"], point["reward"]) for point in runs]
        kl, reward = (t_interval(column) for column in zip(*seeds, strict=True))
        spot = plane.Spot(f"{objective}, beta {beta}", kl, reward, seeds)
        methods.setdefault(objective, []).append(("" if beta is None else f"{beta:g}", spot))
    axes = plane.draw(methods, x_label="KL of what the policy writes, nats a response", height=400)
    assert axes is not None
    axes.set_title("Reward of what the policy writes (beta beside each point)", loc="left")
    handles = []
    for n, name in enumerate(methods):
        colour, marker = plane.look(n)
        handles.append(Line2D([], [], color=LIGHT[colour], marker=marker, markersize=7, label=name))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2, frameon=False)
    return axes.figure


# ---------------------------------------------------------------- pairs, token by token

WIDTH, MARGIN, GUTTER = 760, 16, 28  # points
KEY = 20  # height of the first line, which explains the colours
LINE, TEXT_SIZE, SMALL_SIZE = 20, 10.5, 9
SPACE = 4.5  # between words
ZOOM = 4  # widths of text are measured in pixels of a fraction of a point
ABOVE = (38 / 255, 120 / 255, 205 / 255)  # as in the report's page


def pairs_path(name: str) -> Path:
    """The pairs of a picture, token by token."""
    return RESULTS / f"{name}_pairs.jsonl"


def take_pairs(path: Path, name: str) -> None:
    """The first pairs of a run, without what the picture does not need to be exact about."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, SHOWN_PAIRS[name])]
    for row in rows:
        del row["prompt_ids"]
        row["prompt_tokens"] = question(row["prompt_tokens"])
        for side in ("chosen", "rejected"):
            for kind, column in row[side].items():
                if kind not in ("token_ids", "tokens", "decisive"):
                    row[side][kind] = [round(x, 4) for x in column]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    pairs_path(name).write_text(text, encoding="utf-8")


def question(tokens: list[str]) -> list[str]:
    """What the user asks in a prompt of a ChatML template; another prompt is kept as it is."""
    begins = [n for n, token in enumerate(tokens) if token == "<|im_start|>"]
    if not begins:
        return tokens
    begin = begins[-2] + len(("<|im_start|>", "user", "\n"))  # the last one opens the answer
    return tokens[begin : tokens.index("<|im_end|>", begin)]


class Sheet:
    """A figure of fixed width that is written from the top down; lengths in points."""

    def __init__(self, height: float):
        self.height = height
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72 * ZOOM)
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()

    def text(self, x: float, y: float, words: str, **style: Any) -> float:
        """Writes words with their baseline y below the top; returns the x at which they end."""
        style = {"fontsize": TEXT_SIZE, "color": BLACK} | style
        text = self.figure.text(x / WIDTH, 1 - y / self.height, words, **style)
        return x + text.get_window_extent(self._renderer).width / ZOOM

    def box(self, left: float, top: float, width: float, height: float, **style: Any) -> None:
        corner = (left / WIDTH, 1 - (top + height) / self.height)
        size = (width / WIDTH, height / self.height)
        self.figure.add_artist(patches.Rectangle(corner, *size, **{"linewidth": 0} | style))


def draw_heatmap(pairs: Sequence[Pair]) -> Figure:
    """Pairs with every token coloured by its reward mask; decisive tokens are underlined."""
    scale = make_scales(list(pairs))["u"]
    height = KEY + sum(_draw_pair(Sheet(1000), pair, scale, 0.0) for pair in pairs)
    sheet = Sheet(height)
    tokens = (token for pair in pairs for token in (*pair.chosen, *pair.rejected))
    _draw_key(sheet, scale, underlined=any(token.decisive for token in tokens))
    top = float(KEY)
    for pair in pairs:
        top += _draw_pair(sheet, pair, scale, top)
    return sheet.figure


def _draw_key(sheet: Sheet, scale: Scale, *, underlined: bool) -> None:
    start = f"{scale.start:.1f}" if scale.start else "0"
    x = sheet.text(MARGIN, 14, f"reward mask  {start}", color=INK) + 6
    steps = 40
    for n in range(steps):
        shade = scale.shade(scale.start + (scale.full - scale.start) * (n + 1) / steps)
        sheet.box(x + 3 * n, 4, 3, 12, facecolor=(*ABOVE, shade))
    x = sheet.text(x + 3 * steps + 6, 14, f"{scale.full:.1f}", color=INK) + 24
    if not underlined:
        return
    end = sheet.text(x, 14, "underlined", color=INK)
    sheet.box(x, 18, end - x, 1.6, facecolor=BLACK)
    sheet.text(end, 14, ": words that decide the preference", color=INK)


def _draw_pair(sheet: Sheet, pair: Pair, scale: Scale, top: float) -> float:
    """The height that it takes."""
    y = top + MARGIN + 12
    x = sheet.text(MARGIN, y, f"Pair {pair.index}", fontweight="bold", fontsize=12)
    facts = f"margin {pair.margin:.3f}    loss {pair.loss:.3f}    {len(pair.tokens)} tokens    "
    zeros = f"{100 * (zero_share(pair.tokens, REWARD_MASK) or 0.0):.0f} % zeros in the reward mask"
    sheet.text(x + 18, y, facts + zeros, color=INK)
    y += 10
    sheet.box(MARGIN, y, WIDTH - 2 * MARGIN, 24, facecolor="#f6f7f9")
    sheet.text(MARGIN + 8, y + 16, (pair.prompt or "").strip(), color=INK)
    y += 24 + LINE
    width = (WIDTH - 2 * MARGIN - GUTTER) / 2
    ends = []
    for n, (name, tokens) in enumerate((("Chosen", pair.chosen), ("Rejected", pair.rejected))):
        left = MARGIN + n * (width + GUTTER)
        sheet.text(left, y, name, fontweight="bold", fontsize=SMALL_SIZE)
        ends.append(_draw_tokens(sheet, tokens, scale, left, width, y + LINE))
    bottom = max(ends) + 14
    sheet.box(MARGIN, bottom, WIDTH - 2 * MARGIN, 0.8, facecolor=GRID)
    return bottom - top


def _draw_tokens(
    sheet: Sheet, tokens: Sequence[Token], scale: Scale, left: float, width: float, y: float
) -> float:
    """Text that flows within width; returns the y of its last line."""
    x = left
    for token in tokens:
        words = token.text.strip() or token.label
        space = SPACE if token.text.startswith(" ") and x > left else 0.0
        end = sheet.text(x + space, y, words)
        if end > left + width:
            sheet.figure.texts.pop()
            x, space = left, 0.0
            y += LINE
            end = sheet.text(x, y, words)
        shade = scale.shade(token.values["u"])
        sheet.box(x + space - 1, y - 11, end - x - space + 2, 15, facecolor=(*ABOVE, shade), zorder=-1)
        if token.decisive:
            sheet.box(x + space - 1, y + 4, end - x - space + 2, 1.6, facecolor=BLACK)
        x = end
    return y


# ---------------------------------------------------------------- the command


OF_BENCHMARK = {"long_run": draw_long_run, "scaling": draw_scaling}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """As in the report, with a grid in both directions."""
    with drawing_style(), rc_context({"axes.grid.axis": "both", "text.hinting": "none"}):
        yield


@style()
def draw_result(path: Path, output: Path) -> None:
    """NAME-DEVICE.svg of a result file NAME-DEVICE.json."""
    draw = OF_BENCHMARK[path.stem.split("-")[0]]
    save(draw(json.loads(path.read_text(encoding="utf-8"))), output / f"{path.stem}.svg")


@style()
def draw_frontier_and_heatmaps(output: Path) -> None:
    sentiment = json.loads((RESULTS / "sentiment-cpu.json").read_text(encoding="utf-8"))
    save(draw_frontier(sentiment["points"]), output / "sentiment-frontier.png")
    for name in SHOWN_PAIRS:
        path = pairs_path(name)
        with path.open(encoding="utf-8") as lines:
            pairs = [parse_pair(json.loads(line), where=path.name) for line in lines]
        save(draw_heatmap(pairs), output / f"heatmap-{name}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--of", choices=SHOWN_PAIRS, default="quickstart", help="whose pairs these are")
    options = parser.parse_args(arguments)
    if options.pairs is None and options.of != "quickstart":
        parser.error("--of says whose --pairs these are; without --pairs all pictures are drawn")
    if options.pairs is not None:
        take_pairs(options.pairs, options.of)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in OF_BENCHMARK:
        for path in sorted(RESULTS.glob(f"{name}-*.json")):
            draw_result(path, options.output)
    draw_frontier_and_heatmaps(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
