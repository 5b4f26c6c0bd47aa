"""The table of what a token mask means in each objective, in docs/concepts/masks.md.

    python docs/weights.py             write it
    python docs/weights.py --check     only say whether it is as it should be; 1 if not

A test runs the second.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import models

from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.config.schema.weighing import Weighs

PAGE = Path(__file__).parent / "concepts" / "masks.md"
TERMS = {"log-ratio": "r_t", "log-prob": "log π_t"}
SUMS = {"sum": "Σ m^u {0}", "mean": "Σ m^u {0} / Σ \\|m^u\\|", "token": "each m^u {0} by itself"}


def weights_table() -> str:
    rows = ["| objective | reward | KL term | besides |", "|---|---|---|---|"]
    for kind, section in members(Objective).items():
        link, weighs = f"[`{kind}`](../objectives/{kind}.md)", section.weighs
        if isinstance(weighs, property):  # of a sum, known once its parts are
            rows.append(f"| {link} | as each part | as each part | one mask for all parts |")
            continue
        if not isinstance(weighs, Weighs):
            rows.append(f"| {link} | no mask: {weighs} | | |")
            continue
        reward = SUMS[weighs.over].format(TERMS[weighs.term])
        rows.append(f"| {link} | {reward} | {'m^d k_t' if weighs.kl else '-'} | {weighs.note} |")
    return "\n".join(rows)


BLOCKS = {"weights": weights_table}

if __name__ == "__main__":
    sys.exit(models.main(PAGE, BLOCKS))
