"""How near the learned mask comes to the ceiling: the quickstart over several seeds.

    python benchmarks/quickstart_seeds.py [SEED ...]          default: 0 1 2 3 4; about a minute and a half each on 2 cores

Prints a row a seed and their mean, and exits with 1 if the mean reward-mask AUROC is more than 0.03 below the ceiling, the ceiling is under
0.9, or position alone is above 0.75.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
COLUMNS = (
    "auroc_reward",
    "auroc_ceiling",
    "auroc_position",
    "auroc_untrained",
    "sparsity_start",
    "sparsity_end",
    "accuracy",
    "accuracy_unmasked",
    "kl",
    "preferred_before",
    "preferred_after",
    "generated_kl",
    "wall_s",
)


def run(seed: int, directory: Path) -> dict[str, float]:
    """The figures of one seed: its model, its batches and its reviews are other ones."""
    output = directory / str(seed)
    overrides = [
        f"output_dir={output}",
        f"seed={seed}",
        f"data.sft.0.seed={3 * seed + 1}",
        f"data.train.0.seed={3 * seed + 2}",
        f"data.eval.0.seed={3 * seed + 3}",
    ]
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "sparsepo_jax.main", "--config", str(CONFIG), *overrides]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"seed {seed}: {done.stderr.splitlines()[-1]}")
    summary = json.loads((output / "summary.json").read_text())
    preferred = {f"preferred_{when}": summary[when]["generated_preferred"] for when in ("before", "after")}
    return {**summary["mask"], **summary["after"], **preferred, "wall_s": time.perf_counter() - began_s}


def main() -> int:
    seeds = [int(seed) for seed in sys.argv[1:]] or list(range(5))
    print("seed  " + "  ".join(f"{name:>17}" for name in COLUMNS))
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in seeds:
            rows.append(run(seed, Path(directory)))
            print(f"{seed:>4}  " + "  ".join(f"{rows[-1][name]:>17.3f}" for name in COLUMNS), flush=True)
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in COLUMNS}
    print("mean  " + "  ".join(f"{mean[name]:>17.3f}" for name in COLUMNS))
    reached = (
        mean["auroc_ceiling"] - mean["auroc_reward"] <= 0.03
        and mean["auroc_ceiling"] >= 0.9
        and mean["auroc_position"] <= 0.75
    )
    print(
        f"{mean['auroc_reward'] / mean['auroc_ceiling']:.3f} of the ceiling: {'reached' if reached else 'MISSED'}"
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
