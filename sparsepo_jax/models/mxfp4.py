"""Weights in MXFP4, as gpt-oss is published: 4 bits a number, and an exponent for each 32. No JAX here.

    weight = FP4[bits] 2 ** (scale - 127)        bits of the byte's lower half first

A tensor NAME [E, in, out] is stored as NAME_blocks [E, out, in / 32, 16], two numbers a byte, and NAME_scales
[E, out, in / 32]. Its numbers are numbers of bfloat16, so nothing is rounded.

References:
    Open Compute Project, OCP Microscaling Formats (MX) Specification, version 1.0, 2023, section 5.
"""

import functools

import ml_dtypes
import numpy as np

from sparsepo_jax.core.errors import UserError

BLOCKS, SCALES = "_blocks", "_scales"
DTYPE = np.dtype(ml_dtypes.bfloat16)
PACKED = 16  # bytes that share a scale
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_NOT_A_NUMBER = 255  # the scale that stands for none


def unpacked_shape(blocks: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape [E, in, out] of the tensor that two others hold; None if they do not belong together.

    Args:
        blocks: shape of NAME_blocks.
        scales: shape of NAME_scales.
    """
    if len(blocks) != 4 or blocks[3] != PACKED or scales != blocks[:3]:
        return None
    return blocks[0], 2 * PACKED * blocks[2], blocks[1]


def unpacked(blocks: np.ndarray, scales: np.ndarray, where: str) -> np.ndarray:
    """The numbers of one expert [in, out], bfloat16.

    Args:
        blocks: bytes [out, in / 32, 16].
        scales: bytes [out, in / 32].
        where: file and tensor, for messages.

    Raises:
        UserError: a scale stands for no number.
    """
    if scales.size and scales.max() == _NOT_A_NUMBER:
        raise UserError(f"{where}{SCALES}: a scale of 255 stands for no number; download the file again")
    places = (scales.astype(np.uint16) << 8)[..., None] | blocks
    return np.take(_pairs(), places).view(DTYPE).reshape(len(blocks), -1).T


@functools.cache
def _pairs() -> np.ndarray:
    """Two bfloat16 numbers, side by side in 32 bits, for each place: 256 scale + byte."""
    table = np.asarray(_FP4, np.float32)
    byte = np.arange(256)
    pair = np.stack([table[byte & 15], table[byte >> 4]], axis=-1)
    with np.errstate(over="ignore"):
        numbers = np.ldexp(pair[None], (byte - 127)[:, None, None])
    return np.ascontiguousarray(numbers.astype(DTYPE)).view(np.uint32).reshape(-1)
