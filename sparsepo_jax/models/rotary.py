"""Rotary position embedding (RoPE): pairs of dims are rotated by angles that grow with the position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparsepo_jax.models.decoder_spec import QueryGrowth
from sparsepo_jax.models.rope_scaling import Rotation, plain_frequencies


class LayerTurns(NamedTuple):
    """How a layer rotates queries and keys; or, stacked, how several kinds of layers do.

    Attributes:
        frequency_X: radians per position of each rotated pair of dims; zeros do not rotate.
        factor: of rotated dims (YaRN's and LongRoPE's attention factor); None: 1.
    """

    frequency_X: Float[Array, "*B X"]
    factor: Float[Array, "*B"] | float | None = None


def rotary_frequencies(rotation: Rotation) -> np.ndarray:
    """The angle per position of each rotated pair of dims.

    Args:
        rotation: dims, base and scaling.

    Returns:
        Radians per position, float32 [dim / 2].
    """
    if rotation.scaling is None:
        frequency_X = plain_frequencies(rotation.dim, rotation.base)
    else:
        frequency_X = rotation.scaling.frequencies(rotation.dim, rotation.base)
    return frequency_X.astype(np.float32)


def rotate(
    x_BSNH: Float[Array, "B S N H"], positions_BS: Int[Array, "B S"], turns: LayerTurns
) -> Float[Array, "B S N H"]:
    """Rotates the first 2 X dims of each head; dim i is paired with dim i + X, as in GPT-NeoX.

    Args:
        x_BSNH: queries or keys.
        positions_BS: position of each token, from 0.
        turns: of X pairs of dims, 2 X <= H.

    Returns:
        The rotated queries or keys, of the type of `x_BSNH`. Dims from 2 X on are unchanged.

    References:
        Su et al., RoFormer, arXiv 2104.09864, 2021, equation 34.
    """
    angle_BS1X = positions_BS[..., None, None].astype(jnp.float32) * turns.frequency_X[None, None, None]
    cos_BS1X, sin_BS1X = jnp.cos(angle_BS1X), jnp.sin(angle_BS1X)
    if turns.factor is not None:
        cos_BS1X, sin_BS1X = cos_BS1X * turns.factor, sin_BS1X * turns.factor
    cos_BS1X, sin_BS1X = cos_BS1X.astype(x_BSNH.dtype), sin_BS1X.astype(x_BSNH.dtype)
    return _turned(x_BSNH, cos_BS1X, sin_BS1X)


@jax.custom_vjp
def _turned(x_BSNH: Array, cos_BS1X: Array, sin_BS1X: Array) -> Array:
    """Turned by angles that no gradient reaches.

    Only the dims that turn are written, so that on a GPU the others are neither read nor copied. The gradient
    turns back, in the same way; derived, it would be a sum of two arrays of the size of x.
    """
    pairs = cos_BS1X.shape[-1]
    first, second = x_BSNH[..., :pairs], x_BSNH[..., pairs : 2 * pairs]
    turned = [first * cos_BS1X - second * sin_BS1X, second * cos_BS1X + first * sin_BS1X]
    return x_BSNH.at[..., : 2 * pairs].set(jnp.concatenate(turned, axis=-1))


def _forward(x_BSNH: Array, cos_BS1X: Array, sin_BS1X: Array) -> tuple[Array, tuple[Array, Array]]:
    return _turned(x_BSNH, cos_BS1X, sin_BS1X), (cos_BS1X, sin_BS1X)


def _backward(angles: tuple[Array, Array], d_BSNH: Array) -> tuple[Array, None, None]:
    cos_BS1X, sin_BS1X = angles
    return _turned(d_BSNH, cos_BS1X, -sin_BS1X), None, None


_turned.defvjp(_forward, _backward)


def grown(
    q_BSNH: Float[Array, "B S N H"], positions_BS: Int[Array, "B S"], growth: QueryGrowth
) -> Float[Array, "B S N H"]:
    """Queries times a factor that grows with their position.

    Args:
        q_BSNH: rotated queries.
        positions_BS: position of each token, from 0.
        growth: how the factor grows.
    """
    factor_BS = 1 + growth.beta * jnp.log1p((positions_BS // growth.positions).astype(jnp.float32))
    return q_BSNH * factor_BS[..., None, None].astype(q_BSNH.dtype)
