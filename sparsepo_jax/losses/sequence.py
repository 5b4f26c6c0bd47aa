"""Objectives on sums or means over whole responses: the likelihood, and variants of DPO.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads keys. In the docstrings, which describe the settings alone, D is the difference (chosen -
rejected) of summed log-ratios r, avg is the mean over a response's tokens, and pi_c and pi_r are the policy's
probabilities of the chosen and the rejected response. With a mask, sums are those of m^u_t r_t (or of m^u_t
log pi_t), and avg is such a sum over that of |m^u_t|.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.tokens import log_ratio, response_sum, unsure_tokens, weighted_mean, weighted_sum
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import PairKeys, compare, negative_log_sigmoid, summed_log_ratio
from sparsepo_jax.losses.wrappers import add_nll


def sft_nll(
    logp_BT: Float[Array, "B T"], valid_BT: Bool[Array, "B T"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Negative log-likelihood of each row's response, in nats, and the response's number of tokens.

    The sft loss is the quotient of their sums over the global batch, so that every token counts the same
    whichever row it is in.

    Args:
        logp_BT: log-probability of each token, in nats; whatever stands on padding is ignored.
        valid_BT: True on response tokens.
    """
    return -response_sum(logp_BT, valid_BT), valid_BT.sum(-1).astype(jnp.float32)


def mean_log_ratio(stats: TokenStats, masks: TokenMasks) -> Float[Array, "B P"]:
    """Mean of the log-ratios of a response's tokens, over their weights, in nats.

    Args:
        stats: only the two log-probabilities are read.
        masks: only the weights of the reward are read.
    """
    return weighted_mean(log_ratio(stats), masks.reward_BPT, stats.valid_BPT)


def mean_logp(stats: TokenStats, masks: TokenMasks) -> Float[Array, "B P"]:
    """Mean of the policy's log-probabilities of a response's tokens, over their weights, in nats.

    Args:
        stats: only the policy's log-probabilities are read.
        masks: only the weights of the reward are read.
    """
    return weighted_mean(stats.logp_BPT, masks.reward_BPT, stats.valid_BPT)


def cdpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, label_smoothing: Scalar
) -> LossOutput:
    """Conservative DPO, which takes a share e of the labels to be wrong.

    The loss is -(1-e) log sigmoid(beta D) - e log sigmoid(-beta D).

    Args:
        beta: scale of the reward, per nat, > 0.
        label_smoothing: e, 0 to 1/2; 0 gives DPO.

    References:
        Mitchell, A note on DPO with noisy preferences, 2023.
    """

    return compare(
        beta * summed_log_ratio(stats, masks), lambda margin_B: smoothed(margin_B, label_smoothing)
    )


def smoothed(margin_B: Float[Array, "B"], label_smoothing: Scalar) -> Float[Array, "B"]:
    """-(1-e) log sigmoid(margin) - e log sigmoid(-margin).

    Args:
        margin_B: reward of chosen minus reward of rejected.
        label_smoothing: e, 0 to 1/2.
    """
    kept_B = negative_log_sigmoid(margin_B)
    flipped_B = negative_log_sigmoid(-margin_B)
    return (1 - label_smoothing) * kept_B + label_smoothing * flipped_B


def robust_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, label_smoothing: Scalar
) -> LossOutput:
    """Robust DPO, unbiased under a share e of flipped labels.

    The loss is [-(1-e) log sigmoid(beta D) + e log sigmoid(-beta D)] / (1-2e).

    Args:
        beta: scale of the reward, per nat, > 0.
        label_smoothing: e, 0 <= e < 1/2; 0 gives DPO.

    References:
        Chowdhury et al., Provably Robust DPO, arXiv 2403.00409, 2024.
    """

    def unbiased(margin_B: Float[Array, "B"]) -> Float[Array, "B"]:
        kept_B = negative_log_sigmoid(margin_B)
        flipped_B = negative_log_sigmoid(-margin_B)
        return ((1 - label_smoothing) * kept_B - label_smoothing * flipped_B) / (1 - 2 * label_smoothing)

    return compare(beta * summed_log_ratio(stats, masks), unbiased)


def ipo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """IPO: (avg r_c - avg r_r - 1/(2 beta))^2.

    Log-ratios are averaged over tokens, as in TRL; the first DPO repository sums them. Margin and rewards are
    reported without beta.

    Args:
        beta: strength of the KL term, per nat, > 0. The margin is driven to 1/(2 beta).

    References:
        Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv
        2310.12036, 2023.
    """
    ratio_BP = mean_log_ratio(stats, masks)
    return compare(ratio_BP, lambda margin_B: (margin_B - 1 / (2 * beta)) ** 2)


def dpo_norm_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """Length-normalised DPO: -log sigmoid(beta (avg r_c - avg r_r)).

    Args:
        beta: scale of the mean log-ratio, per nat, > 0; 5 for Tulu 3.

    References:
        Lambert et al., Tulu 3, arXiv 2411.15124, 2024, section 5.1.2.
    """
    return compare(beta * mean_log_ratio(stats, masks))


def hinge_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """The hinge of SLiC on log-ratios, in RSO's form: relu(1 - beta D).

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        Zhao et al., SLiC-HF, arXiv 2305.10425, 2023; Liu et al., RSO, arXiv 2309.06657, 2023.
    """
    return compare(beta * summed_log_ratio(stats, masks), lambda margin_B: jax.nn.relu(1 - margin_B))


def simpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, gamma: Scalar
) -> LossOutput:
    """SimPO: -log sigmoid(beta (avg log pi_c - avg log pi_r) - gamma), without a reference.

    `margin` includes gamma.

    Args:
        beta: scale of the mean log-probability, per nat, > 0.
        gamma: margin that the chosen response must be ahead by, >= 0, in units of the reward.

    References:
        Meng et al., SimPO, arXiv 2405.14734, 2024, equation 6.
    """
    return compare(beta * mean_logp(stats, masks), target=gamma)


def alphapo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, gamma: Scalar, alpha: Scalar
) -> LossOutput:
    """AlphaPO: SimPO on rewards beta (1 - p^-alpha) / alpha with p = exp(avg log pi).

    `margin` includes gamma.

    Args:
        beta: scale of the reward, > 0.
        gamma: margin that the chosen response must be ahead by, >= 0, in units of the reward.
        alpha: shape of the reward: above 0 an unlikely response loses more by becoming less likely, below 0
            it loses less; 0 gives SimPO.

    References:
        Gupta et al., AlphaPO: Reward Shape Matters for LLM Alignment, arXiv 2501.03884, 2025.
    """
    logp_BP = mean_logp(stats, masks)
    is_log = jnp.asarray(alpha) == 0
    safe = jnp.where(is_log, 1.0, alpha)
    # exp(80) is still a float32.
    shaped_BP = jnp.where(is_log, logp_BP, -jnp.expm1(jnp.minimum(-safe * logp_BP, 80.0)) / safe)
    return compare(beta * shaped_BP, target=gamma)


def orpo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, odds_weight: Scalar) -> LossOutput:
    """ORPO: NLL - odds_weight log sigmoid(log odds_c - log odds_r), without a reference.

    The NLL is the chosen response's mean. The odds are p / (1 - p) with p = exp(avg log pi); the rewards are
    their logarithms.

    Args:
        odds_weight: weight of the odds-ratio term (lambda in the paper), >= 0.

    References:
        Hong et al., ORPO, arXiv 2403.07691, 2024, equations 6 and 7.
    """
    # At probability 1 the odds are infinite, and float32 cannot tell a mean log-probability above -eps from
    # 0.
    eps = jnp.finfo(jnp.float32).eps
    logp_BP = jnp.minimum(mean_logp(stats, masks), -eps)
    log_odds_BP = logp_BP - _log1mexp(logp_BP)
    compared = compare(log_odds_BP, lambda margin_B: odds_weight * negative_log_sigmoid(margin_B))
    return add_nll(compared, stats, 1.0)


def _log1mexp(x_BP: Float[Array, "B P"]) -> Float[Array, "B P"]:
    """log(1 - exp(x)) for x < 0, accurate near 0 and far from it."""
    near_BP = x_BP > -jnp.log(2.0)
    # Each branch gets only arguments that it can take: the branch not taken must not put an infinity into the
    # gradient.
    log_expm1_BP = jnp.log(-jnp.expm1(jnp.where(near_BP, x_BP, -1.0)))
    log1p_exp_BP = jnp.log1p(-jnp.exp(jnp.where(near_BP, -1.0, x_BP)))
    return jnp.where(near_BP, log_expm1_BP, log1p_exp_BP)


def cpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar
) -> LossOutput:
    """CPO: -log sigmoid(beta (log pi_c - log pi_r)) + alpha NLL, without a reference.

    The NLL is the chosen response's mean.

    Args:
        beta: scale of the summed log-probability, per nat, > 0.
        alpha: weight of the NLL, >= 0.

    References:
        Xu et al., Contrastive Preference Optimization, arXiv 2401.08417, 2024.
    """
    logp_BP = weighted_sum(stats.logp_BPT, masks.reward_BPT, stats.valid_BPT)
    return add_nll(compare(beta * logp_BP), stats, alpha)


def dpop_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, penalty: Scalar
) -> LossOutput:
    """DPO-Positive: -log sigmoid(beta (D - penalty max(0, -sum r_c))).

    The penalty keeps the chosen response from becoming less likely than under the reference; it is part of
    its reward.

    Args:
        beta: scale of the reward, per nat, > 0.
        penalty: reward lost per nat that the chosen response lies below the reference (lambda in the paper),
            >= 0; 0 gives DPO.

    References:
        Pal et al., Smaug, arXiv 2402.13228, 2024.
    """
    ratio_BP = summed_log_ratio(stats, masks)
    return compare(beta * ratio_BP.at[:, 0].add(-penalty * jax.nn.relu(-ratio_BP[:, 0])))


def rdpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, alpha: Scalar
) -> LossOutput:
    """R-DPO: -log sigmoid(beta D + alpha (|y_c| - |y_r|)), lengths in tokens.

    Rewards include alpha |y|, as the implicit reward of a policy under a length penalty does.

    Args:
        beta: scale of the reward, per nat, > 0.
        alpha: reward per token of length, >= 0; 0 gives DPO.

    References:
        Park et al., Disentangling Length from Quality in DPO, arXiv 2403.19159, 2024.
    """
    return compare(beta * summed_log_ratio(stats, masks) + alpha * stats.valid_BPT.sum(-1))


def confpo_loss(
    stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar, gamma: Scalar
) -> LossOutput:
    """ConfPO: SimPO on, and averaged over, the tokens that the policy is unsure of.

    These are the tokens whose probability is at most the mean of their response; the choice has no gradient.
    `margin` includes gamma.

    Args:
        beta: scale of the mean log-probability, per nat, > 0.
        gamma: margin that the chosen response must be ahead by, >= 0, in units of the reward.

    References:
        Yoon et al., ConfPO, arXiv 2506.08712, 2025.
    """
    unsure_BPT = unsure_tokens(stats.logp_BPT, stats.valid_BPT)
    return compare(beta * weighted_mean(stats.logp_BPT, masks.reward_BPT, unsure_BPT), target=gamma)


def caldpo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """Cal-DPO: -log sigmoid(D) + [(sum r_c - 1/(2 beta))^2 + (sum r_r + 1/(2 beta))^2] / 2.

    Margin and rewards are reported without beta; `loss/calibration` is the second term.

    Args:
        beta: strength of the KL term, per nat, > 0. The log-ratios are driven to plus and minus 1/(2 beta).

    References:
        Xiao et al., Cal-DPO, arXiv 2412.14516, 2024.
    """
    ratio_BP = summed_log_ratio(stats, masks)
    compared = compare(ratio_BP)
    scale = 1 / (2 * beta)
    calibration_B = ((ratio_BP[:, 0] - scale) ** 2 + (ratio_BP[:, 1] + scale) ** 2) / 2
    return LossOutput(compared.loss_B + calibration_B, compared.metrics | {"loss/calibration": calibration_B})
