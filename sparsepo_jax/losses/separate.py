"""Objectives that judge each response by itself, and not only how far one is ahead of the other.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads keys. In the docstrings, which describe the settings alone, R_c and R_r are the
rewards of the chosen and the rejected response, beta times the sum of a response's log-ratios, and `margin`
is R_c - R_r.
"""

import jax
from jaxtyping import Array, Float

from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import PairKeys, compare, negative_log_sigmoid, summed_log_ratio


def _with_metrics(reward_BP: Float[Array, "B P"], loss_B: Float[Array, "B"]) -> LossOutput:
    """A loss with the metrics that all objectives have."""
    return LossOutput(loss_B, compare(reward_BP).metrics)


def nca_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """NCA: -log sigmoid(R_c) - [log sigmoid(-R_c) + log sigmoid(-R_r)] / 2.

    The chosen response's own likelihood is what it raises; DPO raises the difference alone.

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, arXiv 2402.05369,
        2024; for pairs, as TRL has it.
    """
    reward_BP = beta * summed_log_ratio(stats, masks)
    noise_B = negative_log_sigmoid(-reward_BP).mean(axis=1)
    return _with_metrics(reward_BP, negative_log_sigmoid(reward_BP[:, 0]) + noise_B)


def bco_pair_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """BCO on pairs: -log sigmoid(R_c) - log sigmoid(-R_r), a classifier of good and bad responses.

    Without the paper's shift of rewards by their running mean, as in TRL.

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        Jung et al., Binary Classifier Optimization, arXiv 2404.04656, 2024.
    """
    reward_BP = beta * summed_log_ratio(stats, masks)
    return _with_metrics(
        reward_BP, negative_log_sigmoid(reward_BP[:, 0]) + negative_log_sigmoid(-reward_BP[:, 1])
    )


def sppo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """SPPO with certain labels: (sum r_c - 1/(2 beta))^2 + (sum r_r + 1/(2 beta))^2.

    Margin and rewards are reported without beta.

    Args:
        beta: strength of the KL term, per nat, > 0. The log-ratios are driven to plus and minus 1/(2 beta).

    References:
        Wu et al., Self-Play Preference Optimization, arXiv 2405.00675, 2024, equation 4.7 with a win rate of
        1 for the chosen response.
    """
    ratio_BP = summed_log_ratio(stats, masks)
    goal = 1 / (2 * beta)
    return _with_metrics(ratio_BP, (ratio_BP[:, 0] - goal) ** 2 + (ratio_BP[:, 1] + goal) ** 2)


def apo_zero_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """APO-zero: 1 - sigmoid(R_c) + sigmoid(R_r). Chosen responses grow likelier, rejected ones less so.

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        D'Oosterlinck et al., Anchored Preference Optimization, arXiv 2408.06266, 2024, equation 7.
    """
    reward_BP = beta * summed_log_ratio(stats, masks)
    return _with_metrics(reward_BP, jax.nn.sigmoid(-reward_BP[:, 0]) + jax.nn.sigmoid(reward_BP[:, 1]))


def apo_down_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """APO-down: sigmoid(R_c) + 1 - sigmoid(R_c - R_r). Both grow less likely, the rejected one more so.

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        D'Oosterlinck et al., Anchored Preference Optimization, arXiv 2408.06266, 2024, equation 8.
    """
    reward_BP = beta * summed_log_ratio(stats, masks)
    behind_B = jax.nn.sigmoid(reward_BP[:, 1] - reward_BP[:, 0])
    return _with_metrics(reward_BP, jax.nn.sigmoid(reward_BP[:, 0]) + behind_B)
