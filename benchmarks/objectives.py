"""Our SparsePO step against our own TDPO, DPO and SFT steps: seconds and temporary memory.

    python benchmarks/objectives.py [PROMPT+RESPONSE ...] [--vocab V] [--rounds N]

Default: 64+192 256+64, 16384, 5 rounds.

Four pairs a step (SFT: four single responses), GPT-2 shape of 6 layers and width 384, float32 on CPU, random
tokens; one process, in which the objectives take turns. Ratios are of medians.
"""

import statistics
import sys

from shapes import gpt2
from work import PAIRS, OurStep, in_turn, random_batch, save_result, spread, step_parser

KINDS = ("sparsepo", "tdpo1", "dpo", "sft")


def main() -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--vocab", type=int, default=16384)
    options = parser.parse_args()
    rows = []
    for lengths in options.lengths:
        shape, steps = gpt2(options.vocab, sum(lengths)), {}
        for kind in KINDS:
            batch = random_batch(PAIRS, *lengths, options.vocab, responses=1 if kind == "sft" else 2)
            steps[kind] = OurStep(shape, batch, kind)
        times_s = in_turn(steps, options.rounds)
        medians_s = {kind: statistics.median(times) for kind, times in times_s.items()}
        print(f"{lengths} tokens, vocabulary {options.vocab}")
        for kind, step in steps.items():
            rows.append(
                {
                    "lengths": str(lengths),
                    "vocab": options.vocab,
                    "kind": kind,
                    "median_s": medians_s[kind],
                    "min_s": min(times_s[kind]),
                    "max_s": max(times_s[kind]),
                    "temporary_mb": step.temporary_bytes / 1e6,
                    "sparsepo_over_it": medians_s["sparsepo"] / medians_s[kind],
                }
            )
            print(f"  {kind:<10}{spread(times_s[kind])} {step.temporary_bytes / 1e6:7.0f} MB temporary")
        print(
            f"  SparsePO over TDPO: {medians_s['sparsepo'] / medians_s['tdpo1']:.3f}, over DPO: "
            f"{medians_s['sparsepo'] / medians_s['dpo']:.3f}",
            flush=True,
        )
    print(save_result("objectives", {"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
