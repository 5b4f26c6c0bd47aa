"""Which files of a checkpoint directory hold the weights: those that transformers would take. No JAX here.

model.safetensors; else the files that model.safetensors.index.json names; no others. config.json may name
another file or index (transformers_weights).
"""

from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.directory import CONFIG, INDEX, SINGLE, read_json_object

_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Weights that transformers does not take either -> what to do. The first pattern that fits counts.
_OTHERS = {
    "*.incomplete": "a download that has not ended: download it again",
    "consolidated*": "the form of the model's makers: take the checkpoint that transformers reads",
    "*-of-*.safetensors": f"whose index is missing: download {INDEX}",
    "*.safetensors": f"which transformers does not take by this name either: rename it to {SINGLE}, or set "
    "transformers_weights in config.json to its name",
    "*.gguf": "the form of llama.cpp: take the checkpoint that it was made from",
    "zero_to_fp32.py": "of DeepSpeed: join its parts with "
    "`python zero_to_fp32.py . . --safe_serialization` there",
    "pytorch_model_fsdp_*": "the parts of FSDP: join them with `accelerate merge-weights`",
    "pytorch_model*.bin": "a pickle, which is not opened: take the checkpoint with safetensors",
    "*.pth": "a pickle, which is not opened: take the checkpoint with safetensors",
    "*.msgpack": "weights for Flax: take those with safetensors",
    "*.h5": "weights for TensorFlow: take those with safetensors",
}


class NoWeights(UserError):
    """A directory without weights of any form: they may not have been fetched yet."""


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights: those that transformers would take.

    Args:
        directory: of a checkpoint.

    Raises:
        NoWeights: there are none.
        UserError: there are others only, or some are missing.
    """
    config = read_json_object(directory / CONFIG) if (directory / CONFIG).exists() else {}
    chosen = config.get("transformers_weights")
    if chosen is not None:
        return _chosen_files(directory, chosen)
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    expected = f"{directory}: expected {SINGLE} or {INDEX}, found"
    if (problem := _problem_of_others(directory)) is not None:
        raise UserError(f"{expected} {problem}")
    raise NoWeights(f"{expected} neither")


def _chosen_files(directory: Path, name: Any) -> list[Path]:
    """The files behind the file or index that config.json names."""
    fits = isinstance(name, str) and name.endswith((".safetensors", ".safetensors.index.json"))
    if not fits or Path(name).name != name:
        raise UserError(
            f"{directory}: config.json: transformers_weights: expected a safetensors file or index of the "
            f"same directory, got {name!s:.60}"
        )
    if not (directory / name).is_file():
        raise UserError(
            f"{directory}: {name}, which config.json names (transformers_weights), is missing: "
            "download or copy it"
        )
    return _shards(directory / name) if name.endswith(".json") else [directory / name]


def _shards(index: Path) -> list[Path]:
    """The files that an index names, beside it. Others there are left over from another checkpoint."""
    try:
        names = set(read_json_object(index)["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{index}: expected a JSON object with weight_map, tensor -> file; download or copy it again"
        ) from None
    for name in sorted(map(str, names)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: expected safetensors files of the same directory, got {name!r:.80}")
    for name in sorted(names):
        if not (index.parent / name).exists():
            raise UserError(f"{index.parent}: {name}, named by the index, is missing: download or copy it")
    return [index.parent / name for name in sorted(names)]


def _problem_of_others(directory: Path) -> str | None:
    """What weights there are that transformers does not take, or we do not open, and what to do."""
    for name in (SINGLE, INDEX):
        if (directory / name).is_symlink():
            target = (directory / name).readlink()
            return f"{name}, a link to {target}, which is not there: download it again"
    pickle = next((name for name in _PICKLED if (directory / name).is_file()), None)
    if pickle is not None:
        code = (
            "from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained('{directory}', dtype='auto').save_pretrained('{directory}')"
        )
        return (
            f"{pickle}, a pickle, which may run code and is not opened; "
            f'convert it once, where torch is: python -c "{code}"'
        )
    for pattern, remedy in _OTHERS.items():
        if (file := min(directory.glob(pattern), default=None)) is not None:
            return f"{file.name}, {remedy}"
    return None
