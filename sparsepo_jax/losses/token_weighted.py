"""Objectives that weigh each token's log-ratio and KL: SparsePO, MaPO, and DPO and TDPO as their special cases.

Every objective is `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, unreduced: one loss a pair. Only `sparsepo_loss`
reads the masks (the others have their own weights) and only `sampo_loss` the keys (one a pair); the rest take them so that all
are called alike.

One sum makes the family. With r log-ratio, k KL(ref || policy) >= 0 and weights m^u, m^d of a response's tokens,

    reward = beta * sum_t (m^u_t r_t + m^d_t k_t)
    margin = reward of chosen - reward of rejected
    loss   = -log sigmoid(margin)

which is beta [(R_c - R_r) - (K_r - K_c)] of the papers, sorted by response. Unit weights give TDPO-1, no KL gives DPO.

Metrics of all objectives: `margin`, what the loss is a function of; `rewards/chosen`, `rewards/rejected`, their difference
`rewards/margins`, and `rewards/accuracies`, 1 where it is above zero, 1/2 where it is zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.tokens import inside, log_ratio, token_number, token_uniforms
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats

PairKeys = Key[Array, "B"] | None


def negative_log_sigmoid(margin_B: Float[Array, "B"]) -> Float[Array, "B"]:
    return -jax.nn.log_sigmoid(margin_B)


def compare(
    reward_BP: Float[Array, "B P"],
    loss_of_margin: Callable[[Float[Array, "B"]], Float[Array, "B"]] = negative_log_sigmoid,
    *,
    target: Scalar = 0.0,
) -> LossOutput:
    """loss_of_margin(chosen - rejected - target) of the two responses' rewards, and the metrics that every objective has.

    `margin` includes the target, `rewards/*` do not.
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
    """R + K of each response, before beta: sum of m^u_t r_t + m^d_t k_t over its tokens."""
    # Both factors of each product are cleared of padding first: 0 * NaN is NaN, in the gradient too.
    valid_BPT = stats.valid_BPT
    reward_BPT = inside(masks.reward_BPT, valid_BPT) * log_ratio(stats)
    kl_BPT = inside(masks.kl_BPT, valid_BPT) * inside(stats.kl_BPT, valid_BPT)
    return (reward_BPT + kl_BPT).sum(-1)


def _on_log_ratio(weight_BPT: Float[Array, "B P T"]) -> TokenMasks:
    return TokenMasks(weight_BPT, jnp.zeros_like(weight_BPT))


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

    The norms are sums over the tokens of both responses; `loss/l1` is what they add. MaPO is the same without L1, on
    activation masks. Unit masks give TDPO-1; a unit reward mask and a zero KL mask give DPO.

    Args:
        beta: per nat.
        l1_reward, l1_kl: weight of a unit of mask.
        shared: reward and KL have one mask; each L1 factor then counts half, as in the official code.

    Source: Christopoulou et al., SparsePO, arXiv 2410.05102, 2024.
    """
    compared = compare(beta * weighted_reward(stats, masks))
    reward_BPT, kl_BPT = inside(masks.reward_BPT, stats.valid_BPT), inside(masks.kl_BPT, stats.valid_BPT)
    size_BPT = l1_reward * _size(reward_BPT) + l1_kl * _size(kl_BPT)
    l1_B = size_BPT.sum((1, 2)) * jnp.where(shared, 0.5, 1.0)
    return LossOutput(compared.loss_B + l1_B, compared.metrics | {"loss/l1": l1_B})


def _size(mask_BPT: Float[Array, "B P T"]) -> Float[Array, "B P T"]:
    """|m| with gradient 0 at 0, as in torch; that of jnp.abs is 1 there, and exact zeros are what L1 is for."""
    return mask_BPT * jax.lax.stop_gradient(jnp.sign(mask_BPT))


def tdpo1_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """TDPO-1: -log sigmoid(beta (D - (K_r - K_c))). Source: Zeng et al., arXiv 2404.11999, 2024."""
    ones_BPT = jnp.ones_like(stats.kl_BPT)
    return compare(beta * weighted_reward(stats, TokenMasks(ones_BPT, ones_BPT)))


def tdpo2_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar
) -> LossOutput:
    """TDPO-2: -log sigmoid(beta (D - alpha (K_r - sg K_c))), sg: no gradient through the chosen response's KL.

    alpha = 1 has the value of TDPO-1, not its gradient. Source: Zeng et al., arXiv 2404.11999, 2024.
    """
    kl_BPT = stats.kl_BPT.at[:, 0].set(jax.lax.stop_gradient(stats.kl_BPT[:, 0]))
    masks = TokenMasks(jnp.ones_like(kl_BPT), jnp.full_like(kl_BPT, alpha))
    return compare(beta * weighted_reward(stats._replace(kl_BPT=kl_BPT), masks))


def dpo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """DPO: -log sigmoid(beta D), D the difference of summed log-ratios. Source: Rafailov et al., arXiv 2305.18290, 2023."""
    return compare(beta * weighted_reward(stats, _on_log_ratio(jnp.ones_like(stats.logp_BPT))))


def d2po_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, gamma: Scalar
) -> LossOutput:
    """D2PO: DPO with weight gamma**t on response token t = 1, 2, ... Source: Shao et al., arXiv 2502.14340, 2025."""
    return compare(
        beta * weighted_reward(stats, _on_log_ratio(jnp.float32(gamma) ** token_number(stats.valid_BPT)))
    )


def sampo_loss(stats: TokenStats, masks: TokenMasks, key_B: Key[Array, "B"], *, beta: Scalar) -> LossOutput:
    """SamPO: DPO on as many uniformly drawn tokens of each response as the shorter one has.

    Source: Lu et al., arXiv 2406.10957, 2024.
    """
    # Numbered by their draws, from 0, padding last; ranks rather than a limit on the draws, so that ties cannot change the count.
    draw_BPT = jnp.where(stats.valid_BPT, token_uniforms(key_B, stats.valid_BPT), jnp.inf)
    rank_BPT = jnp.argsort(jnp.argsort(draw_BPT, axis=-1), axis=-1)
    drawn_BPT = rank_BPT < _shorter_length(stats)
    return compare(beta * weighted_reward(stats, _on_log_ratio(drawn_BPT.astype(jnp.float32))))


def ldpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar
) -> LossOutput:
    """LD-DPO: DPO with weight alpha, from 0 to 1, on the tokens past the shorter response's length.

    Source: Liu et al., arXiv 2409.06411, 2024.
    """
    weight_BPT = jnp.where(token_number(stats.valid_BPT) <= _shorter_length(stats), 1.0, alpha)
    return compare(beta * weighted_reward(stats, _on_log_ratio(weight_BPT)))


def _shorter_length(stats: TokenStats) -> Int[Array, "B 1 1"]:
    """Tokens of the shorter response."""
    return stats.valid_BPT.sum(-1).min(-1)[:, None, None]
