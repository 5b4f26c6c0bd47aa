"""The tensors of a checkpoint directory, and where it comes from."""

import os
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.models import mxfp4
from sparsepo_jax.models.directory import config_dtype, read_config
from sparsepo_jax.models.safetensors_file import BYTES, TensorFile
from sparsepo_jax.models.weight_files import weight_files

# Buffers that old checkpoints carry and that our forward pass does not need: causal masks, rotary tables.
BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    ".rotary_emb.original_inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
)
_MASKS = ("common_mask.", "rw_mask.", "kl_mask.")
_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names


def is_mask_tensor(name: str) -> bool:
    """Whether a tensor belongs to the mask nets, which the official code stores beside the weights.

    Args:
        name: the tensor's name in the checkpoint.
    """
    return name.startswith(_MASKS)


class SafeTensors:
    """The tensors of a checkpoint directory, in one file or several, as transformers would choose them.

    Pickles are never opened. Two tensors that hold one in MXFP4 appear as that one.
    """

    def __init__(self, directory: Path):
        """Reads names, shapes and types, and no numbers.

        Args:
            directory: of a Hugging Face checkpoint.

        Raises:
            UserError: there are no safetensors, or one name is in two files.
        """
        self._directory = directory
        files = [TensorFile(path) for path in weight_files(directory)]
        counts = Counter(name for file in files for name in file.shapes)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise UserError(
                f"{directory}: {', '.join(twice[:3])} in two files: keep the files that the index names"
            )
        self._file_of = {name: file for file in files for name in file.shapes}
        self._shapes = self._unpacked_shapes()

    def _unpacked_shapes(self) -> dict[str, tuple[int, ...]]:
        stored = {name: file.shapes[name] for name, file in self._file_of.items()}
        shapes = dict(stored)
        for blocks in [name for name in stored if name.endswith(mxfp4.BLOCKS)]:
            name = blocks.removesuffix(mxfp4.BLOCKS)
            scales = name + mxfp4.SCALES
            are_bytes = all(self._file_of[x].types[x] == BYTES for x in (blocks, scales) if x in stored)
            shape = mxfp4.unpacked_shape(stored[blocks], stored.get(scales, ())) if are_bytes else None
            if shape is not None and name not in stored:
                shapes[name] = shape
                del shapes[blocks], shapes[scales]
        return shapes

    def dtype(self) -> str:
        """The type of the weights: float32, float16 or bfloat16.

        Where they differ it is what transformers would make of them: the type that config.json names, else
            that of the first tensor. Buffers and mask nets do not count; float64 counts as float32.
        """
        counted = (name for name in self._file_of if not name.endswith(BUFFERS) and not is_mask_tensor(name))
        named = (self._file_of[name].types[name] for name in counted)
        types = [_DTYPES[name] for name in named if name in _DTYPES]
        if not types:
            return "float32"
        if len(set(types)) == 1:
            return types[0]
        return config_dtype(read_config(self._directory)) or types[0]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return dict(self._shapes)

    def files(self) -> dict[str, Path]:
        """The file of each tensor by name, as it is stored."""
        return {name: file.path for name, file in self._file_of.items()}

    def is_mlx(self) -> bool:
        """Whether MLX wrote the files."""
        return any(file.is_mlx for file in self._file_of.values())

    def check_types(self, names: Container[str]) -> None:
        """Checks that `read` gives the tensors of these names.

        Args:
            names: of tensors.

        Raises:
            UserError: one of them holds no floating-point numbers.
        """
        for name, file in self._file_of.items():
            if name in names:
                file.check_type(name)

    def read(self, names: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array of the type in which it is stored) of those of the names that there are.

        They come in the order of the files; what is stored in MXFP4 last, and in bfloat16.

        Args:
            names: of tensors.

        Raises:
            UserError: a tensor holds no floating-point numbers.
        """
        for name in self._shapes:
            if name in names:
                file = self._file_of.get(name)
                tensor = self._unpacked(name) if file is None else file.read(name)
                yield name, tensor
                del tensor

    def _unpacked(self, name: str) -> np.ndarray:
        """A tensor [E, in, out] that is stored in MXFP4, read expert by expert."""
        blocks, scales = self._file_of[name + mxfp4.BLOCKS], self._file_of[name + mxfp4.SCALES]
        tensor = np.empty(self._shapes[name], mxfp4.DTYPE)
        for expert in range(len(tensor)):
            tensor[expert] = mxfp4.unpacked(
                blocks.read_bytes(name + mxfp4.BLOCKS, expert),
                scales.read_bytes(name + mxfp4.SCALES, expert),
                f"{scales.path}: {name}",
            )
        return tensor


def find_checkpoint(path: str) -> Path:
    """The local directory of a checkpoint, fetched from the Hub if need be.

    Args:
        path: a directory, or a Hub id like owner/name.

    Raises:
        UserError: there is no such directory, and it cannot be had from the Hub.
    """
    if Path(path).is_dir():
        return Path(path)
    if is_mistyped_path(path):
        raise UserError(
            f"{path}: no such directory (expected a Hugging Face checkpoint directory or a Hub id like "
            "owner/name)"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.model.*", "*.tiktoken", "*.jinja"]
    try:
        # Some repositories hold the weights a second time, in the form of their makers.
        other_forms = ["original/*", "consolidated*"]
        return Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=other_forms))
    except Exception as error:  # the Hub's client raises a dozen types; all mean that it cannot be had
        raise UserError(
            f"{path}: neither a local directory nor reachable on the Hugging Face Hub "
            f"({type(error).__name__}): a directory is looked for from {os.getcwd()}; a gated or private "
            "model needs HF_TOKEN (hf auth login); without a network give the directory of a download"
        ) from error
