"""Cost and temporary memory of our SparsePO step against length, vocabulary, batch and layers.

    python benchmarks/scaling.py [--rounds N]                                                default: 3 rounds

One of them is varied at a time, the others stay at the base: 4 pairs, 64 prompt and 64 response tokens,
vocabulary 16,384, GPT-2 shape of 4 layers and width 256, random tokens. The matrix rate is measured anew
beside each point. Writes a table, and results/scaling-DEVICE.svg: what was measured, and below it the
floating point operations over that rate.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from math import log10
from typing import Any

import svg
from work import OurStep, gpt2, in_turn, matrix_rate, random_batch, save_result, step_flop

WIDTH = 256
BASE = {"pairs": 4, "prompt": 64, "response": 64, "vocab": 16384, "layers": 4}
VARIED = {
    "response": (64, 128, 256, 512),
    "vocab": (4096, 16384, 65536, 262144),
    "pairs": (1, 2, 4, 8),
    "layers": (2, 4, 8),
}
PANEL, GAP = 220, 60  # pixels


def measure(
    rounds: int, *, pairs: int, prompt: int, response: int, vocab: int, layers: int
) -> dict[str, Any]:
    step = OurStep(
        gpt2(vocab, prompt + response, width=WIDTH, layers=layers),
        random_batch(pairs, prompt, response, vocab),
    )
    times_s, rate, flop = (
        in_turn({"step": step}, rounds)["step"],
        matrix_rate(),
        step_flop(step.spec, pairs, prompt, response),
    )
    # The gradient of the head (here the embedding too) is float32 [V, D] whatever is done about logits: the
    # optimizer reads it whole. What is left of the temporary memory shows whether anything else grows with
    # the vocabulary.
    head_mb = 4 * vocab * WIDTH / 1e6
    return {
        "median_s": statistics.median(times_s),
        "min_s": min(times_s),
        "max_s": max(times_s),
        "floor_s": flop / rate,
        "share_of_matrix_rate": flop / rate / statistics.median(times_s),
        "temporary_mb": step.temporary_bytes / 1e6,
        "temporary_mb_without_head": step.temporary_bytes / 1e6 - head_mb,
    }


def draw(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A log-log panel for each factor, seconds on one scale: measured (solid, with points) and the floor
    (dashed)."""
    values = [
        row[name] for of_factor in rows.values() for row in of_factor for name in ("median_s", "floor_s")
    ]
    low, high = log10(min(values)) - 0.1, log10(max(values)) + 0.1
    y = lambda seconds: GAP / 2 + PANEL * (high - log10(seconds)) / (high - low)  # noqa: E731
    ticks: Sequence[float] = [
        step * 10.0**power
        for power in range(-5, 5)
        for step in (1, 3)
        if low < log10(step * 10.0**power) < high
    ]
    parts = []
    for number, (name, of_factor) in enumerate(rows.items()):
        left, first, last = (
            GAP + number * (PANEL + GAP),
            log10(of_factor[0][name]),
            log10(of_factor[-1][name]),
        )
        x = lambda value: left + 15 + (PANEL - 30) * (log10(value) - first) / (last - first)  # noqa: B023, E731
        parts += [svg.frame(left, GAP / 2, PANEL, PANEL)]
        parts += [
            svg.line([(left, y(tick)), (left + PANEL, y(tick))], 'stroke="#ddd"')
            + svg.text(left - 5, y(tick) + 4, f"{tick:g}", "end")
            for tick in ticks
        ]
        parts += [
            svg.line(
                [(x(row[name]), y(row["floor_s"])) for row in of_factor],
                'stroke="#888" stroke-dasharray="5 3"',
            ),
            svg.line(
                [(x(row[name]), y(row["median_s"])) for row in of_factor], 'stroke="#c22" stroke-width="1.5"'
            ),
        ]
        for row in of_factor:
            parts += [f'<circle cx="{x(row[name]):.1f}" cy="{y(row["median_s"]):.1f}" r="3.5" fill="#c22"/>']
            parts += [
                svg.line([(x(row[name]), y(row["min_s"])), (x(row[name]), y(row["max_s"]))], 'stroke="#c22"')
            ]
            parts += [svg.text(x(row[name]), GAP / 2 + PANEL + 15, f"{row[name]:,}")]
        parts += [
            svg.text(
                left + PANEL / 2, GAP / 2 + PANEL + 32, "response tokens" if name == "response" else name
            )
        ]
    parts += [svg.text(GAP, 18, "seconds a step; dashed: operations / matrix rate", "start")]
    return svg.page(GAP + len(rows) * (PANEL + GAP), PANEL + 2 * GAP, parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(
        "                     seconds (min to max)    of matrix rate   temporary MB   without the head's "
        "gradient"
    )
    rows = {name: [] for name in VARIED}
    for name, values in VARIED.items():
        for value in values:
            point = BASE | {name: value}
            row = point | measure(options.rounds, **point)
            rows[name].append(row)
            print(
                f"{name:<9}{value:>8,}  {row['median_s']:7.3f} ({row['min_s']:.3f} to {row['max_s']:.3f}) "
                f"{row['share_of_matrix_rate']:11.2f} "
                f"{row['temporary_mb']:14.0f} {row['temporary_mb_without_head']:14.0f}",
                flush=True,
            )
    path = save_result("scaling", {"base": BASE | {"width": WIDTH}, "rows": rows})
    path.with_suffix(".svg").write_text(draw(rows))
    print(path, path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
