"""Made the .npz files here, a selection of vectors that the official SparsePO code computed.

    python tests/golden/select_vectors.py DIRECTORY_OF_ALL_VECTORS

The official code is the folder SparsePO of huawei-noah/HEBO. The files hold numbers only: inputs, weights of
two tiny models and mask nets, and what the official classes gave for them on CPU in float32.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

KEEP = (
    "batch/concatenated_",
    "base/chosen_",
    "base/rejected_",
    "base/policy_chosen",
    "base/policy_rejected",
    "base/reference_chosen",
    "base/reference_rejected",
    "sparse/common/mask",
    "sparse/independent/mask",
    "mask_models/",
    "mapo/fp32/mask/",
    "mapo/fp32/group/",
    "mapo/fp32/beta0.8/loss",
    "mapo_uniform/beta0.8/loss",
    "adamw/common/beta0.1/l1_0.0/loss_before_step",
)
GRADIENTS = (
    "sparse/common/beta0.8/l1_0.001/grad/",
    "sparse/independent/beta0.1/l1_0.001/grad/",
    "mapo/fp32/beta0.8/grad/",
)


def wanted(name: str) -> bool:
    if name.startswith("mask_models/simple_last/beta"):
        return False
    loss = name.startswith("sparse/") and name.endswith(("/loss", "/loss_per_pair", "/grad_norm"))
    mask_activations = name.startswith("mask_activations/") and "/fp32/" in name
    return loss or mask_activations or name.startswith(KEEP) or name.startswith(GRADIENTS)


def main(source: Path) -> None:
    for family in ("gpt2", "gpt_neox"):
        vectors = np.load(source / f"{family}.npz")
        kept = {name: vectors[name] for name in vectors.files if wanted(name)}
        for who in ("policy", "reference"):
            tensors = load_file(source / family / who / "model.safetensors")
            kept |= {f"weights/{who}/{name}": tensor for name, tensor in tensors.items()}
            kept[f"config/{who}"] = np.frombuffer(
                (source / family / who / "config.json").read_bytes(), np.uint8
            )
        np.savez_compressed(Path(__file__).parent / f"{family}.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
