"""Rotary position embedding (RoPE): pairs of dims are rotated by angles that grow with the position."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparsepo_jax.models.rotary_fields import RopeScaling, Rotation


def rotary_frequencies(rotation: Rotation) -> np.ndarray:
    """The angle per position of each rotated pair of dims: base ** (-2 i / dim), base 10,000 in the paper.

    Args:
        rotation: dims, base and scaling.

    Returns:
        Radians per position, float32 [dim / 2].

    References:
        Su et al., RoFormer, arXiv 2104.09864, 2021, section 3.2.2. Linear scaling and that of Llama 3 follow
        transformers' `modeling_rope_utils`.
    """
    frequency_X = rotation.base ** (-np.arange(0, rotation.dim, 2, dtype=np.float64) / rotation.dim)
    if rotation.scaling is not None:
        frequency_X = _stretched(frequency_X, rotation.scaling)
    return frequency_X.astype(np.float32)


def _stretched(frequency_X: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    if scaling.low is None or scaling.high is None or scaling.original_positions is None:
        return frequency_X / scaling.factor
    # Full turns over the positions of the first training: pairs with few turns are stretched, with many kept.
    turns_X = scaling.original_positions * frequency_X / (2 * np.pi)
    keep_X = np.clip((turns_X - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return keep_X * frequency_X + (1 - keep_X) * frequency_X / scaling.factor


def rotate(
    x_BSNH: Float[Array, "B S N H"], positions_BS: Int[Array, "B S"], frequency_X: Float[Array, " X"]
) -> Float[Array, "B S N H"]:
    """Rotates the first 2 X dims of each head; dim i is paired with dim i + X, as in GPT-NeoX.

    Args:
        x_BSNH: queries or keys.
        positions_BS: position of each token, from 0.
        frequency_X: radians per position of each pair (see `rotary_frequencies`); 2 X <= H.

    Returns:
        The rotated queries or keys, of the type of `x_BSNH`. Dims from 2 X on are unchanged.

    References:
        Su et al., RoFormer, arXiv 2104.09864, 2021, equation 34.
    """
    pairs = len(frequency_X)
    angle_BS1X = positions_BS[..., None, None].astype(jnp.float32) * frequency_X[None, None, None]
    cos_BS1X = jnp.cos(angle_BS1X).astype(x_BSNH.dtype)
    sin_BS1X = jnp.sin(angle_BS1X).astype(x_BSNH.dtype)
    first = x_BSNH[..., :pairs]
    second = x_BSNH[..., pairs : 2 * pairs]
    rest = x_BSNH[..., 2 * pairs :]
    rotated = [first * cos_BS1X - second * sin_BS1X, second * cos_BS1X + first * sin_BS1X, rest]
    return jnp.concatenate(rotated, axis=-1)
