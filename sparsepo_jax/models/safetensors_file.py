"""One safetensors file, read into NumPy; errors are the user's to mend."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.placeholders import placeholder_problem

BYTES = "U8"  # safetensors' name of the type of bytes
_FLOATS = ("F64", "F32", "F16", "BF16")


class TensorFile:
    """The tensors of a safetensors file, read one at a time.

    Their bytes are read and not mapped: what has been read of a mapped file counts as the process's memory.

    Attributes:
        path: of the file.
        shapes: of the tensors, by name.
        types: safetensors' names of their types, by name.
        is_mlx: whether MLX wrote it, whose shapes of some tensors are its own.
    """

    def __init__(self, path: Path):
        """Reads names, shapes and types, and no numbers.

        Args:
            path: of the file.

        Raises:
            UserError: it is no safetensors file.
        """
        from safetensors import safe_open

        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        try:
            with safe_open(path, framework="numpy") as file:  # checks that the file holds what it says
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    tensor = file.get_slice(name)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.types[name] = tensor.get_dtype()
        except Exception as error:  # safetensors raises its own type, which it does not export
            reason = f"not a readable safetensors file ({error}); download or copy it again"
            raise UserError(f"{path}: {placeholder_problem(path) or reason}") from error
        data_start, fields = _header(path)
        self.is_mlx = (fields.get("__metadata__") or {}).get("format") == "mlx"
        self._begins = {name: data_start + fields[name]["data_offsets"][0] for name in self.shapes}

    def read(self, name: str) -> np.ndarray:
        """A tensor of floating-point numbers, in the type in which it is stored; float64 as float32.

        Args:
            name: the tensor's.

        Raises:
            UserError: it holds other numbers.
        """
        self.check_type(name)
        tensor = self._read(name, 0, self.shapes[name])
        return tensor.astype(np.float32) if self.types[name] == "F64" else tensor

    def check_type(self, name: str) -> None:
        """Checks that a tensor is one of floating-point numbers that `read` gives.

        Args:
            name: the tensor's.

        Raises:
            UserError: it is not.
        """
        if self.types[name] not in _FLOATS:
            raise UserError(
                f"{self.path}: {name} holds {self.types[name]}, not floating-point numbers (a quantised "
                "checkpoint?); save it as float32 or bfloat16"
            )

    def read_bytes(self, name: str, row: int) -> np.ndarray:
        """Entry `row` of a tensor of bytes, along its first axis.

        Args:
            name: the tensor's.
            row: the number of the entry.
        """
        shape = self.shapes[name][1:]
        return self._read(name, row * math.prod(shape), shape)

    def _read(self, name: str, begin: int, shape: tuple[int, ...]) -> np.ndarray:
        """So many numbers of a tensor from its number `begin` on."""
        dtype = _dtype(self.types[name])
        numbers = np.fromfile(
            self.path, dtype, math.prod(shape), offset=self._begins[name] + begin * dtype.itemsize
        )
        if numbers.size != math.prod(shape):
            raise UserError(f"{self.path}: ends within {name}; download or copy it again")
        return numbers.reshape(shape)


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, BYTES: np.uint8}
    return np.dtype(ml_dtypes.bfloat16) if name == "BF16" else np.dtype(types[name])


def copy_tensors(sources: Mapping[str, Path], target: Path) -> int:
    """Writes tensors of other safetensors files into a new one: byte by byte, whatever their types.

    Args:
        sources: the file of each tensor, by its name.
        target: the file to write.

    Returns:
        The bytes of the tensors.
    """
    headers = {path: _header(path) for path in sorted(set(sources.values()))}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for name, path in sources.items():
        begin, end = headers[path][1][name]["data_offsets"]
        entries[name] = {**headers[path][1][name], "data_offsets": [total, total + end - begin]}
        total += end - begin
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # the data begins at a multiple of 8
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for name, path in sources.items():
            data_start, fields = headers[path]
            begin, end = fields[name]["data_offsets"]
            with path.open("rb") as file:
                file.seek(data_start + begin)
                _copy_bytes(file, out, end - begin)
    return total


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """(where the data begins, fields of each tensor by name) of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return 8 + length, json.loads(file.read(length))


def _copy_bytes(file: BinaryIO, out: BinaryIO, size: int) -> None:
    while size:
        piece = file.read(min(size, 2**24))
        out.write(piece)
        size -= len(piece)
