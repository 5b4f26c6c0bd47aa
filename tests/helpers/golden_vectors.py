"""The official vectors (golden/select_vectors.py) as our types: 3 pairs, 2 layers of width 32, vocabulary
97."""

import functools
import json
from pathlib import Path

import numpy as np

from helpers.tiny import packed
from sparsepo_jax.core.types import PairBatch

FAMILIES = ("gpt2", "gpt_neox")
PAIRS = 3


@functools.cache
def vectors(family: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "golden" / f"{family}.npz") as file:
        return {name: file[name] for name in file.files}


def part(family: str, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value for name, value in vectors(family).items() if name.startswith(prefix)
    }


def rows(family: str) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt ids, chosen ids, rejected ids) of each pair, without padding."""
    v = vectors(family)
    ids, labels = v["batch/concatenated_input_ids"], v["batch/concatenated_labels"]
    pairs = []
    for n in range(PAIRS):
        start = int((labels[n] != -100).argmax())
        responses = [ids[n + p * PAIRS][labels[n + p * PAIRS] != -100].tolist() for p in range(2)]
        pairs.append((ids[n, :start].tolist(), *responses))
    return pairs


def on_responses(family: str, chosen: np.ndarray, rejected: np.ndarray) -> list[list[np.ndarray]]:
    """Official arrays [3, 20] -> by pair and response, the values on response tokens."""
    v = vectors(family)
    valid = v["base/chosen_loss_mask"].astype(bool), v["base/rejected_loss_mask"].astype(bool)
    return [[x[n][valid[p][n]] for p, x in enumerate((chosen, rejected))] for n in range(PAIRS)]


def pair_batch(family: str, *, shared: bool = True) -> PairBatch:
    """The batch in our layout, all pairs in one row of tokens, with room to spare."""
    return packed(rows(family), spare=3, shared=shared)


def write_checkpoint(
    family: str, who: str, directory: Path, masks: dict[str, np.ndarray] | None = None
) -> Path:
    """A Hugging Face directory of the policy or reference, with masks beside the model's tensors, as the
    official code stores them."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(json.loads(vectors(family)[f"config/{who}"].tobytes())))
    save_file(part(family, f"weights/{who}/") | (masks or {}), directory / "model.safetensors")
    return directory
