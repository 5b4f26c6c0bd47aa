"""Operations of the forward pass whose gradients are sums over tokens, and take them in float32.

Derived by JAX, the sums would be taken in the activations' type. In bfloat16 a sum over some hundred tokens
stops growing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def add_bias(x: Float[Array, "*B F"], bias_F: Float[Array, " F"]) -> Float[Array, "*B F"]:
    """x + bias, of the type of x.

    Args:
        x: of any number of tokens.
        bias_F: of any float type.
    """
    return x + bias_F.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _add_forward(x: Array, bias_F: Array) -> tuple[Array, Array]:
    return add_bias(x, bias_F), bias_F[:0]  # nothing but its type


def _add_backward(typed: Array, d_out: Array) -> tuple[Array, Array]:
    # Without the barrier XLA keeps d_out in float32, to be read by this sum, in twice the bytes.
    d_out = jax.lax.optimization_barrier(d_out)
    d_bias_F = d_out.astype(jnp.float32).sum(axis=tuple(range(d_out.ndim - 1)))
    return d_out, d_bias_F.astype(typed.dtype)


add_bias.defvjp(_add_forward, _add_backward)


@jax.custom_vjp
def look_up(table_VD: Float[Array, "V D"], ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """table[ids], of the table's type.

    Args:
        table_VD: a row for each id.
        ids: 0 to V - 1.
    """
    return jnp.take(table_VD, ids, axis=0)


def _look_up_forward(table_VD: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return look_up(table_VD, ids), (table_VD, ids)


def _look_up_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, None]:
    table_VD, ids = saved
    zeros = jnp.zeros(table_VD.shape, jnp.float32)
    return zeros.at[ids].add(d_out.astype(jnp.float32)).astype(table_VD.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)
