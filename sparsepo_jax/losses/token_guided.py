"""Objectives that read more of a token than log-probs and KL: TI-DPO its importance, TBPO-Q a baseline.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads keys. The docstrings describe the settings alone.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.tokens import in_both, inside, log_ratio, response_mean, response_sum, token_number
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.margins import ratio_risk
from sparsepo_jax.losses.token_weighted import PairKeys, compare, tdpo2_loss


def tidpo_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    alpha: Scalar,
    attribution: Scalar,
    prior_width: Scalar,
) -> LossOutput:
    """TI-DPO: TDPO-2 whose log-ratios are weighted by how much the token matters to the policy's prediction.

    The weights have mean 1 over a response; see `importance_weights`. The KL is not weighted by them. With
    weights of 1 it is TDPO-2.

    Args:
        beta: scale of the reward, per nat, > 0.
        alpha: weight of the difference of KLs, >= 0.
        attribution: share of the measured importance in the weights, 0 to 1; the rest is the prior's.
        prior_width: the prior's deviation is the length over this, but 1 token at least; > 0.

    References:
        Yang et al., Token-Importance Guided Direct Preference Optimization, arXiv 2505.19653, 2025, without
        the triplet loss on sampled responses.
    """
    if stats.importance_BPT is None:
        raise ValueError("tidpo needs the importance of tokens")
    weight_BPT = importance_weights(stats.importance_BPT, stats.valid_BPT, attribution, prior_width)
    weighted = TokenMasks(weight_BPT * inside(masks.reward_BPT, stats.valid_BPT), masks.kl_BPT)
    return tdpo2_loss(stats, weighted, key_B, beta=beta, alpha=alpha)


def importance_weights(
    importance_BPT: Float[Array, "B P T"],
    valid_BPT: Bool[Array, "B P T"],
    attribution: Scalar,
    prior_width: Scalar,
) -> Float[Array, "B P T"]:
    """n (a g / sum g + (1 - a) q / sum q): g the importance, q a Gaussian around the middle of the response.

    Where no token has any importance the weights are those of the prior alone.

    Args:
        importance_BPT: g, >= 0.
        valid_BPT: True on response tokens.
        attribution: a, 0 to 1.
        prior_width: the Gaussian's deviation is n over this, but 1 token at least; > 0.
    """
    length_BP1 = jnp.maximum(valid_BPT.sum(-1, keepdims=True), 1).astype(jnp.float32)
    from_middle_BPT = token_number(valid_BPT) - (length_BP1 + 1) / 2
    deviation_BP1 = jnp.maximum(length_BP1 / prior_width, 1.0)
    prior_BPT = inside(jnp.exp(-0.5 * (from_middle_BPT / deviation_BP1) ** 2), valid_BPT)
    prior_BPT = prior_BPT / jnp.maximum(prior_BPT.sum(-1, keepdims=True), 1e-30)
    total_BP1 = response_sum(importance_BPT, valid_BPT)[..., None]
    safe_BP1 = jnp.where(total_BP1 > 0, total_BP1, 1.0)
    share_BPT = jnp.where(total_BP1 > 0, inside(importance_BPT, valid_BPT) / safe_BP1, prior_BPT)
    return length_BP1 * (attribution * share_BPT + (1 - attribution) * prior_BPT)


def tbpo_q_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    power: Scalar | None,
    scale: Scalar,
    baseline_limit: Scalar,
) -> LossOutput:
    """TBPO-Q: a loss for each token t of the shorter response, whose margin has a learned baseline.

    z_t = beta (r_t - r'_t + w_t), r_t and r'_t the log-ratios of the t-th tokens of chosen and rejected
    response, and w_t the difference of their baselines less its mean over the compared tokens, kept within
    the limit. With baselines of 0 it is BPO token by token. `margin` and rewards are means over the compared
    tokens. With masks, r_t and the baselines come by the weights of the reward.

    Args:
        beta: scale of the reward, per nat, > 0.
        power: of Basu's divergence, >= 0; None: the logistic loss.
        scale: divides the loss of Basu's divergence, > 0.
        baseline_limit: w_t lies between minus and plus this, nats, > 0.

    References:
        Nguyen et al., TokenRatio: Principled Token-Level Preference Optimization via Ratio Matching, arXiv
        2605.12288, 2026, and the authors' code.
    """
    if stats.baseline_BPT is None:
        raise ValueError("tbpo_q needs a baseline")
    valid_BPT = stats.valid_BPT
    both_BPT = in_both(valid_BPT)
    both_BT = both_BPT[:, 0]
    weight_BPT = inside(masks.reward_BPT, valid_BPT)
    baseline_BPT = weight_BPT * inside(stats.baseline_BPT, valid_BPT)
    apart_BT = baseline_BPT[:, 0] - baseline_BPT[:, 1]
    centred_BT = apart_BT - response_mean(apart_BT, both_BT)[:, None]
    reward_BPT = beta * weight_BPT * log_ratio(stats)
    shift_BT = beta * jnp.clip(centred_BT, -baseline_limit, baseline_limit)
    compared = compare(response_mean(reward_BPT, both_BPT))
    margin_BT = reward_BPT[:, 0] - reward_BPT[:, 1] + shift_BT
    metrics = compared.metrics | {"margin": response_mean(margin_BT, both_BT)}
    return LossOutput(response_mean(ratio_risk(margin_BT, power, scale), both_BT), metrics)
