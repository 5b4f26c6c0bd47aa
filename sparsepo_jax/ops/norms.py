"""Layer norm and RMS norm, computed in float32, with written gradients.

The backward pass reads the input, which the residual stream holds anyway, and one or two numbers a token.
Derived by JAX it would also read centred and scaled inputs, kept in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Saved = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*B D"], scale_D: Float[Array, " D"], bias_D: Float[Array, " D"], epsilon: float
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, of the type of x.

    The variance is the mean of squared distances to the mean: E[x^2] - E[x]^2 would lose digits that parity
    with transformers needs.

    Args:
        x: inputs; mean and variance are taken over the last axis.
        scale_D: factors.
        bias_D: what is added at the end.
        epsilon: > 0.

    References:
        Ba et al., Layer normalization, arXiv 1607.06450, 2016.
    """
    return _layer_forward(x, scale_D, bias_D, epsilon)[0]


def _layer_forward(x: Array, scale_D: Array, bias_D: Array, epsilon: float) -> tuple[Array, Saved]:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(x32 - mean).mean(axis=-1, keepdims=True) + epsilon)
    scale = _over_tokens(scale_D, x)
    out = (x32 - mean) * (inverse * scale) + _over_tokens(bias_D, x)
    return out.astype(x.dtype), (x, scale_D, mean, inverse)


@jax.named_scope("norm_gradient")
def _layer_backward(epsilon: float, saved: Saved, d_out: Array) -> tuple[Array, Array, Array]:
    x, scale_D, mean, inverse = saved
    normed, d_out32 = (x.astype(jnp.float32) - mean) * inverse, d_out.astype(jnp.float32)
    d_normed = d_out32 * _over_tokens(scale_D, x)
    along = (d_normed * normed).mean(axis=-1, keepdims=True)
    d_x = inverse * (d_normed - d_normed.mean(axis=-1, keepdims=True) - normed * along)
    x32, d_out32 = _read_again(x, d_out)
    d_scale_D, d_bias_D = _sum_of_tokens(d_out32 * (x32 - mean) * inverse), _sum_of_tokens(d_out32)
    return d_x.astype(x.dtype), d_scale_D.astype(scale_D.dtype), d_bias_D.astype(scale_D.dtype)


layer_norm.defvjp(_layer_forward, _layer_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: Float[Array, "*B D"], scale_D: Float[Array, " D"], epsilon: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean square + epsilon) * scale, of the type of x.

    Args:
        x: inputs; the mean square is taken over the last axis.
        scale_D: factors.
        epsilon: > 0.

    References:
        Zhang and Sennrich, Root mean square layer normalization, arXiv 1910.07467, 2019.
    """
    return _rms_forward(x, scale_D, epsilon)[0]


def _rms_forward(x: Array, scale_D: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + epsilon)
    out = x32 * (inverse * _over_tokens(scale_D, x))
    return out.astype(x.dtype), (x, scale_D, inverse)


@jax.named_scope("norm_gradient")
def _rms_backward(epsilon: float, saved: tuple[Array, Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, scale_D, inverse = saved
    normed = x.astype(jnp.float32) * inverse
    d_normed = d_out.astype(jnp.float32) * _over_tokens(scale_D, x)
    d_x = inverse * (d_normed - normed * (d_normed * normed).mean(axis=-1, keepdims=True))
    x32, d_out32 = _read_again(x, d_out)
    return d_x.astype(x.dtype), _sum_of_tokens(d_out32 * x32 * inverse).astype(scale_D.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


def _read_again(x: Array, d_out: Array) -> tuple[Array, Array]:
    """Both in float32, for the sums over tokens.

    Without the barrier XLA's kernel of the gradient in x writes their product in float32 for those sums to
    read: twice the bytes of reading the two again.
    """
    x, d_out = jax.lax.optimization_barrier((x, d_out))
    return x.astype(jnp.float32), d_out.astype(jnp.float32)


def _over_tokens(x_D: Array, like: Array) -> Array:
    """x_D in float32, with the leading axes that broadcasting to `like` needs."""
    return x_D.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))


def _sum_of_tokens(x: Array) -> Array:
    return x.sum(axis=tuple(range(x.ndim - 1)))
