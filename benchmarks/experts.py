"""A SparsePO step of a mixture of experts, by three ways to multiply tokens with their experts.

    python benchmarks/experts.py [PROMPT+RESPONSE ...] [--experts E] [--rounds N]

Default: 64+192 256+64, 16 experts of which a token is sent to 2, 5 rounds. blocks: sorted by expert, one
block of rows after the other (the default on CPU). dense: every expert on every token. ragged:
jax.lax.ragged_dot, which XLA makes dense on CPU. Four pairs a step, 4 layers of width 256, experts of width
256, float32 on CPU, random tokens; the three take turns. Memory: XLA's own count of temporaries.
"""

import statistics
import sys

from work import PAIRS, OurStep, in_turn, random_batch, save_result, spread, step_parser

VOCAB = 4096


def shape_of(experts: int, positions: int) -> dict:
    """config.json of the policy."""
    return {
        "model_type": "qwen3_moe",
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
    }


def main() -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--experts", type=int, default=16)
    options = parser.parse_args()
    rows = []
    for lengths in options.lengths:
        shape, batch = shape_of(options.experts, sum(lengths)), random_batch(PAIRS, *lengths, VOCAB)
        steps = {name: OurStep(shape, batch, experts=name) for name in ("blocks", "dense", "ragged")}
        times_s = in_turn(steps, options.rounds)
        for name, step in steps.items():
            rows.append(
                {
                    "lengths": str(lengths),
                    "experts": options.experts,
                    "products": name,
                    "median_s": statistics.median(times_s[name]),
                    "times_s": times_s[name],
                    "temporary_mb": step.temporary_bytes / 1e6,
                }
            )
            print(
                f"{lengths} {name:<8}{spread(times_s[name])} a step, {step.temporary_bytes / 1e6:6.0f} MB of "
                "temporaries",
                flush=True,
            )
        blocks, dense, ragged = (row["median_s"] for row in rows[-3:])
        print(f"  over blocks: dense {dense / blocks:.2f}, ragged {ragged / blocks:.2f}", flush=True)
    print(save_result("experts", {"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
