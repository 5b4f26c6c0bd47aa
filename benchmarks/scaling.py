"""Cost and temporary memory of our SparsePO step against length, vocabulary, batch and layers.

    python benchmarks/scaling.py [--rounds N]           default: 3 rounds

One of them is varied, the others stay at the base: 4 pairs, 64 prompt and 64 response tokens, vocabulary
16,384, GPT-2 shape of 4 layers and width 256; random tokens. The matrix rate is measured anew beside each
point. Prints a table; writes results/scaling-DEVICE.json, and .svg with the measured seconds and, below them,
floating point operations over the matrix rate.
"""

import argparse
import statistics
import sys
from typing import Any

import figures
from shapes import gpt2
from work import OurStep, in_turn, matrix_rate, random_batch, save_result, step_flop

WIDTH = 256
BASE = {"pairs": 4, "prompt": 64, "response": 64, "vocab": 16384, "layers": 4}
VARIED = {
    "response": (64, 128, 256, 512),
    "vocab": (4096, 16384, 65536, 262144),
    "pairs": (1, 2, 4, 8),
    "layers": (2, 4, 8),
}


def measure(
    rounds: int, *, pairs: int, prompt: int, response: int, vocab: int, layers: int
) -> dict[str, Any]:
    step = OurStep(
        gpt2(vocab, prompt + response, width=WIDTH, layers=layers),
        random_batch(pairs, prompt, response, vocab),
    )
    times_s = in_turn({"step": step}, rounds)["step"]
    rate = matrix_rate()
    flop = step_flop(step.spec, pairs, prompt, response)
    # The gradient of the head (here the embedding too) is float32 [V, D] whatever is done about logits, since
    # the optimizer needs all of it. What is left of the temporary memory shows whether anything else grows
    # with V.
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    columns = ("seconds (min to max)", "of matrix rate", "temporary MB", "without the head's gradient")
    print(" " * 20, *columns, sep="   ")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIED}
    for name, values in VARIED.items():
        for value in values:
            point = BASE | {name: value}
            row = point | measure(options.rounds, **point)
            rows[name].append(row)
            print(
                f"{name:<9}{value:>8,}  {row['median_s']:7.3f} ({row['min_s']:.3f} to {row['max_s']:.3f}) "
                f"{row['share_of_matrix_rate']:11.2f} {row['temporary_mb']:14.0f} "
                f"{row['temporary_mb_without_head']:14.0f}",
                flush=True,
            )
    path = save_result("scaling", {"base": BASE | {"width": WIDTH}, "rows": rows})
    print(path)
    figures.draw_result(path, path.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
