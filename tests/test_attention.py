"""Attention that leaves out what nothing may see, and writes its own gradient, against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsepo_jax.core.layout import lay_out
from sparsepo_jax.ops import attention as module
from sparsepo_jax.ops.attention import attention
from tiny import random_batch
from tolerances import TOKEN

B, S, T, N, H = 4, 5, 6, 4, 8


def plain(q, k, v, attend, scale, softcap):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BSNH,BTNH->BNST", q, k) * scale
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    return jnp.einsum("BNST,BTNH->BSNH", jax.nn.softmax(jnp.where(attend[:, None], scores, -1e30), axis=-1), v)


def inputs(shared: bool, kv_heads: int):
    """Queries, keys, values, who sees whom (padding on both sides), the split, and which queries see anything."""
    rows = lay_out(random_batch(B, S, T), shared=shared)
    rng, width = np.random.default_rng(0), rows.ids_BS.shape
    q, k, v = (jnp.asarray(rng.normal(size=(*width, heads, H)), jnp.float32) for heads in (N, kv_heads, kv_heads))
    return q, k, v, rows.attend_BSS, rows.split, rows.attend_BSS.any(-1)[..., None, None]


@pytest.mark.parametrize("chunk", [2, 128])
@pytest.mark.parametrize(("kv_heads", "softcap"), [(4, None), (2, 0.5), (1, None)])
@pytest.mark.parametrize("shared", [True, False])
def test_values_and_gradients_are_those_of_the_plain_formula(monkeypatch, shared, kv_heads, softcap, chunk):
    """Kills: a response that sees the other or not the prompt; a chunk that loses its last keys; the soft cap's slope left out."""
    monkeypatch.setattr(module, "CHUNK_QUERIES", chunk)
    q, k, v, attend, split, sees = inputs(shared, kv_heads)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def total(function):
        return jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.where(sees, weights * function(q, k, v), 0.0)), argnums=(0, 1, 2)))(q, k, v)

    ours = total(lambda q, k, v: attention(q, k, v, attend, scale=0.3, softcap=softcap, split=split))
    expected = total(lambda q, k, v: plain(q, k, v, attend, 0.3, softcap))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=TOKEN, rtol=TOKEN)


def test_a_query_that_sees_nothing_is_finite_and_has_no_gradient():
    q, k, v, attend, split, sees = inputs(True, N)
    assert not sees.all()
    total = lambda q: jnp.sum(attention(q, k, v, attend, scale=0.3, split=split))  # noqa: E731
    value, gradient = jax.value_and_grad(total)(q)
    assert np.isfinite(value)
    np.testing.assert_array_equal(np.where(sees, 0.0, gradient), 0.0)


def test_nothing_of_scores_is_kept_for_the_backward_pass():
    """Kills: a gradient derived by JAX, which keeps the [S, T] weights."""
    q, k, v, attend, split, _ = inputs(True, N)
    _, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, attend, scale=0.3, split=split), q, k, v)
    kept = [x.shape[-2:] for x in jax.tree.leaves(pullback) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert (T - 1 + S, H) in kept  # the keys that responses see
    assert (S, S) not in kept and (T - 1, S + T - 1) not in kept
