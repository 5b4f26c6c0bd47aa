"""Alignment by optimal transport: all pairs of a batch at once, by quantiles of their rewards.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads keys. The docstrings describe the settings alone. A loss here depends on the pairs beside
which a pair stands: those of one micro-step, over all devices. Fillers stand beside nobody.

`margin` is the argument of a pair's loss; rewards are those of the pair itself, as for DPO.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.tokens import weighted_sum
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.sequence import smoothed
from sparsepo_jax.losses.token_weighted import PairKeys, compare, summed_log_ratio


def aot_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, label_smoothing: Scalar
) -> LossOutput:
    """AOT: the policy's margins against the reference's, each sorted over the batch.

    A pair's margin is log pi_c - log pi_r. The i-th smallest of the policy is compared with the i-th smallest
    of the reference by the loss of conservative DPO, which pushes every quantile up. The loss belongs to the
    pair whose policy margin it has. With equal order it is DPO.

    Args:
        beta: scale of the reward, per nat, > 0.
        label_smoothing: share of labels taken to be wrong, 0 to 1/2.

    References:
        Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, arXiv 2406.05882,
        2024: AOT for paired data, TRL's `aot`.
    """
    logp_BP, ref_logp_BP = (
        weighted_sum(x_BPT, masks.reward_BPT, stats.valid_BPT)
        for x_BPT in (stats.logp_BPT, stats.ref_logp_BPT)
    )
    policy_B, reference_B = (x_BP[:, 0] - x_BP[:, 1] for x_BP in (logp_BP, ref_logp_BP))
    return _by_quantiles(stats, masks, (policy_B, reference_B), beta, label_smoothing)


def aot_unpaired_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, label_smoothing: Scalar
) -> LossOutput:
    """AOT for unpaired data: rewards of chosen responses against those of rejected ones, each sorted.

    The i-th smallest summed log-ratio of the chosen responses is compared with the i-th smallest of the
    rejected ones. The loss belongs to the pair of that chosen response.

    Args:
        beta: scale of the reward, per nat, > 0.
        label_smoothing: share of labels taken to be wrong, 0 to 1/2.

    References:
        Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, arXiv 2406.05882,
        2024; TRL's `aot_unpaired`.
    """
    ratio_BP = summed_log_ratio(stats, masks)
    return _by_quantiles(stats, masks, (ratio_BP[:, 0], ratio_BP[:, 1]), beta, label_smoothing)


def _by_quantiles(
    stats: TokenStats,
    masks: TokenMasks,
    values: tuple[Float[Array, "B"], Float[Array, "B"]],
    beta: Scalar,
    label_smoothing: Scalar,
) -> LossOutput:
    """The loss of the differences of two sorted arrays, each at the place that the first one's value has."""
    is_pair_B = stats.valid_BPT.any((1, 2))
    first_B, second_B = values
    order_B, other_B = (_order(x_B, is_pair_B) for x_B in values)
    difference_B = first_B[order_B] - second_B[other_B]
    margin_B = beta * jnp.zeros_like(difference_B).at[order_B].set(difference_B)
    metrics = compare(beta * summed_log_ratio(stats, masks)).metrics
    return LossOutput(smoothed(margin_B, label_smoothing), metrics | {"margin": margin_B})


def _order(x_B: Float[Array, "B"], is_pair_B: Bool[Array, "B"]) -> Array:
    """The places of the values, the smallest first, fillers last."""
    return jnp.argsort(jnp.where(is_pair_B, x_B, jnp.inf))
