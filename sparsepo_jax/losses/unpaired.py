"""Objectives of single responses, each desirable or not: KTO, BCO and APO-zero.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads keys. Which responses are desirable is `stats.desirable_BP`; of a pair it is the chosen
one, and the loss of the pair is the mean of its two. In the docstrings, which describe the settings alone, R
is beta times the sum of the response's log-ratios (each times its weight in the mask), z is beta times
`stats.anchor`, and s is R - z of a desirable response and z - R of another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.core.labels import SHARES, sides
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import PairKeys, compare, negative_log_sigmoid, summed_log_ratio


def kto_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    desirable_weight: Scalar,
    undesirable_weight: Scalar,
) -> LossOutput:
    """KTO: w (1 - sigmoid(s)), with z >= 0 an estimate of beta KL(policy || reference), without gradient.

    The paper's w - w sigmoid(s), so that a perfect response costs 0.

    Args:
        beta: scale of the reward, per nat, > 0.
        desirable_weight: w of desirable responses, >= 0.
        undesirable_weight: w of the others, >= 0.

    References:
        Ethayarajh et al., KTO, arXiv 2402.01306, 2024, equations 7 and 8.
    """
    return _from_anchor(stats, masks, beta, (desirable_weight, undesirable_weight), _chance_of_wrong)


def bco_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    desirable_weight: Scalar,
    undesirable_weight: Scalar,
) -> LossOutput:
    """BCO: -w log sigmoid(s), with z the mean reward of all rows so far (delta), without gradient.

    A classifier of desirable and undesirable responses.

    Args:
        beta: scale of the reward, per nat, > 0.
        desirable_weight: w of desirable responses, >= 0.
        undesirable_weight: w of the others, >= 0.

    References:
        Jung et al., Binary Classifier Optimization, arXiv 2404.04656, 2024.
    """
    return _from_anchor(stats, masks, beta, (desirable_weight, undesirable_weight), negative_log_sigmoid)


def apo_zero_unpaired_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    desirable_weight: Scalar,
    undesirable_weight: Scalar,
) -> LossOutput:
    """APO-zero of single responses: w (1 - sigmoid(s)) at z = 0.

    Args:
        beta: scale of the reward, per nat, > 0.
        desirable_weight: w of desirable responses, >= 0.
        undesirable_weight: w of the others, >= 0.

    References:
        D'Oosterlinck et al., Anchored Preference Optimization, arXiv 2408.06266, 2024, equation 7.
    """
    return _from_anchor(
        stats._replace(anchor=None), masks, beta, (desirable_weight, undesirable_weight), _chance_of_wrong
    )


def _chance_of_wrong(s_BP: Float[Array, "B P"]) -> Float[Array, "B P"]:
    return jax.nn.sigmoid(-s_BP)


def _from_anchor(
    stats: TokenStats,
    masks: TokenMasks,
    beta: Scalar,
    weights: tuple[Scalar, Scalar],
    loss_of: Callable[[Float[Array, "B P"]], Float[Array, "B P"]],
) -> LossOutput:
    """The loss as a function of s, and metrics; weights: of desirable responses and of the others."""
    if stats.desirable_BP is None:  # pairs
        if stats.valid_BPT.shape[1] != 2:
            raise ValueError("rows of one response need labels")
        is_chosen_BP = jnp.broadcast_to(jnp.array([True, False]), stats.valid_BPT.shape[:2])
        stats = stats._replace(desirable_BP=is_chosen_BP)
    assert stats.desirable_BP is not None
    reward_BP = beta * summed_log_ratio(stats, masks)
    anchor = jnp.float32(0.0) if stats.anchor is None else beta * jax.lax.stop_gradient(stats.anchor)
    s_BP = jnp.where(stats.desirable_BP, reward_BP - anchor, anchor - reward_BP)
    loss_BP = jnp.where(stats.desirable_BP, *weights) * loss_of(s_BP)
    if reward_BP.shape[1] == 2:
        metrics = compare(reward_BP).metrics
    else:
        desirable_B = stats.desirable_BP[:, 0].astype(jnp.float32)
        metrics = {
            "margin": s_BP[:, 0],
            "rewards/margins": s_BP[:, 0],
            "rewards/accuracies": jnp.heaviside(s_BP[:, 0], 0.5),
            SHARES["chosen"]: desirable_B,
            SHARES["rejected"]: 1 - desirable_B,
            **sides("rewards", reward_BP, stats),
        }
    metrics["rewards/anchor"] = jnp.broadcast_to(anchor, loss_BP.shape[:1])
    return LossOutput(loss_BP.mean(axis=1), metrics)
