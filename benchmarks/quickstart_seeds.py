"""How close the learned mask comes to the ceiling: the quickstart over several seeds.

    python benchmarks/quickstart_seeds.py [SEED ...] [--out runs/quickstart_seeds]

Default: seeds 0 to 4, about a minute and a half each on 2 cores. A finished seed under --out is not run
again. Prints a row per seed and the means, and keeps them, with what the run of the first seed printed, in
results/quickstart_seeds-DEVICE.json. Exits with 1 if the mean AUROC of the reward mask is more than 0.03
below the ceiling, the ceiling is under 0.9, or position alone is above 0.75.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from which_tokens import of_seed
from work import save_result

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


def run(seed: int, directory: Path) -> dict[str, Any]:
    """The figures of one seed, with a model, batches and reviews of its own, and the last lines it
    printed."""
    output, kept = directory / str(seed), directory / f"{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    overrides = [f"output_dir={output}", *(f"{name}={value}" for name, value in of_seed(seed).items())]
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "sparsepo_jax.main", "--config", str(CONFIG), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"seed {seed}: {done.stderr.splitlines()[-1]}")
    wall_s = time.perf_counter() - began_s
    summary = json.loads((output / "summary.json").read_text())
    preferred = {f"preferred_{when}": summary[when]["generated_preferred"] for when in ("before", "after")}
    figures = {**summary["mask"], **summary["after"], **preferred, "wall_s": wall_s}
    printed = done.stdout.splitlines()
    first = max(number for number, line in enumerate(printed) if line.startswith(("Learnt", "Not learnt")))
    row = {"seed": seed} | {name: figures[name] for name in COLUMNS} | {"printed": printed[first:]}
    kept.write_text(json.dumps(row) + "\n")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_seeds"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("seed  " + "  ".join(f"{name:>17}" for name in COLUMNS))
    rows = []
    for seed in options.seeds:
        rows.append(run(seed, options.out))
        print(f"{seed:>4}  " + "  ".join(f"{rows[-1][name]:>17.3f}" for name in COLUMNS), flush=True)
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in COLUMNS}
    print("mean  " + "  ".join(f"{mean[name]:>17.3f}" for name in COLUMNS))
    reached = (
        mean["auroc_ceiling"] - mean["auroc_reward"] <= 0.03
        and mean["auroc_ceiling"] >= 0.9
        and mean["auroc_position"] <= 0.75
    )
    share = mean["auroc_reward"] / mean["auroc_ceiling"]
    print(f"{share:.3f} of the ceiling: {'reached' if reached else 'MISSED'}")
    print(save_result("quickstart_seeds", {"means": mean, "rows": rows}))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
