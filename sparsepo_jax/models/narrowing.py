"""Weights in fewer digits for a file, rounded at random so that what training has changed is not lost.

Most checkpoints lie in 16 bits, and fine-tuning changes a weight by less than half of its last digit there:
rounded to the nearest number, nearly all weights would be those of the start again. So a weight is rounded up
with the probability of its distance from the number below, as in train/rounding: on average it is exact.
Numbers of the narrow type stay as they are.
"""

import zlib

import numpy as np

BLOCK = 2**22  # numbers that are rounded at a time: what is made on the way takes some 20 bytes each


def narrow_at_random(tensor: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The tensor in a narrower type: each number one of its two neighbours there, and itself on average.

    Args:
        tensor: float32.
        dtype: float16 or bfloat16. What is beyond its numbers becomes infinite.
        name: of the tensor; tensors of other names draw other numbers, and the same tensor the same ones.

    References:
        Gupta et al., Deep Learning with Limited Numerical Precision, arXiv 1502.02551, 2015.
    """
    draws = np.random.default_rng(zlib.crc32(name.encode()))
    narrow = np.empty(tensor.shape, dtype)
    wide_N, narrow_N = np.ascontiguousarray(tensor, np.float32).reshape(-1), narrow.reshape(-1)
    for begin in range(0, wide_N.size, BLOCK):
        block = slice(begin, begin + BLOCK)
        narrow_N[block] = _narrow_block(wide_N[block], dtype, draws)
    return narrow


def _narrow_block(x_N: np.ndarray, dtype: np.dtype, draws: np.random.Generator) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # of what is infinite, and stays so
        nearest_N = x_N.astype(dtype)
        away_N = x_N - nearest_N.astype(np.float32)
        other_N = np.nextafter(nearest_N, np.where(away_N > 0, np.inf, -np.inf).astype(dtype))
        share_N = away_N / (other_N.astype(np.float32) - nearest_N.astype(np.float32))
    return np.where(draws.random(x_N.size, np.float32) < share_N, other_N, nearest_N)
