"""Gates: masks of a response with a mean that is set beforehand and with exact zeros.

A ReLU has zeros only where an L1 term pays for them, and that term shrinks the mask, and beta with it. A gate
instead moves all numbers z_t of a response by one shift s, until its mask has the mean that was asked for:

    mean_t m_t = budget    where    budget         m_t = clip(z_t - s, 0, 1)
                                    hard_concrete  P(m_t > 0) = sigmoid(z_t - s)
                                    top_k          m_t = 1 for the largest numbers, 0 for the rest
    mean_t m_t = 1         where    sparsemax      m_t = relu(z_t - s)

So a token gets weight only by taking it from others. How sparse the mask is, is for the net to learn:
numbers that are all equal give a dense mask, numbers far apart one with zeros.

References:
    Martins and Astudillo, From Softmax to Sparsemax, arXiv 1602.02068, 2016.
    Louizos, Welling and Kingma, Learning Sparse Neural Networks through L0 Regularization, arXiv 1712.01312,
    2018.
    Bengio, Leonard and Courville, Estimating or Propagating Gradients Through Stochastic Neurons, arXiv
    1308.3432, 2013.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.draws import Draw, keys_for
from sparsepo_jax.core.tokens import inside, token_uniforms

GATES = ("sparsemax", "budget", "hard_concrete", "top_k")
_LOW, _HIGH = -0.1, 1.1  # a hard concrete number before it is cut to 0 to 1
_TEMPERATURE = 2 / 3  # of its noise
_HALVINGS = 40  # of the interval in which the shift lies


class _Rise(NamedTuple):
    """A mask as a function of z - s that never falls, and its derivative."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


_RELU = _Rise(jax.nn.relu, lambda x: (x > 0).astype(x.dtype))
_CLIP = _Rise(lambda x: jnp.clip(x, 0.0, 1.0), lambda x: ((x > 0) & (x < 1)).astype(x.dtype))
_SIGMOID = _Rise(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))


def gate(
    z_BPT: Float[Array, "B P T"],
    valid_BPT: Bool[Array, "B P T"],
    name: str,
    *,
    budget: float,
    temperature: float | Float[Array, ""],
    key_B: Key[Array, "B"] | None = None,
) -> Float[Array, "B P T"]:
    """The mask of each response, zero outside.

    Args:
        z_BPT: any real numbers.
        valid_BPT: True on response tokens.
        name: one of GATES.
        budget: the mask's mean over the response, in (0, 1); of hard_concrete, the expected share of tokens
            above 0; of top_k, the share of tokens kept, one at least; sparsemax has mean 1 and no budget.
        temperature: z is divided by it, > 0; smaller ones give more zeros. Of top_k only
            the gradient depends on it.
        key_B: a key a pair, from which hard_concrete draws; None: it gives its median mask.

    Raises:
        ValueError: another name.
    """
    z_BPT = inside(z_BPT.astype(jnp.float32), valid_BPT) / temperature
    if name == "sparsemax":
        return inside(_RELU.value(_shifted(z_BPT, valid_BPT, 1.0, _RELU)), valid_BPT)
    if name == "budget":
        return inside(_CLIP.value(_shifted(z_BPT, valid_BPT, budget, _CLIP)), valid_BPT)
    if name == "hard_concrete":
        return _hard_concrete(z_BPT, valid_BPT, budget, key_B)
    if name == "top_k":
        return _top_k(z_BPT, valid_BPT, budget)
    raise ValueError(f"unknown gate {name!r}")


def annealed(start: float, end: float, steps: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """A temperature that goes from start to end by the same factor at each step, and stays there.

    Args:
        start: at step 0, > 0.
        end: from step `steps` on, > 0.
        steps: how many, at least 1.
        step: the batches that were trained on before.
    """
    share = jnp.minimum(step / steps, 1.0)
    return start * (end / start) ** share


def _shifted(z_BPT: Array, valid_BPT: Array, mean: float, rise: _Rise) -> Array:
    """z - s of each response, with s such that rise(z - s) has that mean over its tokens.

    The interval that holds s is halved often enough for float32. A step of Newton's method from there changes
    the value hardly, but its derivative is that of s as a function of z.
    """
    count_BP1 = jnp.maximum(valid_BPT.sum(axis=-1, keepdims=True), 1)
    total_BP1 = mean * count_BP1

    def excess(shift_BP1: Array) -> Array:
        return inside(rise.value(z_BPT - shift_BP1), valid_BPT).sum(axis=-1, keepdims=True) - total_BP1

    fixed_BPT = jax.lax.stop_gradient(z_BPT)
    reach = 1.0 - math.log(min(mean, 1 - mean) if 0 < mean < 1 else 1.0)  # z - s of equal numbers, and more
    low_BP1 = jnp.where(valid_BPT, fixed_BPT, jnp.inf).min(axis=-1, keepdims=True) - reach
    high_BP1 = jnp.where(valid_BPT, fixed_BPT, -jnp.inf).max(axis=-1, keepdims=True) + reach
    exists_BP1 = valid_BPT.any(axis=-1, keepdims=True)
    low_BP1, high_BP1 = (jnp.where(exists_BP1, x, 0.0) for x in (low_BP1, high_BP1))

    def halve(_: Array, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = 0.5 * (low + high)
        is_above = jax.lax.stop_gradient(excess(middle)) > 0  # the mask is still too large
        return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

    low_BP1, high_BP1 = jax.lax.fori_loop(0, _HALVINGS, halve, (low_BP1, high_BP1))
    shift_BP1 = jax.lax.stop_gradient(0.5 * (low_BP1 + high_BP1))
    slope_BP1 = inside(rise.slope(fixed_BPT - shift_BP1), valid_BPT).sum(axis=-1, keepdims=True)
    step_BP1 = jnp.where(slope_BP1 > 1e-6, excess(shift_BP1) / jnp.maximum(slope_BP1, 1e-6), 0.0)
    return z_BPT - (shift_BP1 + step_BP1)


def _hard_concrete(z_BPT: Array, valid_BPT: Array, budget: float, key_B: Array | None) -> Array:
    """With x = z - s: P(m > 0) = sigmoid(x), so that the expected share above 0 is the budget."""
    x_BPT = _shifted(z_BPT, valid_BPT, budget, _SIGMOID)
    location_BPT = x_BPT + _TEMPERATURE * math.log(-_LOW / _HIGH)
    if key_B is not None:
        uniform_BPT = jnp.clip(token_uniforms(keys_for(Draw.GATE, key_B), valid_BPT), 1e-6, 1 - 1e-6)
        location_BPT += jnp.log(uniform_BPT) - jnp.log1p(-uniform_BPT)
    soft_BPT = jax.nn.sigmoid(location_BPT / _TEMPERATURE)
    return inside(jnp.clip(_LOW + (_HIGH - _LOW) * soft_BPT, 0.0, 1.0), valid_BPT)


def _top_k(z_BPT: Array, valid_BPT: Array, budget: float) -> Array:
    """1 or 0, the earlier of equal numbers first, with the gradient of sigmoid(z - s) (straight through)."""
    count_BP1 = valid_BPT.sum(axis=-1, keepdims=True)
    # A little less, since in float32 0.09 * 300 is more than 27.
    kept_BP1 = jnp.ceil(budget * count_BP1 * (1 - 1e-6))
    order_BPT = jnp.argsort(jnp.where(valid_BPT, -z_BPT, jnp.inf), axis=-1, stable=True)
    rank_BPT = jnp.argsort(order_BPT, axis=-1, stable=True)
    hard_BPT = inside((rank_BPT < kept_BP1).astype(jnp.float32), valid_BPT)
    soft_BPT = inside(jax.nn.sigmoid(_shifted(z_BPT, valid_BPT, budget, _SIGMOID)), valid_BPT)
    return jax.lax.stop_gradient(hard_BPT - soft_BPT) + soft_BPT
