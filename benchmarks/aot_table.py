"""What training steps take of devices that are not here: TPU pods, and GPUs with the settings that suit them.

    python benchmarks/aot_table.py [MODEL ...]            TPUs
    python benchmarks/aot_table.py --gpus [MODEL ...]     GPUs (--on h100x8 ...: these alone)

Needs the extra [tpu] or [aot-gpu] and no device; default: all models. All are of prompts and responses of
1,024 tokens each, and every row is kept as it is made; models that are not named keep the rows they have.

TPUs, into results/aot.json: GPT-J-6B (LoRA, and all weights), Llama-3-8B and Llama-3-70B on more and more
chips, one to two minutes a row, 12 rows. Each is `python -m sparsepo_jax.main --aot TOPOLOGY --json` of a
config in configs/: the same step, four pairs a shard at a time on the first size and one on the last. Policy,
reference and optimizer are float32 and cut over all chips (LoRA: a base in bfloat16, and adapters). "Over
1/N" is bytes times chips, over those of the first size: 1 if bytes fall as 1/N.

GPUs, into results/aot_gpu.json: five models on five kinds of machines, 128 pairs a step, each with the
settings that `--aot NAME --fit` finds, but that only the first of them that fits is compiled: a minute or
more for each, with --count none and a few seconds.
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

from sparsepo_jax.aot.absent import absent_devices
from sparsepo_jax.aot.compile import read_task
from sparsepo_jax.aot.describe_fit import fit_as_json
from sparsepo_jax.aot.fit import search
from sparsepo_jax.aot.topology import find_topology
from sparsepo_jax.config.load import load_config

REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
KEPT, KEPT_GPU = RESULTS / "aot.json", RESULTS / "aot_gpu.json"
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


PAIRS = 128  # a step
GPUS = ("rtx4090", "a100-80gx8", "h100x8", "2x h100x8", "h200x8")
GPU_SETTINGS = [
    "stages=[po]",
    "data.max_length=2048",
    "data.max_prompt_length=1024",
    f"po.batch_size={PAIRS}",
]
SMOLLM2 = (
    "{model_type: llama, vocab_size: 49152, max_position_embeddings: 8192, hidden_size: 576, "
    "intermediate_size: 1536, num_hidden_layers: 30, num_attention_heads: 9, num_key_value_heads: 3, "
    "rms_norm_eps: 1e-5, rope_theta: 100000, tie_word_embeddings: true}"
)
QWEN3 = (
    "{model_type: qwen3, vocab_size: 151936, max_position_embeddings: 40960, hidden_size: 2048, "
    "intermediate_size: 6144, num_hidden_layers: 28, num_attention_heads: 16, num_key_value_heads: 8, "
    "head_dim: 128, rms_norm_eps: 1e-6, rope_theta: 1000000, tie_word_embeddings: true}"
)
LORA = "po.lora={base: bfloat16}"
QWEN25 = (
    "{model_type: qwen2, vocab_size: 151936, max_position_embeddings: 32768, hidden_size: 1536, "
    "intermediate_size: 8960, num_hidden_layers: 28, num_attention_heads: 12, num_key_value_heads: 2, "
    "rms_norm_eps: 1e-6, rope_theta: 1000000, tie_word_embeddings: true}"
)
ULTRAFEEDBACK = "recipes/ultrafeedback.yaml"
GPU_MODELS = {  # name: (config, settings, devices)
    "SmolLM2-135M": (
        ULTRAFEEDBACK,
        ["policy.path=HuggingFaceTB/SmolLM2-135M-Instruct", f"policy.config={SMOLLM2}"],
        GPUS,
    ),
    "Qwen2.5-1.5B": (
        ULTRAFEEDBACK,
        ["policy.path=Qwen/Qwen2.5-1.5B", f"policy.config={QWEN25}"],
        ("rtx4090",),
    ),
    "Qwen2.5-1.5B, DPO, reference cached": (
        ULTRAFEEDBACK,
        [
            "policy.path=Qwen/Qwen2.5-1.5B",
            f"policy.config={QWEN25}",
            "objective={kind: dpo, beta: 0.1}",
            "reference.cached=true",
        ],
        ("rtx4090",),
    ),
    "Qwen3-1.7B": (ULTRAFEEDBACK, ["policy.path=Qwen/Qwen3-1.7B", f"policy.config={QWEN3}"], GPUS),
    "GPT-J-6B, LoRA": ("recipes/tldr.yaml", [], GPUS),
    "Llama-3-8B, LoRA": ("pods/llama3_8b.yaml", [LORA], GPUS),
    "Llama-3-8B": ("pods/llama3_8b.yaml", [], ("h200", *GPUS)),
    "Llama-3-70B": ("pods/llama3_70b.yaml", [], GPUS),
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
        [*command, *settings],
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
    names = sorted({*MODELS, *GPU_MODELS})
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(map(repr, names)))
    parser.add_argument("--gpus", action="store_true", help="GPUs in place of TPUs")
    parser.add_argument("--on", nargs="+", metavar="DEVICES", help="with --gpus: these devices alone")
    parser.add_argument("--count", action="store_true", help="with --gpus: count by hand, compile nothing")
    options = parser.parse_args()
    known = GPU_MODELS if options.gpus else MODELS
    if unknown := set(options.models) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    models = options.models or list(known)
    print(make_gpu_table(models, options.on, options.count) if options.gpus else make_tpu_table(models))
    return 0


def about(*packages: str) -> dict[str, Any]:
    """When and with what a table was made."""
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in packages},
    }


def make_tpu_table(models: list[str]) -> Path:
    """Compiles for TPUs and prints a row each; returns the file that keeps them."""
    kept = json.loads(KEPT.read_text())["rows"] if KEPT.exists() else {}
    print(
        "| model | topology | chips | mesh | arguments, GiB a chip | temporaries | needed | fits | "
        "arguments over 1/N | needed over 1/N |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model, (config, settings, topologies) in MODELS.items():
        if model not in models:
            for figures in kept.get(model, []):
                print(row(model, figures, kept[model][0]))
            continue
        kept[model] = []
        for topology in topologies:
            kept[model].append(compiled(config, [*SETTINGS, *settings], topology))
            print(row(model, kept[model][-1], kept[model][0]), flush=True)
            KEPT.write_text(json.dumps(about("jax", "jaxlib", "libtpu") | {"rows": kept}, indent=1) + "\n")
    return KEPT


def make_gpu_table(models: list[str], only: list[str] | None, count: bool) -> Path:
    """Searches settings for GPUs and prints a row each; returns the file that keeps them.

    only: devices to search for; None: all of a model. count: compile nothing, and keep what was compiled.
    """
    kept = json.loads(KEPT_GPU.read_text())["rows"] if KEPT_GPU.exists() else {}
    versions = ("jax", "jaxlib", "jax-cuda12-plugin", "nvidia-cudnn-cu12")
    for model in models:
        config, settings, machines = GPU_MODELS[model]
        rows = kept.setdefault(model, {})
        for name in (name for name in machines if only is None or name in only):
            if count and name in rows and rows[name]["best"] is not None:
                continue
            rows[name] = found_settings(config, settings, name, 0 if count else 1)
            print(gpu_row(model, rows[name]), flush=True)
            ordered = {name: kept[name] for name in GPU_MODELS if name in kept}
            KEPT_GPU.write_text(
                json.dumps(about(*versions) | {"pairs": PAIRS, "rows": ordered}, indent=1) + "\n"
            )
    return KEPT_GPU


def found_settings(config: str, settings: list[str], name: str, enough: int) -> dict[str, Any]:
    """What --aot --fit --json prints, if only so many settings that fit are compiled."""
    loaded, _ = load_config(str(REPOSITORY / "configs" / config), [*GPU_SETTINGS, *settings])
    topology = find_topology(name)
    result = search(read_task(loaded, topology), absent_devices(topology), enough=enough)
    return {"name": name, **fit_as_json(result, topology)}


def gpu_row(model: str, found: dict[str, Any]) -> str:
    """A line about the best settings of a search."""
    best, where = found["best"] or found["by_hand"], "" if found["best"] else ", counted by hand"
    if found["compiled"] and not found["best"]:
        least = min(one["needed_bytes"] for one in found["compiled"])
        return f"{model} on {found['name']}: does not fit, needs {least / 1e9:,.1f} GB a card as compiled"
    if best is None:
        least = f"{found['least_bytes'] / 1e9:,.0f} GB a card"
        return f"{model} on {found['name']}: does not fit, needs about {least} or more"
    settings = (found["overrides"] or best["overrides"]).items()
    return (
        f"{model} on {found['name']}: {best['needed_bytes'] / 1e9:,.1f} GB a card, at least "
        f"{best['lower_bound_s']:.3f} s a step{where}; "
        + " ".join(f"{name}={value}" for name, value in settings)
    )


if __name__ == "__main__":
    sys.exit(main())
