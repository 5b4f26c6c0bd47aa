"""Activation functions of MLPs, plain and gated, with written gradients.

What is kept for the backward pass depends on the device. A GPU or TPU keeps the inputs, which products have
written anyway, and derives from them on the way: arithmetic costs nothing beside the memory it saves. A CPU
keeps the derivative, computed on the way forward: there the derivative of tanh-GELU alone, derived in the
backward pass, takes a tenth of a training step.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Function = Callable[[Array], Array]


def _gelu_tanh(x: Array) -> Array:
    return nnx.gelu(x, approximate=True)


def _gelu(x: Array) -> Array:
    return nnx.gelu(x, approximate=False)


def _relu2(x: Array) -> Array:
    return jnp.square(nnx.relu(x))


ACTIVATIONS: dict[str, Function] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": nnx.relu,
    "relu2": _relu2,
    "silu": nnx.silu,
}


def _value_and_slope(name: str, x: Array) -> tuple[Array, Array]:
    """f(x) and f'(x) in float32."""
    x32 = x.astype(jnp.float32)
    return jax.jvp(ACTIVATIONS[name], (x32,), (jnp.ones_like(x32),))


def _apart(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, hidden from XLA.

    It would otherwise find what the backward pass computes in the forward pass as well, and keep that, in
    float32.
    """
    return jax.lax.optimization_barrier(arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activated(name: str, x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """f(x), computed in float32, of the type of x.

    Args:
        name: of the function f, a key of ACTIVATIONS.
        x: inputs.
    """
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


def _forward(name: str, x: Array) -> tuple[Array, Array]:
    def with_slope(x: Array) -> tuple[Array, Array]:
        value, slope = _value_and_slope(name, x)
        return value.astype(x.dtype), slope.astype(x.dtype)

    def with_input(x: Array) -> tuple[Array, Array]:
        return activated(name, x), x

    return jax.lax.platform_dependent(x, cpu=with_slope, default=with_input)


def _backward(name: str, saved: Array, d_out: Array) -> tuple[Array]:
    def from_slope(slope: Array, d_out: Array) -> Array:
        return d_out * slope

    def from_input(x: Array, d_out: Array) -> Array:
        x, d_out = _apart(x, d_out)
        _, slope = _value_and_slope(name, x)
        return (d_out.astype(jnp.float32) * slope).astype(x.dtype)

    return (jax.lax.platform_dependent(saved, d_out, cpu=from_slope, default=from_input),)


activated.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(name: str, gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """f(gate) * up, computed in float32, of the type of up.

    Args:
        name: of the function f, a key of ACTIVATIONS.
        gate: inputs of f.
        up: factors.

    References:
        Shazeer, GLU variants improve transformer, arXiv 2002.05202, 2020.
    """
    return (ACTIVATIONS[name](gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(up.dtype)


def _gated_forward(name: str, gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    def with_slopes(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
        value, slope = _value_and_slope(name, gate)
        up32 = up.astype(jnp.float32)
        return (value * up32).astype(up.dtype), ((slope * up32).astype(up.dtype), value.astype(up.dtype))

    def with_inputs(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
        return gated(name, gate, up), (gate, up)

    return jax.lax.platform_dependent(gate, up, cpu=with_slopes, default=with_inputs)


def _gated_backward(name: str, saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    def from_slopes(of_gate: Array, of_up: Array, d_out: Array) -> tuple[Array, Array]:
        return d_out * of_gate, d_out * of_up

    def from_inputs(gate: Array, up: Array, d_out: Array) -> tuple[Array, Array]:
        gate, up, d_out = _apart(gate, up, d_out)
        value, slope = _value_and_slope(name, gate)
        d_out = d_out.astype(jnp.float32)
        d_gate = d_out * up.astype(jnp.float32) * slope
        return d_gate.astype(gate.dtype), (d_out * value).astype(up.dtype)

    return jax.lax.platform_dependent(*saved, d_out, cpu=from_slopes, default=from_inputs)


gated.defvjp(_gated_forward, _gated_backward)


@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def clamped_swiglu(
    gate: Float[Array, "*B F"], up: Float[Array, "*B F"], alpha: float, limit: float
) -> Float[Array, "*B F"]:
    """g sigmoid(alpha g) (1 + u), where g = min(gate, limit) and u is up cut off at plus and minus the limit.

    It is computed in float32. Its inputs alone are kept for the backward pass.

    Args:
        gate: inputs of the gate.
        up: factors.
        alpha: slope of the sigmoid.
        limit: above 0.
    """
    g = jnp.minimum(gate.astype(jnp.float32), limit)
    u = jnp.clip(up.astype(jnp.float32), -limit, limit)
    return (g * jax.nn.sigmoid(alpha * g) * (1 + u)).astype(up.dtype)
