"""Moments, weights and reference in fewer bytes: do they train as float32 does, and what do they save?

    python benchmarks/memory.py [--steps 200] [--out runs/memory]
    python benchmarks/memory.py --model MODEL --file PAIRS.json.gz [--steps 24] [--out runs/memory-smollm2]

The first form trains the policy of configs/quickstart.yaml (after its stage sft, in float32, once) in each
variant: the same start, batches and draws, float32 activations unless the variant says otherwise. The
second trains a Hugging Face model on pairs of instruction, chosen and rejected (see smollm2.py) by DPO.
Prints the mean loss of each tenth of the steps, and figures of the evaluation after the last step; keeps them
in results/memory-DEVICE.json or results/memory-smollm2-DEVICE.json, with the bytes that each variant takes of
a device for two larger models.
A finished variant under --out is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from smollm2 import MOST_EVALUATED, message_pairs, write_lines
from work import save_result

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.run.memory import held_sizes
from sparsepo_jax.run.model_facts import read_policy

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "configs/quickstart.yaml"
VARIANTS = {
    "float32": {},
    "moments": {"po.optimizer.moments": "bfloat16"},
    "weights": {"compute.weights": "bfloat16"},
    "both": {"po.optimizer.moments": "bfloat16", "compute.weights": "bfloat16"},
    "computed in bfloat16": {"compute.dtype": "bfloat16"},
    "computed in bfloat16, weights": {"compute.dtype": "bfloat16", "compute.weights": "bfloat16"},
    "rmsprop": {"po.optimizer": {"kind": "rmsprop"}},
    "rmsprop, both": {
        "po.optimizer": {"kind": "rmsprop", "moments": "bfloat16"},
        "compute.weights": "bfloat16",
    },
    "lion": {"po.optimizer": {"kind": "lion"}},
    "lion, both": {"po.optimizer": {"kind": "lion", "moments": "bfloat16"}, "compute.weights": "bfloat16"},
    "muon": {"po.optimizer": {"kind": "muon"}},
    "muon, both": {"po.optimizer": {"kind": "muon", "moments": "bfloat16"}, "compute.weights": "bfloat16"},
}
# A step by signs is as large in every weight as Adam's largest.
RATE_OF = {"lion": 0.3}
MODELS = {
    "Pythia-1.4B": {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    },
    "Llama-3-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}


def program(settings: dict[str, Any], config: Path | None = None) -> None:
    """Runs the program in a process of its own; its output goes to the terminal if it fails."""
    command = [sys.executable, "-m", "sparsepo_jax.main", "--config", str(config or QUICKSTART)]
    overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def rate_of(variant: str, rate: float) -> float:
    return rate * RATE_OF.get(variant.split(",")[0], 1.0)


def with_rate(variant: str, rate: float) -> dict[str, Any]:
    """The variant's settings, with the learning rate of its optimizer."""
    settings = dict(VARIANTS[variant])
    optimizer = {"kind": "adamw", **settings.pop("po.optimizer", {}), "learning_rate": rate_of(variant, rate)}
    if "po.optimizer.moments" in settings:
        optimizer["moments"] = settings.pop("po.optimizer.moments")
    return settings | {"po.optimizer": optimizer}


def train(variant: str, start: dict[str, Any], config: Path | None, directory: Path, rate: float) -> dict:
    """The losses of all steps, and the metrics of the evaluation after the last one."""
    kept = directory / f"{variant.replace(', ', '-')}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    output = directory / "runs" / variant.replace(", ", "-")
    began_s = time.perf_counter()
    program(start | with_rate(variant, rate) | {"output_dir": str(output)}, config)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["stage"] == "po" and "loss" in row]
    evaluated = next(row for row in reversed(rows) if "eval/loss" in row)
    names = ("eval/loss", "eval/accuracy_unmasked", "eval/kl/chosen")
    result = {
        "losses": losses,
        "evaluation": {name.removeprefix("eval/"): evaluated[name] for name in names if name in evaluated},
        "seconds": time.perf_counter() - began_s,
    }
    kept.write_text(json.dumps(result) + "\n")
    return result


def quickstart_start(directory: Path, steps: int) -> tuple[dict[str, Any], None, float]:
    """(settings of all variants, config, learning rate): po alone, from an sft that is exported once."""
    model = directory / "sft/export"
    if not (model / "config.json").exists():
        program({"stages": ["sft", "export"], "output_dir": str(directory / "sft")})
    settings = {
        "stages": ["po"],
        "policy": {"path": str(model)},
        "po.steps": steps,
        "po.eval_every_steps": steps,
        "logging.every_steps": 1,
    }
    return settings, None, 1e-4


def model_start(directory: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Path, float]:
    """The same for a model of Hugging Face on given pairs."""
    pairs = message_pairs(options.file)
    files = {"train": [pair for n, pair in enumerate(pairs) if n % 10], "eval": pairs[::10][:MOST_EVALUATED]}
    data = {name: [{"path": write_lines(directory / f"{name}.jsonl", rows)}] for name, rows in files.items()}
    config = directory / "config.yaml"
    content = {
        "stages": ["po"],
        "output_dir": "given by each variant",
        "policy": {"path": options.model},
        "data": {**data, "max_length": 256},
        "objective": {"kind": "dpo", "beta": 0.1},
        "po": {"steps": options.steps, "batch_size": 8, "eval_every_steps": options.steps},
        "evaluation": {"batch_size": 8},
        "logging": {"every_steps": 1, "trackers": []},
    }
    config.write_text(json.dumps(content))  # JSON is YAML
    return {}, config, 1e-5


def sizes_of(variant: str) -> dict[str, dict[str, str]]:
    """{model: bytes of weights, gradient, optimizer, reference} of a DPO step that computes in bfloat16."""
    sizes = {}
    for name, shape in MODELS.items():
        settings = dict(VARIANTS[variant])
        optimizer = {"kind": "adamw", **settings.get("po.optimizer", {})}
        if "po.optimizer.moments" in settings:
            optimizer["moments"] = settings["po.optimizer.moments"]
        config = Config.model_validate(
            {
                "stages": ["po"],
                "output_dir": "unused",
                "policy": {"config": shape},
                "data": {"train": [{"kind": "reviews"}]},
                "objective": {"kind": "dpo"},
                "po": {"optimizer": optimizer},
                "compute": {"dtype": "bfloat16", "weights": settings.get("compute.weights", "float32")},
            }
        )
        policy = read_policy(config, [])
        sizes[name] = held_sizes(config, config.po, policy, 0, policy)
    return sizes


def tenths(losses: list[float]) -> list[float]:
    size = max(1, len(losses) // 10)
    return [statistics.fmean(losses[n : n + size]) for n in range(0, size * 10, size) if losses[n : n + size]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--file")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    if (options.model is None) != (options.file is None):
        parser.error("--model and --file go together")
    options.steps = options.steps or (24 if options.model else 200)
    name = "memory-smollm2" if options.model else "memory"
    directory = (options.out or Path("runs") / name).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if options.model:
        start, config, rate = model_start(directory, options)
    else:
        start, config, rate = quickstart_start(directory, options.steps)
    results: dict[str, Any] = {}
    for variant in options.variants:
        found = train(variant, start, config, directory, rate)
        results[variant] = {
            "tenths": tenths(found["losses"]),
            **found,
            "rate": rate_of(variant, rate),
            "sizes": sizes_of(variant),
        }
        losses = " ".join(f"{loss:.4f}" for loss in results[variant]["tenths"])
        figures = ", ".join(f"{key} {value:.4f}" for key, value in found["evaluation"].items())
        print(f"{variant:<14}{losses}  {figures}  ({found['seconds']:.0f} s)", flush=True)
    result = {"steps": options.steps, "results": results}
    print(save_result(name, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
