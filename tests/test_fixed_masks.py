"""Masks that nobody trains, and the two steps after any mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo_jax.core.types import TokenStats
from sparsepo_jax.losses.token_weighted import d2po_loss, sparsepo_loss
from sparsepo_jax.masks import fixed

# One pair, responses of 2 and 3 tokens, 4 columns.
VALID = jnp.array([[[True, True, False, False], [True, True, True, False]]])
KEY = jax.random.split(jax.random.key(0), 1)


def test_ones_are_one_on_the_response_only():
    np.testing.assert_array_equal(fixed.ones_mask(VALID), [[[1, 1, 0, 0], [1, 1, 1, 0]]])


def test_positional_decays_from_the_first_token():
    """0.5, 0.25, 0.125, ..."""
    np.testing.assert_allclose(
        fixed.positional_mask(VALID, decay=0.5), [[[0.5, 0.25, 0, 0], [0.5, 0.25, 0.125, 0]]]
    )


def test_positional_counts_response_tokens_not_columns():
    late = jnp.array([[[False, True, True, False]] * 2])
    np.testing.assert_allclose(fixed.positional_mask(late, decay=0.5), [[[0, 0.5, 0.25, 0]] * 2])


def test_a_positional_mask_on_the_reward_without_kl_is_d2po():
    logp, ref_logp = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 2, 4)), jnp.float32)
    stats = TokenStats(logp, ref_logp, jnp.zeros_like(logp), VALID)
    masks = fixed.place(fixed.positional_mask(VALID, decay=0.9), VALID, "reward")
    ours = sparsepo_loss(stats, masks, None, beta=0.3).loss_B
    ones = fixed.place(fixed.ones_mask(VALID), VALID, "reward")
    np.testing.assert_allclose(ours, d2po_loss(stats, ones, None, beta=0.3, gamma=0.9).loss_B, rtol=1e-6)


def test_confidence_marks_tokens_at_most_as_probable_as_the_mean():
    """Probabilities .9 .1 (mean .5) and .2 .3 .7 (mean .4)."""
    logp = jnp.log(jnp.array([[[0.9, 0.1, 0.5, 0.5], [0.2, 0.3, 0.7, 0.5]]])).at[~VALID].set(jnp.nan)
    np.testing.assert_array_equal(fixed.confidence_mask(logp, VALID), [[[0, 1, 0, 0], [1, 1, 0, 0]]])


def test_confidence_of_equal_tokens_is_one_though_their_mean_may_round_below_them():
    for prob in np.linspace(0.01, 1.0, 40):
        logp = jnp.full(VALID.shape, np.log(prob), jnp.float32)
        np.testing.assert_array_equal(fixed.confidence_mask(logp, VALID), VALID)


def test_confidence_has_no_gradient():
    logp = jnp.array([[[-0.1, -2.0, jnp.nan, 0.0], [-1.0, -0.5, -3.0, jnp.nan]]])
    np.testing.assert_array_equal(jax.grad(lambda x: fixed.confidence_mask(x, VALID).sum())(logp), 0.0)


def test_given_weights_are_taken_as_they_are_inside_the_response():
    weights = jnp.array([[[0.5, -2.0, 7.0, jnp.nan], [0.0, 3.0, 1.0, 9.0]]])
    np.testing.assert_array_equal(fixed.given_mask(weights, VALID), [[[0.5, -2, 0, 0], [0, 3, 1, 0]]])


def test_random_is_uniform_and_zero_outside():
    """Mean 1/2 and variance 1/12 of 2 * 2000 draws, each within five standard deviations."""
    valid = jnp.ones((1, 2, 2000), bool).at[:, :, -1].set(False)
    mask = np.asarray(fixed.random_mask(KEY, valid))
    assert (mask[..., -1] == 0).all()
    inside = mask[..., :-1]
    assert inside.min() >= 0 and inside.max() < 1
    assert abs(inside.mean() - 0.5) < 5 * np.sqrt(1 / 12 / inside.size)
    assert abs(inside.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / inside.size)
    assert abs(np.corrcoef(inside[0])[0, 1]) < 0.12, "the two responses draw on their own"
    assert abs(np.corrcoef(inside[0, 0, 1:], inside[0, 0, :-1])[0, 1]) < 0.12


def test_random_depends_on_the_pairs_key_alone_not_on_batch_or_padding():
    keys = jax.random.split(jax.random.key(3), 3)
    batch = fixed.random_mask(keys, jnp.tile(VALID, (3, 1, 1)))
    wide = jnp.pad(VALID, ((0, 0), (0, 0), (0, 5)))
    shifted = jnp.pad(VALID, ((0, 0), (0, 0), (2, 0)))
    np.testing.assert_array_equal(fixed.random_mask(keys[1:2], VALID), batch[1:2])
    np.testing.assert_array_equal(fixed.random_mask(keys[1:2], wide)[..., :4], batch[1:2])
    np.testing.assert_array_equal(fixed.random_mask(keys[1:2], shifted)[..., 2:], batch[1:2])
    assert not np.allclose(batch[0], batch[1])


def test_normalise_by_hand():
    """(1, 3) has mean 2; (0, 0, 3) has mean 1."""
    mask = jnp.array([[[1.0, 3.0, jnp.nan, 5.0], [0.0, 0.0, 3.0, jnp.inf]]])
    np.testing.assert_allclose(fixed.normalise(mask, VALID), [[[0.5, 1.5, 0, 0], [0, 0, 3, 0]]])


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1e4))
@settings(max_examples=20, deadline=None)
def test_a_normalised_mask_has_mean_one_keeps_its_zeros_and_forgets_its_scale(seed, scale):
    drawn = np.maximum(np.random.default_rng(seed).normal(size=VALID.shape), 0) + np.eye(4)[0]
    mask = jnp.asarray(drawn, jnp.float32)
    once = fixed.normalise(mask, VALID)
    np.testing.assert_allclose(once.sum(-1) / VALID.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(once == 0, (mask == 0) | ~VALID)
    np.testing.assert_allclose(fixed.normalise(mask * scale, VALID), once, rtol=1e-5)


@pytest.mark.parametrize("padding", [0.0, jnp.nan, jnp.inf])
def test_normalise_has_the_gradient_of_the_quotient_and_none_on_padding(padding):
    """f(m1, m2) = m1 / ((m1 + m2) / 2) at (1, 3).

    df/dm1 = 2 m2 / (m1 + m2)^2 = 0.375, df/dm2 = -2 m1 / (m1 + m2)^2 = -0.125.
    """
    mask = jnp.array([[[1.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]]).at[~VALID].set(padding)
    gradient = jax.grad(lambda m: fixed.normalise(m, VALID)[0, 0, 0])(mask)
    np.testing.assert_allclose(gradient, [[[0.375, -0.125, 0, 0], [0, 0, 0, 0]]], atol=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-42])
def test_normalising_a_mask_of_zeros_gives_zeros_and_a_finite_gradient(size):
    mask = jnp.full(VALID.shape, size)
    normal, pull = jax.vjp(lambda m: fixed.normalise(m, VALID), mask)
    np.testing.assert_allclose(normal, 0.0, atol=1e-29)
    assert np.isfinite(pull(jnp.ones_like(mask))[0]).all()


def test_normalise_keeps_the_sign_of_a_mask_whose_mean_is_negative():
    """Sizes 1 and 3, mean size 2."""
    mask = jnp.array([[[1.0, -3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]])
    np.testing.assert_allclose(fixed.normalise(mask, VALID)[0, 0], [0.5, -1.5, 0, 0])


def test_place_puts_ones_where_the_mask_is_not():
    mask = jnp.array([[[0.5, 2.0, jnp.nan, 5.0], [0.0, 0.0, 3.0, jnp.inf]]])
    inside, ones = np.where(VALID, mask, 0.0), np.asarray(VALID, np.float32)
    for on, reward, kl in (("both", inside, inside), ("reward", inside, ones), ("kl", ones, inside)):
        placed = fixed.place(mask, VALID, on)
        np.testing.assert_array_equal(placed.reward_BPT, reward, err_msg=on)
        np.testing.assert_array_equal(placed.kl_BPT, kl, err_msg=on)
