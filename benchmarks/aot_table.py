"""Bytes on each chip of TPU pods that are not here: GPT-J-6B (LoRA, and all weights), Llama-3-8B,
Llama-3-70B.

    python benchmarks/aot_table.py [MODEL ...]

Needs the extra [tpu], no TPU; one to two minutes a row, 12 rows; default: all models. Each row is `python -m
sparsepo_jax.main --aot TOPOLOGY --json` of a config in configs/: the same step on more and more chips, with
prompts and responses of 1,024 tokens each, four pairs a shard at a time on the first size and one on the
last. Policy, reference and optimizer are float32 and cut over all chips (LoRA: a base in bfloat16, and
adapters). "Over 1/N" is bytes times chips, over those of the first size: 1 if bytes fall as 1/N. Every row is
kept in results/aot.json as it is made; models that are not named keep the rows they have there.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
KEPT = Path(__file__).parent / "results" / "aot.json"
SETTINGS = [
    "stages=[po]",
    "data.max_length=2048",
    "data.max_prompt_length=1024",
    "compute.mesh.data=1",
    "compute.mesh.fsdp=null",
]
MODELS = {  # name: (config, settings, topologies)
    "GPT-J-6B, LoRA": (
        "recipes/tldr.yaml",
        ["po.batch_size=64", "po.accumulation=1"],
        ("v5e-16", "v5e-32", "v5e-64"),
    ),
    "GPT-J-6B": (
        "recipes/tldr.yaml",
        ["po.batch_size=64", "po.accumulation=1", "po.lora=null"],
        ("v5e-16", "v5e-32", "v5e-64"),
    ),
    "Llama-3-8B": ("pods/llama3_8b.yaml", [], ("v5e-32", "v5e-64", "v5e-128")),
    "Llama-3-70B": ("pods/llama3_70b.yaml", [], ("v5p-64", "v5p-128", "v5p-256")),
}


def compiled(config: str, settings: list[str], topology: str) -> dict[str, Any]:
    """The object that --aot --json prints. Ends this program if that one fails."""
    command = [
        sys.executable,
        "-m",
        "sparsepo_jax.main",
        "--config",
        str(REPOSITORY / "configs" / config),
        "--aot",
        topology,
        "--json",
    ]
    done = subprocess.run(
        [*command, *SETTINGS, *settings],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode not in (0, 3):
        sys.exit(f"{topology}: exit {done.returncode}\n{done.stderr}")
    return {"name": topology, **json.loads(done.stdout.strip().splitlines()[-1])}


def row(model: str, figures: dict[str, Any], first: dict[str, Any]) -> str:
    def gib(size: float | None) -> str:
        return "?" if size is None else f"{size / 2**30:.1f}"

    axes = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items() if size > 1)
    known = figures["needed_bytes"] is not None and first["needed_bytes"] is not None
    ratio = (
        f"{figures['needed_bytes'] * figures['chips'] / (first['needed_bytes'] * first['chips']):.2f}"
        if known
        else "?"
    )
    state = f"{figures['argument_bytes'] * figures['chips'] / (first['argument_bytes'] * first['chips']):.2f}"
    return (
        f"| {model} | {figures['name']} | {figures['chips']} | {axes} | {gib(figures['argument_bytes'])} | "
        f"{gib(figures['temp_bytes'])} | {gib(figures['needed_bytes'])} of "
        f"{gib(figures['hbm_bytes'])} | {'yes' if figures['fits'] else 'no'} | {state} | {ratio} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(map(repr, MODELS)))
    options = parser.parse_args()
    if unknown := set(options.models) - MODELS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")
    kept = json.loads(KEPT.read_text())["rows"] if KEPT.exists() else {}
    print(
        "| model | topology | chips | mesh | arguments, GiB a chip | temporaries | needed | fits | "
        "arguments over 1/N | needed over 1/N |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    about = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
    }
    for model, (config, settings, topologies) in MODELS.items():
        if options.models and model not in options.models:
            for figures in kept.get(model, []):
                print(row(model, figures, kept[model][0]))
            continue
        kept[model] = []
        for topology in topologies:
            kept[model].append(compiled(config, settings, topology))
            print(row(model, kept[model][-1], kept[model][0]), flush=True)
            KEPT.write_text(json.dumps(about | {"rows": kept}, indent=1) + "\n")
    print(KEPT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
