"""Written gradients of norms, activations, rotations, biases and lookups, against those that JAX derives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsepo_jax.models.rotary import LayerTurns, rotate
from sparsepo_jax.ops import activations
from sparsepo_jax.ops.activations import ACTIVATIONS, activated, gated
from sparsepo_jax.ops.norms import layer_norm, rms_norm
from sparsepo_jax.ops.token_sums import add_bias, look_up


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def plain_layer_norm(x, scale, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return normed * scale[None, None] + bias[None, None]


def plain_rms_norm(x, scale):
    return x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale[None, None]


def plain_gated(name, gate, up):
    return ACTIVATIONS[name](gate) * up


X, SCALE, BIAS, IDS = normal(0, 2, 5, 8), 1 + normal(1, 8), normal(2, 8), jnp.array([[3, 1, 3], [0, 3, 3]])
CASES = {
    "layer norm": (lambda *x: layer_norm(*x, 1e-5), plain_layer_norm, (3 + X, SCALE, BIAS)),
    "rms norm": (lambda *x: rms_norm(*x, 1e-5), plain_rms_norm, (X, SCALE)),
    "bias": (add_bias, lambda x, bias: x + bias[None, None], (X, BIAS)),
    "lookup": (lambda table: look_up(table, IDS), lambda table: table[IDS], (normal(3, 4, 8),)),
} | {
    f"{name}{what}": (functools.partial(ours, name), plain, inputs)
    for name in ACTIVATIONS
    for what, ours, plain, inputs in (
        ("", activated, ACTIVATIONS[name], (X,)),
        (", gated", gated, functools.partial(plain_gated, name), (X, normal(4, 2, 5, 8))),
    )
}


def on_a_gpu(*inputs, default, **_):
    """As jax.lax.platform_dependent chooses there."""
    return default(*inputs)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_plain_formula(name, device, monkeypatch):
    if device == "gpu":
        monkeypatch.setattr(activations.jax.lax, "platform_dependent", on_a_gpu)
    ours, plain, inputs = CASES[name]
    value, pullback = jax.vjp(ours, *inputs)
    expected, expected_pullback = jax.vjp(plain, *inputs)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    cotangent = normal(5, *value.shape)
    for got, wanted in zip(pullback(cotangent), expected_pullback(cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_gives_float32_within_one_rounding(name):
    """Each result is float32's, rounded once. Kills: arithmetic in bfloat16, a result of another type."""
    ours, _, inputs = CASES[name]
    short = [x.astype(jnp.bfloat16) for x in inputs]
    value, pullback = jax.vjp(ours, *short)
    exact, exact_pullback = jax.vjp(ours, *(x.astype(jnp.float32) for x in short))
    cotangent = normal(5, *value.shape).astype(jnp.bfloat16)
    results = (value, *pullback(cotangent))
    expected = (exact, *exact_pullback(cotangent.astype(jnp.float32)))
    for got, wanted in zip(results, expected, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=2**-6, atol=1e-2)


def test_gradients_of_many_tokens_are_summed_in_float32():
    """Summed one by one in bfloat16, 1,000 ones stop at 256."""
    tokens = jnp.ones((1000, 2), jnp.bfloat16)
    _, of_bias = jax.vjp(lambda bias: add_bias(tokens, bias), jnp.zeros(2, jnp.bfloat16))
    _, of_table = jax.vjp(
        lambda table: look_up(table, jnp.zeros(1000, jnp.int32)), jnp.zeros((2, 2), jnp.bfloat16)
    )
    assert of_bias(tokens)[0].astype(jnp.float32).tolist() == [1000, 1000]
    assert of_table(tokens)[0].astype(jnp.float32)[0].tolist() == [1000, 1000]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_is_kept_of_an_activation_is_no_more_than_its_inputs(device, monkeypatch):
    if device == "gpu":
        monkeypatch.setattr(activations.jax.lax, "platform_dependent", on_a_gpu)
    for function, count in ((functools.partial(activated, "silu"), 1), (functools.partial(gated, "silu"), 2)):
        _, pullback = jax.vjp(function, *[X] * count)
        kept = [x for x in jax.tree.leaves(pullback) if getattr(x, "shape", None) == X.shape]
        assert len(kept) == count


def plain_rotation(x_BSNH, positions_BS, turns):
    """Each pair of dims (i, i + X) as a complex number, turned by its angle."""
    X = len(turns.frequency_X)
    angle_BS1X = (positions_BS[..., None] * turns.frequency_X[None, None])[:, :, None]
    turned = (
        jax.lax.complex(x_BSNH[..., :X], x_BSNH[..., X : 2 * X]) * jnp.exp(1j * angle_BS1X) * turns.factor
    )
    return jnp.concatenate([turned.real, turned.imag, x_BSNH[..., 2 * X :]], axis=-1)


@pytest.mark.parametrize("pairs", [2, 4], ids=["a part of the dims", "all dims"])
def test_a_rotation_and_its_gradient_are_those_of_complex_numbers(pairs):
    """Kills: a gradient that turns on instead of back, one that forgets the factor or the dims that stay."""
    x, positions = normal(0, 2, 5, 3, 8), jnp.arange(10).reshape(2, 5) % 7
    turns = LayerTurns(jnp.array([1.0, 0.3, 0.1, 0.02])[:pairs], 1.2)
    value, pullback = jax.vjp(lambda x: rotate(x, positions, turns), x)
    expected, expected_pullback = jax.vjp(lambda x: plain_rotation(x, positions, turns), x)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    cotangent = normal(5, *value.shape)
    np.testing.assert_allclose(pullback(cotangent)[0], expected_pullback(cotangent)[0], atol=1e-5)
