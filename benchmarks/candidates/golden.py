"""The stage score on the official checkpoints of tests/golden, in float32, against the official numbers.

python golden.py OUTPUT

Answers each line of stdin with the largest absolute difference by family and figure.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from serve import serve

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from helpers import golden_vectors as golden
from helpers.program import lines_of, run

SHARING, BETA, L1 = "common", 0.8, 0.001
COLUMNS = {  # of scores.jsonl: (name in the vectors, sign)
    "logp": ("base/policy_{}_logps", 1),
    "ref_logp": ("base/reference_{}_logps", 1),
    "kl": ("base/{}_token_kl", -1),
    "reward_mask": (f"sparse/{SHARING}/mask/rw_{{}}", 1),
    "kl_mask": (f"sparse/{SHARING}/mask/kl_{{}}", 1),
}


def scored(family: str, directory: Path) -> list[dict[str, Any]]:
    """scores.jsonl of the program on the official checkpoint."""
    masks = golden.part(family, f"sparse/{SHARING}/mask_weights/")
    policy = golden.write_checkpoint(family, "policy", directory / "policy", masks)
    reference = golden.write_checkpoint(family, "reference", directory / "reference")
    names, pairs = ("prompt_ids", "chosen_ids", "rejected_ids"), directory / "pairs.jsonl"
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in golden.rows(family)]
    pairs.write_text("".join(lines))
    mask = {"kind": "learned", "sharing": SHARING}
    output = run(
        directory,
        stages=["score"],
        policy={"config": None, "path": str(policy)},
        reference={"path": str(reference)},
        tokenizer=None,
        sft=None,
        po=None,
        compute={"dtype": "float32", "compile_cache": str(directory / "compiled")},
        data={"sft": [], "train": [], "eval": [{"path": str(pairs)}]},
        objective={"kind": "sparsepo", "beta": BETA, "l1_reward": L1, "l1_kl": L1, "mask": mask},
    )
    return lines_of(output / "scores.jsonl")


def differences(family: str, directory: Path) -> dict[str, float]:
    vectors, rows = golden.vectors(family), scored(family, directory)
    expected = vectors[f"sparse/{SHARING}/beta{BETA}/l1_{L1}/loss_per_pair"]
    largest = {"loss": float(np.abs([row["loss"] for row in rows] - expected).max())}
    for column, (name, sign) in COLUMNS.items():
        official = (sign * vectors[name.format(side)] for side in ("chosen", "rejected"))
        largest[column] = max(
            float(np.abs(row[side][column] - values).max())
            for row, responses in zip(rows, golden.on_responses(family, *official), strict=True)
            for side, values in zip(("chosen", "rejected"), responses, strict=True)
        )
    return largest


def main() -> None:
    output = Path(sys.argv[1])
    serve(lambda: {family: differences(family, output / family) for family in golden.FAMILIES})


if __name__ == "__main__":
    main()
