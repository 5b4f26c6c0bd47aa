"""One safetensors file, read into NumPy; errors are the user's to mend."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsepo_jax.core.errors import UserError


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file by name.

    Args:
        path: of the file.

    Raises:
        UserError: it is no safetensors file.
    """
    with open_safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in tensor_names(file)}


def read_float32(path: Path, file: Any, name: str) -> np.ndarray:
    """A tensor of an opened safetensors file, float32.

    Args:
        path: the file's, for messages.
        file: what `open_safetensors` gave.
        name: the tensor's.

    Raises:
        UserError: it holds no floating-point numbers.
    """
    try:
        tensor = file.get_tensor(name)
    except Exception as error:  # types that NumPy does not have raise several kinds
        raise UserError(f"{path}: {name} cannot be read ({error}); save it as float32 or bfloat16") from None
    if tensor.dtype.kind in "biu":
        raise UserError(
            f"{path}: {name} holds {tensor.dtype}, not floating-point numbers (a quantised checkpoint?); "
            "save it as float32 or bfloat16"
        )
    return tensor.astype(np.float32, copy=False)


def open_safetensors(path: Path) -> Any:
    """A safetensors file, opened for NumPy: a context manager.

    Args:
        path: of the file.

    Raises:
        UserError: it is no safetensors file.
    """
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
    from safetensors import safe_open

    try:
        return safe_open(path, framework="numpy")
    except Exception as error:  # safetensors raises its own type, which it does not export
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def tensor_names(file: Any) -> list[str]:
    """Names of the tensors in an opened safetensors file.

    Args:
        file: what `open_safetensors` gave.
    """
    return list(file.keys())


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
