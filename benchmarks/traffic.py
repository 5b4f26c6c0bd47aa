"""What kernels move through memory in a step, of GPUs that are not here.

    python benchmarks/traffic.py [--card h200] [--models pythia-1.4b qwen3-1.7b] [--pairs 8]

Compiles SparsePO's step as it comes, on pairs of 512 + 256 tokens, with what is recomputed in the backward
pass (compute.remat) and with layers in a loop or one after the other (compute.unroll; a run of 10,000 steps
chooses the latter). Fusions are all kernels that XLA makes itself: bytes read and written, caches not
considered. Needs the extra [aot-gpu] and no device; compiling takes minutes a row, as the result says. It is
kept in results/traffic-cpu.json, docs/results/speed.md shows it.
"""

import argparse
from importlib.metadata import version
from typing import Any

from run_step import run_config
from shapes import MODELS
from work import save_result

from sparsepo_jax.aot.compile import compile_step
from sparsepo_jax.aot.topology import find_topology

PROMPT, RESPONSE = 512, 256
NOWHERE = "nowhere"  # lengths are then those that data.max_length allows


def compiled_row(card: str, model: str, pairs: int, remat: str, unroll: bool) -> dict[str, Any]:
    """Bytes of a step: moved by kind of kernel, and needed for arguments and temporaries."""
    settings = {
        "stages": ["po"],
        "tokenizer": {"kind": "pretrained", "path": NOWHERE},
        "data": {
            "train": [{"kind": "file", "path": f"{NOWHERE}.jsonl"}],
            "max_length": PROMPT + RESPONSE,
            "max_prompt_length": PROMPT,
        },
        "po": {"batch_size": pairs, "steps": 1},
        "compute": {"remat": remat, "unroll": unroll},
    }
    compiled = compile_step(run_config(MODELS[model], "sparsepo", settings), find_topology(card))
    footprint = compiled.footprint
    assert footprint.traffic is not None  # it is known of GPUs
    return {
        "model": model,
        "remat": remat,
        "unroll": unroll,
        "traffic_bytes": {kind: moved.bytes for kind, moved in footprint.traffic.items()},
        "argument_bytes": footprint.argument_bytes,
        "temporary_bytes": footprint.temp_bytes,
        "compile_s": compiled.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", default="h200")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["pythia-1.4b", "qwen3-1.7b"])
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        for unroll in (True, False):
            for remat in ("nothing", "norms"):
                row = compiled_row(options.card, model, options.pairs, remat, unroll)
                rows.append(row)
                fusions, temporaries = row["traffic_bytes"]["fusion"], row["temporary_bytes"]
                print(
                    f"{model}, remat {remat}, unroll {unroll}: fusions move {fusions / 1e9:.1f} GB, "
                    f"temporaries {temporaries / 1e9:.1f} GB",
                    flush=True,
                )
    lengths = {"prompt_tokens": PROMPT, "response_tokens": RESPONSE}
    about = {"card": options.card, "pairs": options.pairs, "jax": version("jax")}
    print(save_result("traffic", about | lengths | {"rows": rows}))


if __name__ == "__main__":
    main()
