"""Objectives with another function of the margin or the log-ratios: EXO, DiscoPOP, BPO, TBPO-A and f-DPO.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads keys. The docstrings describe the settings alone. `margin` is that of DPO, beta D,
with D the difference (chosen - rejected) of summed log-ratios.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.core.tokens import in_both, inside, log_ratio, response_mean
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import PairKeys, compare, negative_log_sigmoid, summed_log_ratio

MOST = 30.0  # a margin further from 0 counts as this: exp(2 MOST) is a float32, and so is its gradient


def exo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, label_smoothing: Scalar
) -> LossOutput:
    """EXO: the KL from the policy's preference, sigmoid(beta D), to labels that are right with 1 - e.

    It is s [log s - log(1-e)] + (1-s) [log(1-s) - log e] with s = sigmoid(beta D): the reverse of the
    cross-entropy that DPO takes.

    Args:
        beta: scale of the reward, per nat, > 0.
        label_smoothing: e, above 0 and below 1/2.

    References:
        Ji et al., Towards Efficient Exact Optimization of Language Model Alignment, arXiv 2402.00856, 2024,
        equation 16.
    """

    def reverse_kl(margin_B: Float[Array, "B"]) -> Float[Array, "B"]:
        kept_B = jax.nn.sigmoid(margin_B) * (-negative_log_sigmoid(margin_B) - jnp.log1p(-label_smoothing))
        flipped_B = jax.nn.sigmoid(-margin_B) * (-negative_log_sigmoid(-margin_B) - jnp.log(label_smoothing))
        return kept_B + flipped_B

    return compare(beta * summed_log_ratio(stats, masks), reverse_kl)


def discopop_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, temperature: Scalar
) -> LossOutput:
    """DiscoPOP: (1 - m) (-log sigmoid(beta D)) + m exp(-beta D), m = sigmoid(beta D / temperature).

    The loss that a language model proposed, and that did best: logistic for pairs that are wrongly ordered,
    exponential for the others.

    Args:
        beta: scale of the reward, per nat, > 0.
        temperature: how softly one passes into the other, > 0.

    References:
        Lu et al., Discovering Preference Optimization Algorithms with and for Large Language Models, arXiv
        2406.08414, 2024, equation 5.
    """

    def blended(margin_B: Float[Array, "B"]) -> Float[Array, "B"]:
        share_B = jax.nn.sigmoid(margin_B / temperature)
        # Beyond MOST, where the exponential would overflow, its share is next to 0 at usual temperatures.
        exponential_B = jnp.exp(-jnp.maximum(margin_B, -MOST))
        return (1 - share_B) * negative_log_sigmoid(margin_B) + share_B * exponential_B

    return compare(beta * summed_log_ratio(stats, masks), blended)


def ratio_risk(margin: Float[Array, "*B"], power: Scalar | None, scale: Scalar) -> Float[Array, "*B"]:
    """How badly R = exp(-margin) estimates the ratio of rejected to chosen, as a Bregman divergence has it.

    h'(R) R - h(R) - h'(1/R) but for a constant, with Basu's h = (R^(1+p) - R) / (s p (1+p)):

        [exp(-(1+p) margin) + (1+p) (1 - exp(p margin)) / p] / (s (1+p))

    Args:
        margin: reward of chosen minus reward of rejected. Beyond MOST, or 2 MOST / (1 + p) where p is above
            1, it has no gradient.
        power: p, >= 0. 0 is the limit: KLIEP, times 1/s. 1 is LSIF, times 1/(2 s). None: the logistic h,
            which gives -log sigmoid(margin) and has no scale.
        scale: s, > 0; 4 gives a margin of 0 the slope that the logistic h gives it, whatever p.

    References:
        Kim et al., Preference Optimization by Estimating the Ratio of the Data Distribution, arXiv
        2505.19601, 2025.
    """
    if power is None:
        return negative_log_sigmoid(margin)
    most = 2 * MOST / (1 + jnp.maximum(power, 1.0))
    margin = jnp.clip(margin, -most, most)
    at_zero = jnp.asarray(power) == 0
    safe = jnp.where(at_zero, 1.0, power)
    growth = jnp.where(at_zero, margin, jnp.expm1(safe * margin) / safe)
    return jnp.exp(-(1 + power) * margin) / (scale * (1 + power)) - growth / scale


def bpo_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    power: Scalar | None,
    scale: Scalar,
) -> LossOutput:
    """BPO: `ratio_risk` of beta D.

    Args:
        beta: scale of the reward, per nat, > 0.
        power: of Basu's divergence, >= 0; None: DPO.
        scale: divides the loss, > 0.

    References:
        Kim et al., Preference Optimization by Estimating the Ratio of the Data Distribution, arXiv
        2505.19601, 2025.
    """
    return compare(beta * summed_log_ratio(stats, masks), lambda margin_B: ratio_risk(margin_B, power, scale))


def tbpo_a_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    power: Scalar | None,
    scale: Scalar,
) -> LossOutput:
    """TBPO-A: a loss for each token t of the shorter response, its mean is the pair's.

    Token t of the chosen response is compared with token t of the rejected one by their advantages under the
    reference, beta (r_t + k_t): the log-ratio less its mean under the reference, which is -KL(ref || policy).
    Tokens past the shorter response count nothing. `margin` and rewards are means over the compared tokens.
    With masks r_t and k_t come by their weights; the mean stays that over all compared tokens.

    Args:
        beta: scale of the reward, per nat, > 0.
        power: of Basu's divergence, >= 0; None: the logistic loss.
        scale: divides the loss of Basu's divergence, > 0.

    References:
        Nguyen et al., TokenRatio: Principled Token-Level Preference Optimization via Ratio Matching, arXiv
        2605.12288, 2026.
    """
    valid_BPT = stats.valid_BPT
    both_BPT = in_both(valid_BPT)
    weight_BPT, kl_weight_BPT = inside(masks.reward_BPT, valid_BPT), inside(masks.kl_BPT, valid_BPT)
    kl_BPT = kl_weight_BPT * inside(stats.kl_BPT, valid_BPT)
    reward_BPT = beta * (weight_BPT * log_ratio(stats) + kl_BPT)
    compared = compare(response_mean(reward_BPT, both_BPT))
    risk_BT = ratio_risk(reward_BPT[:, 0] - reward_BPT[:, 1], power, scale)
    return LossOutput(response_mean(risk_BT, both_BPT[:, 0]), compared.metrics)


def fdpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar | None
) -> LossOutput:
    """f-DPO: -log sigmoid(beta (g(sum r_c) - g(sum r_r))), g the derivative of an f-divergence.

    g(r) = (exp((alpha - 1) r) - 1) / (alpha - 1) for an alpha-divergence, log 2 + log sigmoid(r) for that of
    Jensen and Shannon.

    Args:
        beta: scale of the reward, > 0.
        alpha: 1 is the limit g(r) = r, the reverse KL: DPO. 0 is the forward KL. None: Jensen-Shannon.

    References:
        Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
        Constraints, arXiv 2309.16240, 2023.
    """
    ratio_BP = summed_log_ratio(stats, masks)
    if alpha is None:
        return compare(beta * (jnp.log(2.0) + jax.nn.log_sigmoid(ratio_BP)))
    power = jnp.asarray(alpha, jnp.float32) - 1
    safe = jnp.where(power == 0, 1.0, power)
    # exp(80) is still a float32.
    grown_BP = jnp.expm1(jnp.minimum(safe * ratio_BP, 80.0)) / safe
    return compare(beta * jnp.where(power == 0, ratio_BP, grown_BP))
