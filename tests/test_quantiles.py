"""AOT, whose loss of a pair depends on the others of its batch, and sums of objectives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers.configs import made_stats
from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.losses import quantiles, separate, sequence, token_weighted, wrappers
from sparsepo_jax.sharding.mesh import make_mesh

LOSSES = {"aot": quantiles.aot_loss, "aot_unpaired": quantiles.aot_unpaired_loss}
each = pytest.mark.parametrize("name", LOSSES)


def stats_of(logp_BP, ref_logp_BP, valid=True):
    """Responses of one token each."""
    logp, ref_logp = (jnp.asarray(x, jnp.float32)[..., None] for x in (logp_BP, ref_logp_BP))
    return TokenStats(logp, ref_logp, jnp.zeros_like(logp), jnp.full(logp.shape, valid))


def ones(stats):
    return TokenMasks(jnp.ones_like(stats.logp_BPT), jnp.ones_like(stats.logp_BPT))


def softplus_of_minus(margin):
    return math.log1p(math.exp(-margin))


# Margins of the policy 0.5 -1.0 2.0, of the reference 1.0 0.0 -0.5: sorted -1.0 0.5 2.0 against -0.5 0.0 1.0,
# so that pair 0 has 0.5 - 0.0, pair 1 -1.0 + 0.5, pair 2 2.0 - 1.0. Log-ratios of chosen -0.5 -0.5 1.5, of
# rejected 0.0 0.5 -1.0.
HAND = stats_of([[-1.5, -2.0], [-2.0, -1.0], [-1.0, -3.0]], [[-1.0, -2.0], [-1.5, -1.5], [-2.5, -2.0]])


def test_three_pairs_by_hand():
    output = quantiles.aot_loss(HAND, ones(HAND), None, beta=2.0, label_smoothing=0.1)
    np.testing.assert_allclose(output.metrics["margin"], [1.0, -1.0, 2.0], atol=1e-6)
    expected = [0.9 * softplus_of_minus(x) + 0.1 * softplus_of_minus(-x) for x in (1.0, -1.0, 2.0)]
    np.testing.assert_allclose(output.loss_B, expected, rtol=1e-6)
    np.testing.assert_allclose(output.metrics["rewards/margins"], [-1.0, -2.0, 5.0], atol=1e-6)


def test_three_unpaired_by_hand():
    """Sorted -0.5 -0.5 1.5 against -1.0 0.0 0.5: differences 0.5 -0.5 1.0."""
    output = quantiles.aot_unpaired_loss(HAND, ones(HAND), None, beta=2.0, label_smoothing=0.0)
    np.testing.assert_allclose(output.metrics["margin"], [1.0, -1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(output.loss_B, [softplus_of_minus(x) for x in (1.0, -1.0, 2.0)], rtol=1e-6)


@each
def test_a_pair_alone_is_conservative_dpo(name):
    stats, masks = made_stats()
    one, mask = jax.tree.map(lambda x: x[:1], (stats, masks))
    settings = dict(beta=0.7, label_smoothing=0.2)
    ours, dpo = LOSSES[name](one, mask, None, **settings), sequence.cdpo_loss(one, mask, None, **settings)
    np.testing.assert_allclose(ours.loss_B, dpo.loss_B, rtol=1e-6)
    np.testing.assert_allclose(ours.metrics["margin"], dpo.metrics["margin"], rtol=1e-5)


@each
def test_a_batch_over_eight_devices_is_one_batch(name):
    """Quantiles are those of the whole batch, not of each device's pairs."""
    stats, masks = made_stats()
    stats, masks = jax.tree.map(lambda x: jnp.concatenate([x] * 8)[:16], (stats, masks))
    shift_B11 = jnp.linspace(-1.0, 1.0, 16)[:, None, None]  # no two pairs are equal
    stats = stats._replace(logp_BPT=jnp.where(stats.valid_BPT, stats.logp_BPT + shift_B11, stats.logp_BPT))

    def total(stats, masks):
        loss_B = LOSSES[name](stats, masks, None, beta=0.7, label_smoothing=0.1).loss_B
        return loss_B.sum(), loss_B

    of = jax.jit(jax.value_and_grad(total, has_aux=True, allow_int=True))
    (_, expected_B), expected = of(stats, masks)
    mesh = make_mesh(8, 1, 1)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        (_, loss_B), gradient = of(*jax.device_put((stats, masks), spread))
    np.testing.assert_allclose(loss_B, expected_B, rtol=1e-6)
    np.testing.assert_allclose(gradient.logp_BPT, expected.logp_BPT, atol=1e-6)
    halves = [total(*jax.tree.map(lambda x, n=n: x[n : n + 2], (stats, masks)))[1] for n in range(0, 16, 2)]
    assert np.abs(np.concatenate(halves) - expected_B).max() > 1e-2


@each
def test_order_and_fillers_do_not_count(name):
    """A pair keeps its loss in another order, and beside fillers, which have no token, NaN or not."""
    stats, masks = made_stats()
    loss = LOSSES[name](stats, masks, None, beta=0.7, label_smoothing=0.0).loss_B
    turned = jax.tree.map(lambda x: x[::-1], (stats, masks))
    np.testing.assert_allclose(
        LOSSES[name](*turned, None, beta=0.7, label_smoothing=0.0).loss_B, loss[::-1], rtol=1e-6
    )
    filler = [jnp.concatenate([x, jnp.full_like(x[:2], jnp.nan)]) for x in (*stats[:3], *masks)]
    valid = jnp.concatenate([stats.valid_BPT, jnp.zeros_like(stats.valid_BPT[:2])])

    def total(logp):
        more = TokenStats(logp, *filler[1:3], valid)
        loss_B = LOSSES[name](more, TokenMasks(*filler[3:]), None, beta=0.7, label_smoothing=0.0).loss_B
        return loss_B[:-2].sum(), loss_B

    (_, beside), gradient = jax.value_and_grad(total, has_aux=True)(filler[0])
    np.testing.assert_allclose(beside[:-2], loss, rtol=1e-6)
    assert np.isfinite(beside).all() and (gradient[-2:] == 0).all() and (gradient[:-2] != 0).any()


@each
def test_gradient_equals_finite_differences(name):
    stats, masks = made_stats(seed=4)

    def total(ratio):
        moved = stats._replace(logp_BPT=stats.ref_logp_BPT + ratio)
        return LOSSES[name](moved, masks, None, beta=0.7, label_smoothing=0.1).loss_B.sum()

    ratio = stats.logp_BPT - stats.ref_logp_BPT
    gradient = jax.grad(total)(ratio)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=ratio.shape), jnp.float32) * stats.valid_BPT
    slope = (total(ratio + 1e-2 * direction) - total(ratio - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3)


def test_a_sum_of_objectives_is_the_sum():
    """0.8 DPO + 0.2 BCO; margin and rewards are DPO's, whose beta is that of the sum."""
    stats, masks = made_stats()
    parts = [
        jax.tree_util.Partial(token_weighted.dpo_loss, beta=0.3),
        jax.tree_util.Partial(separate.bco_pair_loss, beta=0.6),
    ]
    mix = wrappers.mixed(parts, [0.8, 0.2])
    dpo, bco = (part(stats, masks, None) for part in parts)
    output = wrappers.with_nll(mix, 0.5)(stats, masks, None)
    np.testing.assert_allclose(
        output.loss_B, 0.8 * dpo.loss_B + 0.2 * bco.loss_B + output.metrics["loss/nll"], rtol=1e-6
    )
    np.testing.assert_allclose(output.metrics["loss/part_2"], 0.2 * bco.loss_B, rtol=1e-6)
    np.testing.assert_array_equal(output.metrics["margin"], dpo.metrics["margin"])
    assert wrappers.settings_of(wrappers.with_nll(mix, 0.5))["beta"] == 0.3


def test_a_sum_of_one_part_is_that_part():
    stats, masks = made_stats()
    loss = jax.tree_util.Partial(sequence.ipo_loss, beta=0.3)
    np.testing.assert_array_equal(
        wrappers.mixed([loss], [1.0])(stats, masks, None).loss_B, loss(stats, masks, None).loss_B
    )
