"""Our SparsePO step with logits made again in the backward pass (the default) against logits that are held.

    python benchmarks/head_recompute.py [PROMPT+RESPONSE ...] [--vocab V] [--rounds N]

Default: 64+192 256+64, 16384, 5 rounds. Held: compute.head.keep_logits. Four pairs a step, GPT-2 shape of 6
layers and width 384, float32 on CPU, random tokens; the two take turns. Memory: XLA's own count of
temporaries. By hand: the head's six products become four, and 8 bytes a response token and entry of the
vocabulary are held (policy and reference).
"""

import statistics
import sys

from shapes import gpt2
from work import PAIRS, OurStep, in_turn, random_batch, save_result, spread, step_parser


def main() -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--vocab", type=int, default=16384)
    options = parser.parse_args()
    rows = []
    for lengths in options.lengths:
        shape, batch = gpt2(options.vocab, sum(lengths)), random_batch(PAIRS, *lengths, options.vocab)
        steps = {
            name: OurStep(shape, batch, head={"keep_logits": keep})
            for name, keep in (("made again", False), ("held", True))
        }
        times_s = in_turn(steps, options.rounds)
        print(
            f"{lengths} tokens, vocabulary {options.vocab}; the held logits are "
            f"{8 * PAIRS * 2 * lengths.response * options.vocab / 1e6:.0f} MB"
        )
        for name, step in steps.items():
            rows.append(
                {
                    "lengths": str(lengths),
                    "vocab": options.vocab,
                    "logits": name,
                    "median_s": statistics.median(times_s[name]),
                    "times_s": times_s[name],
                    "temporary_mb": step.temporary_bytes / 1e6,
                }
            )
            print(
                f"  {name:<11}{spread(times_s[name])} a step, {step.temporary_bytes / 1e6:6.0f} MB of "
                "temporaries",
                flush=True,
            )
        again, held = rows[-2:]
        print(
            f"  held over made again: time {held['median_s'] / again['median_s']:.2f}, memory "
            f"{held['temporary_mb'] / again['temporary_mb']:.2f}",
            flush=True,
        )
    print(save_result("head_recompute", {"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
