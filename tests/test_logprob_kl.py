"""Log-probabilities and KL in blocks with a written gradient, against the full softmax and its derivative."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers.tolerances import TOKEN
from sparsepo_jax.ops.logit_blocks import HeadBlocks
from sparsepo_jax.ops.logits import LogitForm
from sparsepo_jax.ops.logprob_kl import logprob_best, logprob_kl
from sparsepo_jax.sharding.mesh import make_mesh, make_place_head

R, M, D, V = 3, 7, 8, 26
SMALL = HeadBlocks(tokens=3, vocabulary=5)  # neither divides


def inputs(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    valid_RM = np.arange(M) < np.array([7, 3, 0])[:, None]
    return (
        normal(R, M, D),
        normal(V, D),
        normal(R, M, D),
        normal(V, D),
        jnp.asarray(rng.integers(0, V, (R, M))),
        jnp.asarray(valid_RM),
    )


AS_IT_IS = LogitForm(), LogitForm()
CAPPED = LogitForm(softcap=2.0), LogitForm(softcap=1.0)


def plain(states, head, ref_states, ref_head, label, valid, forms=AS_IT_IS):
    def formed(z, form):
        return (
            z * form.scale if form.softcap is None else form.softcap * jnp.tanh(z * form.scale / form.softcap)
        )

    def pick(x):
        return jnp.where(valid, jnp.take_along_axis(x, label[..., None], -1)[..., 0], 0.0)

    logits = [jnp.einsum("RMD,VD->RMV", x, h) for x, h in ((states, head), (ref_states, ref_head))]
    logp, ref = (jax.nn.log_softmax(formed(z, form)) for z, form in zip(logits, forms))
    return pick(logp), pick(ref), jnp.where(valid, (jnp.exp(ref) * (ref - logp)).sum(-1), 0.0)


@pytest.mark.parametrize("with_kl", [True, False])
@pytest.mark.parametrize(
    ("blocks", "forms"),
    [
        (HeadBlocks(1, 1), AS_IT_IS),
        (SMALL, AS_IT_IS),
        (HeadBlocks(), AS_IT_IS),
        (SMALL._replace(keep=True), CAPPED),
        (SMALL, CAPPED),
        (SMALL._replace(shards=2), AS_IT_IS),
        (SMALL._replace(shards=2, keep=True), (LogitForm(softcap=2.0), LogitForm())),
        (SMALL, (LogitForm(0.3), LogitForm(2.0))),
        (SMALL._replace(keep=True), (LogitForm(3.0, 2.0), LogitForm(0.5))),
        (HeadBlocks(4, 13, 2), AS_IT_IS),
    ],
)
def test_blocks_equal_the_full_softmax_in_value_and_gradient(blocks, forms, with_kl):
    """Kills: a block left out or counted twice; the cotangents of log-prob and KL exchanged; a label looked
    for in another shard; the factor of logits left out of the gradient.
    """
    states, head, ref_states, ref_head, label, valid = inputs()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, R, M)), jnp.float32)

    def scalar(function):
        def total(states, head):
            logp, _, kl = function(states, head)
            return (weights[0] * logp + (weights[1] * kl if with_kl else 0.0)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1)))(states, head)

    def ours(s, h):
        return logprob_kl(s, h, ref_states, ref_head, label, valid, blocks=blocks, forms=forms)

    def full(s, h):
        return plain(s, h, ref_states, ref_head, label, valid, forms)

    for x, expected in zip(jax.jit(ours)(states, head), full(states, head)):
        np.testing.assert_allclose(x, expected, atol=TOKEN)
    for x, expected in zip(scalar(ours), scalar(full)):
        np.testing.assert_allclose(x, expected, atol=TOKEN)


@pytest.mark.parametrize("blocks", [SMALL, SMALL._replace(shards=2), HeadBlocks()])
def test_equal_models_have_exactly_no_ratio_and_no_kl(blocks):
    states, head, _, _, label, valid = inputs()
    logp, ref_logp, kl = jax.jit(lambda x, w: logprob_kl(x, w, x, w, label, valid, blocks=blocks))(
        states, head
    )
    np.testing.assert_array_equal(logp, ref_logp)
    np.testing.assert_array_equal(kl, 0.0)


def test_logits_of_both_models_are_never_one_array():
    """They are what is largest in a step. Kills: a copy of both, for sums that go over both at once."""
    states, head, ref_states, ref_head, label, valid = inputs()
    ours = jax.jit(lambda x: logprob_kl(x, head, ref_states, ref_head, label, valid))
    shapes = re.findall(r"tensor<((?:\d+x)+)f32>", ours.lower(states).as_text())
    sizes = [math.prod(map(int, shape.strip("x").split("x"))) for shape in shapes]
    assert max(sizes) == R * M * V


@pytest.mark.parametrize(
    ("blocks", "form"),
    [(SMALL, LogitForm()), (SMALL._replace(shards=2), LogitForm(0.5, 2.0)), (HeadBlocks(), LogitForm())],
)
def test_the_best_log_prob_is_met_exactly_by_the_most_probable_token(blocks, form):
    states, head, _, _, label, valid = inputs()
    best_RM = jnp.einsum("RMD,VD->RMV", states, head).argmax(-1)
    expected, _, _ = plain(states, head, states, head, best_RM, valid, (form, form))
    ours = jax.jit(lambda y: logprob_best(states, head, y, valid, blocks=blocks, form=form))
    for y in (label, best_RM):
        logp, best = ours(y)
        np.testing.assert_allclose(best, expected, atol=TOKEN)
        np.testing.assert_array_equal((logp == best)[valid], (y == best_RM)[valid])


def test_nan_in_padding_reaches_neither_value_nor_gradient():
    states, head, ref_states, ref_head, label, valid = inputs()

    def spoil(x):
        return jnp.where(valid[..., None], x, jnp.nan)

    spoiled_label = jnp.where(valid, label, 10**6)

    def total(s, h, r, y):
        logp, _, kl = logprob_kl(s, h, r, ref_head, y, valid, blocks=SMALL)
        return (logp - kl).sum()

    clean = jax.value_and_grad(total, argnums=(0, 1))(states, head, ref_states, label)
    spoiled = jax.value_and_grad(total, argnums=(0, 1))(spoil(states), head, spoil(ref_states), spoiled_label)
    for ours, expected in zip(jax.tree.leaves(spoiled), jax.tree.leaves(clean)):
        np.testing.assert_array_equal(ours, expected)


def test_without_a_reference_the_ratio_is_zero_and_the_gradient_that_of_the_log_prob():
    states, head, _, _, label, valid = inputs()

    def total(s):
        return logprob_kl(s, head, None, None, label, valid, blocks=SMALL)[0].sum()

    expected = jax.grad(lambda s: plain(s, head, s, head, label, valid)[0].sum())(states)
    np.testing.assert_allclose(jax.grad(total)(states), expected, atol=TOKEN)
    logp, ref_logp, kl = logprob_kl(states, head, None, None, label, valid, blocks=SMALL)
    np.testing.assert_array_equal(ref_logp, logp)
    np.testing.assert_array_equal(kl, 0.0)


def test_bfloat16_states_have_float32_sums():
    """The error is that of rounded products.

    That is far below what sums in bfloat16 over the vocabulary would bring (0.03).
    """
    states, head, ref_states, ref_head, label, valid = inputs()
    low = [x.astype(jnp.bfloat16) for x in (states, ref_states)]
    ours = logprob_kl(low[0], head, low[1], ref_head, label, valid, blocks=SMALL)
    inputs_rounded = (
        x.astype(jnp.bfloat16).astype(jnp.float32) for x in (states, head, ref_states, ref_head)
    )
    expected = plain(*inputs_rounded, label, valid)
    for x, y in zip(ours, expected):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, atol=TOKEN)


def largest_temporary(V, with_gradient=True):
    states, ref_states = (jax.ShapeDtypeStruct((1, 64, D), jnp.float32) for _ in range(2))
    heads = [jax.ShapeDtypeStruct((V, D), jnp.float32)] * 2
    label, valid = jax.ShapeDtypeStruct((1, 64), jnp.int32), jax.ShapeDtypeStruct((1, 64), bool)

    def total(states, head, ref_states, ref_head, label, valid):
        logp, _, kl = logprob_kl(states, head, ref_states, ref_head, label, valid, blocks=HeadBlocks(16, 128))
        return (logp - kl).sum()

    compiled = (
        jax.jit(jax.grad(total, argnums=(0, 1)))
        .lower(states, heads[0], ref_states, heads[1], label, valid)
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_know_the_vocabulary():
    """From 2,048 to 16,384 entries, beyond the head's own gradient.

    Kills: anything of size tokens x vocabulary (64 x 14,336 x 4 bytes: 3.7 MB).
    """
    grown = largest_temporary(16384) - largest_temporary(2048)
    assert grown <= 2 * 4 * (16384 - 2048) * D, "at most the head's gradient and a copy of the head"


def test_of_a_head_that_is_cut_no_device_holds_the_whole():
    """Over 8 devices, policy and reference, forward and backward: temporaries are less than one float32 head.

    Kills: a head or its gradient that is gathered as a whole.
    """
    mesh = make_mesh(1, 8, 1)
    gather, scatter = make_place_head(mesh)
    blocks = HeadBlocks(tokens=8, vocabulary=128, gather=gather, scatter=scatter)
    R, M, V, D = 8, 8, 4096, 64

    def place(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    states, head = place((R, M, D), "fsdp"), place((V, D), None, "fsdp")

    def loss(states_RMD, head_VD, ref_states_RMD, ref_head_VD):
        label_RM = jnp.zeros((R, M), jnp.int32)
        logp, _, kl = logprob_kl(
            states_RMD, head_VD, ref_states_RMD, ref_head_VD, label_RM, label_RM == 0, blocks=blocks
        )
        return (logp + kl).sum()

    out = states.sharding, head.sharding
    compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=out).lower(states, head, states, head).compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * V * D
