"""What is left of a run's training in an export of 16 bits: rounded to the nearest numbers, and at random?

    python benchmarks/export_rounding.py RUN [--pairs 32] [--output runs/export_rounding]

RUN: the output_dir of a run in float32 that has finished `po` on a checkpoint in bfloat16, such as that of
configs/smollm2.yaml. Its policy is exported in float32, cast to bfloat16 in both ways, and each of the three
scores the run's held-out pairs against the checkpoint. Kept in results/export_rounding-DEVICE.json.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file
from task_rows import Row, read
from which_tokens import execute
from work import save_result

from sparsepo_jax.config.load import load_config
from sparsepo_jax.models.narrowing import narrow_at_random

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WEIGHTS = "model.safetensors"
ROUNDED = {
    "to the nearest": lambda name, x: x.astype(BFLOAT16),
    "at random": lambda name, x: narrow_at_random(x, BFLOAT16, name),
}


def changed(start: Path, exported: Path, trained: Path) -> Row:
    """share_kept: of the change of training, projected on it. share_moved: weights that differ."""
    before, after, whole = (load_file(path / WEIGHTS) for path in (start, exported, trained))
    kept = total = moved = 0.0
    for name, x in whole.items():
        old, new = (tensors[name].astype(np.float32) for tensors in (before, after))
        kept += float(np.sum((new - old) * (x - old), dtype=np.float64))
        total += float(np.sum((x - old) ** 2, dtype=np.float64))
        moved += float(np.sum(new != old))
    return {"share_kept": kept / total, "share_moved": moved / sum(x.size for x in whole.values())}


def scored(config: Path, policy: Path, start: str, pairs: int, output: Path) -> Row:
    """Means over held-out pairs of what a policy does to them, unmasked."""
    settings = {
        "stages": "[score]",
        "policy.path": str(policy),
        "reference.path": start,
        "evaluation.max_pairs": str(pairs),
        "logging.trackers": "[]",
    }
    execute(output, settings, config)
    margins, kls = [], []
    for row in read(output / "scores.jsonl"):
        sides = [row[side] for side in ("chosen", "rejected")]
        better, worse = (sum(side["logp"]) - sum(side["ref_logp"]) for side in sides)
        margins.append(better - worse)
        kls.append(sum(sum(side["kl"]) for side in sides) / 2)
    return {
        "kl": float(np.mean(kls)),
        "margin": float(np.mean(margins)),
        "accuracy": float(np.mean(np.array(margins) > 0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("runs/export_rounding"))
    options = parser.parse_args()
    file = options.run / "config.yaml"
    config, _ = load_config(file, [])
    start, trained = config.policy.path, options.output / "float32"
    command = [sys.executable, "-m", "sparsepo_jax.main", "--config", str(file), "stages=[export]"]
    subprocess.run([*command, "export.dtype=float32", f"export.path={trained}"], check=True)
    exports = {"float32": trained}
    for name, rounded in ROUNDED.items():
        exports[name] = options.output / name.replace(" ", "_")
        shutil.copytree(trained, exports[name], dirs_exist_ok=True)
        cast = {tensor: rounded(tensor, x) for tensor, x in load_file(trained / WEIGHTS).items()}
        save_file(cast, exports[name] / WEIGHTS, {"format": "pt"})
    rows = []
    for name, path in exports.items():
        row = {"weights": name} | changed(Path(start), path, trained)
        row |= scored(file, path, start, options.pairs, options.output / f"{path.name}_scores")
        rows.append(row)
        print(row, flush=True)
    training = {"steps": config.po.steps, "rate": config.po.optimizer.learning_rate, "pairs": options.pairs}
    print(save_result("export_rounding", training | {"rows": rows}))


if __name__ == "__main__":
    main()
