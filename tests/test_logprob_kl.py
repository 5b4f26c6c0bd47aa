"""Chunked log-probabilities and KL with a written gradient, against the full softmax and its derived gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsepo_jax.ops.logprob_kl import logprob_kl
from tolerances import TOKEN

B, P, T, D, V = 2, 2, 7, 8, 13


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    valid_BPT = np.arange(T) < np.array([[7, 3], [1, 5]])[..., None]
    return normal(B, P, T, D), normal(V, D), normal(B, P, T, D), normal(V, D), jnp.asarray(rng.integers(0, V, (B, P, T))), jnp.asarray(valid_BPT)


def plain(states, head, ref_states, ref_head, label, valid, softcaps=(None, None)):
    capped = lambda z, c: z if c is None else c * jnp.tanh(z / c)  # noqa: E731
    logits = [jnp.einsum("BPTD,VD->BPTV", x, h) for x, h in ((states, head), (ref_states, ref_head))]
    logp, ref = (jax.nn.log_softmax(capped(z, c)) for z, c in zip(logits, softcaps))
    pick = lambda x: jnp.where(valid, jnp.take_along_axis(x, label[..., None], -1)[..., 0], 0.0)  # noqa: E731
    return pick(logp), pick(ref), jnp.where(valid, (jnp.exp(ref) * (ref - logp)).sum(-1), 0.0)


@pytest.mark.parametrize(("chunk_tokens", "softcaps"), [(1, (None, None)), (12, (None, None)), (1000, (None, None)), (12, (2.0, 1.0))])
def test_chunked_equals_the_full_softmax_in_value_and_gradient(chunk_tokens, softcaps):
    """12 positions are 3 columns of 4 responses: no divisor of 7. Kills: a chunk left out; the cotangents of log-prob and KL exchanged."""
    states, head, ref_states, ref_head, label, valid = inputs()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, B, P, T)), jnp.float32)

    def scalar(function):
        def total(states, head):
            logp, _, kl = function(states, head)
            return (weights[0] * logp + weights[1] * kl).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1)))(states, head)

    chunked = lambda s, h: logprob_kl(s, h, ref_states, ref_head, label, valid, chunk_tokens=chunk_tokens, softcaps=softcaps)[:3]  # noqa: E731
    full = lambda s, h: plain(s, h, ref_states, ref_head, label, valid, softcaps)  # noqa: E731
    for ours, expected in zip(chunked(states, head), full(states, head)):
        np.testing.assert_allclose(ours, expected, atol=TOKEN)
    for ours, expected in zip(scalar(chunked), scalar(full)):
        np.testing.assert_allclose(ours, expected, atol=TOKEN)


def test_equal_models_have_exactly_no_ratio_and_no_kl():
    states, head, _, _, label, valid = inputs()
    stats = logprob_kl(states, head, states, head, label, valid, chunk_tokens=5)
    np.testing.assert_array_equal(stats.logp_BPT, stats.ref_logp_BPT)
    np.testing.assert_array_equal(stats.kl_BPT, 0.0)


def test_nan_in_padding_reaches_neither_value_nor_gradient():
    states, head, ref_states, ref_head, label, valid = inputs()
    spoil = lambda x: jnp.where(valid[..., None], x, jnp.nan)  # noqa: E731
    spoiled_label = jnp.where(valid, label, 10**6)

    def total(s, h, r, y):
        stats = logprob_kl(s, h, r, ref_head, y, valid, chunk_tokens=8)
        return (stats.logp_BPT - stats.kl_BPT).sum()

    clean = jax.value_and_grad(total, argnums=(0, 1))(states, head, ref_states, label)
    spoiled = jax.value_and_grad(total, argnums=(0, 1))(spoil(states), head, spoil(ref_states), spoiled_label)
    for ours, expected in zip(jax.tree.leaves(spoiled), jax.tree.leaves(clean)):
        np.testing.assert_array_equal(ours, expected)


def test_without_a_reference_the_ratio_is_zero_and_the_gradient_that_of_the_log_prob():
    states, head, _, _, label, valid = inputs()
    total = lambda s: logprob_kl(s, head, None, None, label, valid, chunk_tokens=8).logp_BPT.sum()  # noqa: E731
    expected = jax.grad(lambda s: plain(s, head, s, head, label, valid)[0].sum())(states)
    np.testing.assert_allclose(jax.grad(total)(states), expected, atol=TOKEN)
    stats = logprob_kl(states, head, None, None, label, valid, chunk_tokens=8)
    np.testing.assert_array_equal(stats.ref_logp_BPT, stats.logp_BPT)
    np.testing.assert_array_equal(stats.kl_BPT, 0.0)
