"""Objectives that weigh each token's log-ratio and KL: SparsePO, MaPO, and their special cases DPO and TDPO.

Every objective is `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput` and returns one loss per pair.
`stats` and `masks` are those of core/types; masks are ones where none is configured. `key_B` holds one random
key per pair, or is None. Only `sampo_loss` reads the keys; the rest take them so that all objectives have the
same signature. Weights of an objective's own are multiplied with those of the masks. The docstrings below
describe the settings alone, and the formulas are those without a mask.

One sum makes the family. With r log-ratio, k KL(ref || policy) >= 0 and weights m^u, m^d of a response's
tokens,

    reward = beta * sum_t (m^u_t r_t + m^d_t k_t)
    margin = reward of chosen - reward of rejected
    loss   = -log sigmoid(margin)

which is beta [(R_c - R_r) - (K_r - K_c)] of the papers, sorted by response. Unit weights give TDPO-1, no KL
gives DPO.

Metrics of all objectives, one number per pair: `margin`, the argument of the loss function; `rewards/chosen`
and `rewards/rejected`; their difference `rewards/margins`; and `rewards/accuracies`, which is 1 where that
difference is above zero and 1/2 where it is zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.draws import Draw, keys_for
from sparsepo_jax.core.tokens import inside, log_ratio, size, token_number, token_uniforms, weighted_sum
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats

PairKeys = Key[Array, "B"] | None


def negative_log_sigmoid(margin_B: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """-log sigmoid(margin), the negative log-likelihood of the label under the Bradley-Terry model.

    Args:
        margin_B: reward of chosen minus reward of rejected; any real number.
    """
    return -jax.nn.log_sigmoid(margin_B)


def compare(
    reward_BP: Float[Array, "B P"],
    loss_of_margin: Callable[[Float[Array, "B"]], Float[Array, "B"]] = negative_log_sigmoid,
    *,
    target: Scalar = 0.0,
) -> LossOutput:
    """The loss as a function of the difference of two rewards, and the metrics that every objective has.

    Args:
        reward_BP: reward of the chosen (0) and the rejected (1) response.
        loss_of_margin: the loss of each margin, where margin = chosen - rejected - target.
        target: what chosen must be ahead by, in units of the reward. It is part of `margin`, not of
            `rewards/*`.
    """
    difference_B = reward_BP[:, 0] - reward_BP[:, 1]
    margin_B = difference_B - target
    metrics = {
        "margin": margin_B,
        "rewards/chosen": reward_BP[:, 0],
        "rewards/rejected": reward_BP[:, 1],
        "rewards/margins": difference_B,
        "rewards/accuracies": jnp.heaviside(difference_B, 0.5),
    }
    return LossOutput(loss_of_margin(margin_B), metrics)


def weighted_reward(stats: TokenStats, masks: TokenMasks) -> Float[Array, "B P"]:
    """R + K of each response, before beta: the sum of m^u_t r_t + m^d_t k_t over its tokens, in nats.

    Args:
        stats: log-probabilities and KL; whatever stands on padding is ignored.
        masks: m^u (reward) and m^d (KL); any real weights.
    """
    # Padding is cleared from both factors before the product: 0 * NaN is NaN, in the gradient too.
    valid_BPT = stats.valid_BPT
    reward_BPT = inside(masks.reward_BPT, valid_BPT) * log_ratio(stats)
    kl_BPT = inside(masks.kl_BPT, valid_BPT) * inside(stats.kl_BPT, valid_BPT)
    return (reward_BPT + kl_BPT).sum(-1)


def summed_log_ratio(stats: TokenStats, masks: TokenMasks) -> Float[Array, "B P"]:
    """Sum of the log-ratios of a response's tokens, each by its weight, in nats.

    Args:
        stats: only the two log-probabilities are read.
        masks: only the weights of the reward are read.
    """
    return weighted_sum(log_ratio(stats), masks.reward_BPT, stats.valid_BPT)


def _weighed(masks: TokenMasks, weight_BPT: Float[Array, "B P T"]) -> TokenMasks:
    """Masks whose rewards are multiplied with an objective's own weights."""
    return masks._replace(reward_BPT=weight_BPT * masks.reward_BPT)


def sparsepo_loss(
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    *,
    beta: Scalar,
    l1_reward: Scalar = 0.0,
    l1_kl: Scalar = 0.0,
    shared: bool | Bool[Array, ""] = False,
) -> LossOutput:
    """SparsePO: -log sigmoid(beta [(R_c - R_r) - (K_r - K_c)]) + l1_reward |m^u|_1 + l1_kl |m^d|_1.

    The norms are sums over the tokens of both responses; the metric `loss/l1` is what they add to the loss.
    MaPO is the same without L1, on activation masks. Unit masks give TDPO-1; a unit reward mask and a zero KL
    mask give DPO.

    Args:
        beta: scale of the reward, per nat, > 0.
        l1_reward: loss per unit of the reward mask, >= 0.
        l1_kl: loss per unit of the KL mask, >= 0.
        shared: whether reward and KL have one mask. Each L1 factor then counts half, as in the official code.

    References:
        Christopoulou et al., SparsePO, arXiv 2410.05102, 2024, section 3.
    """
    compared = compare(beta * weighted_reward(stats, masks))
    return add_l1(compared, stats, masks, l1_reward=l1_reward, l1_kl=l1_kl, shared=shared)


def add_l1(
    output: LossOutput,
    stats: TokenStats,
    masks: TokenMasks,
    *,
    l1_reward: Scalar,
    l1_kl: Scalar,
    shared: bool | Bool[Array, ""],
) -> LossOutput:
    """A loss plus l1_reward |m^u|_1 + l1_kl |m^d|_1, sums over the tokens of both responses.

    Reported as `loss/l1`. The gradient of |m| is 0 at 0.

    Args:
        output: of an objective.
        stats: says which tokens are those of responses.
        masks: m^u (reward) and m^d (KL).
        l1_reward: loss per unit of the reward mask, >= 0.
        l1_kl: loss per unit of the KL mask, >= 0.
        shared: whether reward and KL have one mask. Each factor then counts half, as in the official code.

    References:
        Christopoulou et al., SparsePO, arXiv 2410.05102, 2024, section 3.
    """
    reward_BPT, kl_BPT = inside(masks.reward_BPT, stats.valid_BPT), inside(masks.kl_BPT, stats.valid_BPT)
    size_BPT = l1_reward * size(reward_BPT) + l1_kl * size(kl_BPT)
    l1_B = size_BPT.sum((1, 2)) * jnp.where(shared, 0.5, 1.0)
    return LossOutput(output.loss_B + l1_B, output.metrics | {"loss/l1": l1_B})


def tdpo1_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """TDPO-1: -log sigmoid(beta (D - (K_r - K_c))), D the difference of summed log-ratios.

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        Zeng et al., Token-level Direct Preference Optimization, arXiv 2404.11999, 2024.
    """
    return compare(beta * weighted_reward(stats, masks))


def tdpo2_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar
) -> LossOutput:
    """TDPO-2: -log sigmoid(beta (D - alpha (K_r - sg K_c))).

    sg stops the gradient through the chosen response's KL and its mask. With alpha = 1 the loss has the value
    of TDPO-1, but not its gradient.

    Args:
        beta: scale of the reward, per nat, > 0.
        alpha: weight of the difference of KLs, >= 0.

    References:
        Zeng et al., Token-level Direct Preference Optimization, arXiv 2404.11999, 2024.
    """

    def chosen_constant(x_BPT: Float[Array, "B P T"]) -> Float[Array, "B P T"]:
        return x_BPT.at[:, 0].set(jax.lax.stop_gradient(x_BPT[:, 0]))

    masks = TokenMasks(masks.reward_BPT, alpha * chosen_constant(masks.kl_BPT))
    return compare(beta * weighted_reward(stats._replace(kl_BPT=chosen_constant(stats.kl_BPT)), masks))


def dpo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """DPO: -log sigmoid(beta D), D the difference of summed log-ratios.

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        Rafailov et al., Direct Preference Optimization, arXiv 2305.18290, 2023, equation 7.
    """
    return compare(beta * summed_log_ratio(stats, masks))


def d2po_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, gamma: Scalar
) -> LossOutput:
    """D2PO: DPO with weight gamma**t on response token t = 1, 2, ...

    Args:
        beta: scale of the reward, per nat, > 0.
        gamma: decay per token, in (0, 1]; 1 gives DPO.

    References:
        Shao et al., arXiv 2502.14340, 2025.
    """
    weight_BPT = jnp.float32(gamma) ** token_number(stats.valid_BPT)
    return compare(beta * summed_log_ratio(stats, _weighed(masks, weight_BPT)))


def sampo_loss(stats: TokenStats, masks: TokenMasks, key_B: Key[Array, "B"], *, beta: Scalar) -> LossOutput:
    """SamPO: DPO on as many uniformly drawn tokens of each response as the shorter one has.

    Args:
        key_B: one random key per pair; required here.
        beta: scale of the reward, per nat, > 0.

    References:
        Lu et al., arXiv 2406.10957, 2024.
    """
    # Tokens are ranked by their draws, padding last. Ranks, not a limit on the draws: ties cannot change the
    # count then.
    draw_BPT = token_uniforms(keys_for(Draw.SAMPO, key_B), stats.valid_BPT)
    draw_BPT = jnp.where(stats.valid_BPT, draw_BPT, jnp.inf)
    rank_BPT = jnp.argsort(jnp.argsort(draw_BPT, axis=-1), axis=-1)
    drawn_BPT = rank_BPT < _shorter_length(stats)
    return compare(beta * summed_log_ratio(stats, _weighed(masks, drawn_BPT.astype(jnp.float32))))


def ldpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar
) -> LossOutput:
    """LD-DPO: DPO with weight alpha on the tokens past the shorter response's length.

    Args:
        beta: scale of the reward, per nat, > 0.
        alpha: weight of the longer response's surplus tokens, 0 to 1; 1 gives DPO.

    References:
        Liu et al., arXiv 2409.06411, 2024.
    """
    weight_BPT = jnp.where(token_number(stats.valid_BPT) <= _shorter_length(stats), 1.0, alpha)
    return compare(beta * summed_log_ratio(stats, _weighed(masks, weight_BPT)))


def _shorter_length(stats: TokenStats) -> Int[Array, "B 1 1"]:
    """Tokens of the shorter response."""
    return stats.valid_BPT.sum(-1).min(-1)[:, None, None]
