"""The gated delta rule and its convolution against token after token, and transformers' torch functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from helpers.quick import slow_but
from helpers.tiny import packed, random_rows
from helpers.tolerances import GRADIENT, TOKEN
from sparsepo_jax.ops import gated_delta as rule
from sparsepo_jax.ops.block_attention import Places
from sparsepo_jax.ops.gated_delta import gated_delta, gated_delta_step, unit_lower_inverse
from sparsepo_jax.ops.short_convolution import short_convolution

K, N, H, X = 2, 4, 3, 5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that sequences begin, branch and end within chunks and across them."""
    monkeypatch.setattr(rule, "CHUNK", 4)


def inputs(R, S, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    log_decay = -jnp.asarray(rng.uniform(0, 1, (R, S, N)), jnp.float32)
    rate = jnp.asarray(rng.uniform(0, 1, (R, S, N)), jnp.float32)
    return normal(R, S, K, H), normal(R, S, K, H), normal(R, S, N, X), log_decay, rate


def batch_of(*, shared, rows=2):
    packing = packed(random_rows(4, prompt=9, tokens=7, seed=3), rows=rows, shared=shared, spare=2).packing
    return packing, Places(packing.sequence_RS, packing.part_RS, packing.positions_RS)


def past_of(places, row, column):
    """The columns that a token sees, in order, itself last."""
    sequence, part = np.asarray(places.sequence_RS)[row], np.asarray(places.part_RS)[row]
    if sequence[column] < 0:
        return []
    seen = (sequence == sequence[column]) & ((part == 0) | (part == part[column]))
    return np.flatnonzero(seen[: column + 1]).tolist()


def token_after_token(places):
    """A function that reads each token's own past from its beginning: no chunks, nothing is handed on."""
    R, S = places.sequence_RS.shape
    pasts = [[past_of(places, row, column) for column in range(S)] for row in range(R)]
    longest = max(len(past) for of_row in pasts for past in of_row)
    # Padding on the left: keys and values of zero leave an empty memory empty.
    padded = [[[S] * (longest - len(past)) + past for past in of_row] for of_row in pasts]
    at_RSW = jnp.array(padded)

    def read(*arguments):
        def of_past(at_W, *of_row):
            own = [jnp.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1))[at_W][:, None] for x in of_row]

            def step(memory, token):
                out, memory = gated_delta_step(*token, memory)
                return memory, out[0]

            return jax.lax.scan(step, jnp.zeros((1, N, H, X)), tuple(own))[1][-1]

        over_tokens = jax.vmap(of_past, (0, *(None for _ in arguments)))
        out_RSNX = jax.vmap(over_tokens)(at_RSW, *arguments)
        return jnp.where(places.sequence_RS[..., None, None] >= 0, out_RSNX, 0.0)

    return jax.jit(read)


@pytest.mark.parametrize("shared", slow_but([True], [True, False]))
def test_chunks_give_what_token_after_token_gives(shared):
    """Values and gradients, in rows of several sequences whose responses branch, padded at their end."""
    _, places = batch_of(shared=shared)
    arguments = inputs(*places.sequence_RS.shape)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=arguments[2].shape), jnp.float32)
    weight = jnp.where(places.sequence_RS[..., None, None] >= 0, weight, 0.0)

    alone = token_after_token(places)

    def chunked(*arguments):
        return jnp.sum(weight * gated_delta(*arguments, places, branched=shared)[0])

    def plain(*arguments):
        return jnp.sum(weight * alone(*arguments))

    out, _ = gated_delta(*arguments, places, branched=shared)
    np.testing.assert_allclose(out, alone(*arguments), atol=TOKEN)
    gradients = jax.jit(jax.grad(chunked, argnums=range(5)))(*arguments)
    for ours, expected in zip(gradients, jax.jit(jax.grad(plain, argnums=range(5)))(*arguments), strict=True):
        np.testing.assert_allclose(ours, expected, atol=GRADIENT * np.abs(expected).max())
        assert not np.asarray(ours)[np.asarray(places.sequence_RS) < 0].any(), "padding has no gradient"


def test_equal_to_transformers():
    """The chunked function, and the memory that it ends with."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

    S = 10
    arguments = inputs(2, S)
    theirs, state = torch_chunk_gated_delta_rule(
        *(torch.tensor(np.asarray(x)) for x in arguments),
        use_qk_l2norm_in_kernel=True,
        output_final_state=True,
    )
    zeros = jnp.zeros((2, S), jnp.int32)
    places = Places(zeros, zeros, jnp.broadcast_to(jnp.arange(S), (2, S)))
    out, memory = gated_delta(*arguments, places, branched=False)
    np.testing.assert_allclose(out, theirs.numpy(), atol=TOKEN)
    np.testing.assert_allclose(memory, state.numpy(), atol=TOKEN)
    before = Places(*(x[:, :-1] for x in places))
    _, memory_before = gated_delta(*(x[:, :-1] for x in arguments), before, branched=False)
    step, after = gated_delta_step(*(x[:, -1] for x in arguments), memory_before)
    np.testing.assert_allclose(step, out[:, -1], atol=TOKEN)
    np.testing.assert_allclose(after, memory, atol=TOKEN)


def test_tokens_that_repeat_keep_their_digits():
    """64 equal keys at full rate: powers of the system would grow beyond what float32 can cancel."""
    x = jnp.tril(jnp.ones((64, 64)), -1)
    inverse = unit_lower_inverse(x)
    np.testing.assert_allclose(inverse, np.linalg.inv(np.eye(64) + np.asarray(x)), atol=1e-6)


@pytest.mark.parametrize("shared", slow_but([True], [True, False]))
def test_the_convolution_follows_each_token_s_own_past(shared):
    packing, places = batch_of(shared=shared)
    R, S = places.sequence_RS.shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(R, S, 3)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    pull = jnp.asarray(rng.normal(size=(R, S, 3)), jnp.float32)
    pull = jnp.where(places.sequence_RS[..., None] >= 0, pull, 0.0)

    def plain(x, weight):
        rows = []
        for row in range(R):
            pasts = [past_of(places, row, column)[::-1][:4] for column in range(S)]
            sums = [(weight[: len(past)] * x[row, jnp.array(past, int)]).sum(axis=0) for past in pasts]
            rows.append(jnp.stack(sums))
        return jnp.stack(rows)

    def ours(x, weight):
        return short_convolution(x, weight, places, packing.column_RQW if shared else None)

    there = np.asarray(places.sequence_RS) >= 0
    np.testing.assert_allclose(
        np.asarray(ours(x, weight))[there], np.asarray(plain(x, weight))[there], atol=TOKEN
    )
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(pull * ours(*a)), argnums=(0, 1)))(x, weight)
    expected = jax.jit(jax.grad(lambda *a: jnp.sum(pull * plain(*a)), argnums=(0, 1)))(x, weight)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=TOKEN)


def test_the_triangular_system_and_decays_are_not_rounded_on_accelerators():
    """Kills: products at a device's default, which takes float32 factors as bfloat16 or TF32.

    A CPU does not round, so what is asked of the device is read from the program.
    """

    def within(jaxpr) -> list:
        found = []
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                precision = equation.params["precision"]
                found.append(precision is not None and set(precision) == {jax.lax.Precision.HIGHEST})
            for value in equation.params.values():
                below = getattr(value, "jaxpr", value)
                found += within(below) if hasattr(below, "eqns") else []
        return found

    @jax.default_matmul_precision("default")  # whatever a run in this process has set
    def precisions(function, *arguments) -> list:
        return within(jax.make_jaxpr(function)(*arguments).jaxpr)

    x = jnp.tril(jnp.full((4, 4), 0.5), -1)
    forward = precisions(lambda x: unit_lower_inverse(x), x)
    both = precisions(jax.grad(lambda x: unit_lower_inverse(x).sum()), x)
    assert all(forward) and all(both) and len(both) == len(forward) + 2 == 6
    packing, places = batch_of(shared=False)
    arrays = inputs(*packing.ids_RS.shape)
    whole = precisions(lambda *arrays: gated_delta(*arrays, places, branched=False)[0], *arrays)
    assert sum(whole) == len(forward) + 1, "those of the system, and the sums of log-decays"
