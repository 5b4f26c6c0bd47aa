"""Objectives on sums or means over whole responses: the likelihood, and variants of DPO.

They are called as those in token_weighted.py: `xxx_loss(stats, masks, key_B, *, settings) -> LossOutput`, and
none of them reads masks or keys. In the docstrings, which describe the settings alone, D is the difference
(chosen - rejected) of summed log-ratios r, avg is the mean over a response's tokens, and pi_c and pi_r are
the policy's probabilities of the chosen and the rejected response.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.tokens import log_ratio, response_mean, response_sum, unsure_tokens
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import PairKeys, compare, negative_log_sigmoid


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


def chosen_nll(stats: TokenStats) -> Float[Array, "B"]:
    """Mean negative log-likelihood of the chosen response's tokens.

    Args:
        stats: only the policy's log-probabilities are read.

    Returns:
        Nats per token, >= 0; 0 for a response without tokens.
    """
    return -response_mean(stats.logp_BPT[:, 0], stats.valid_BPT[:, 0])


def with_nll(loss: Callable[..., LossOutput], nll_weight: float) -> Callable[..., LossOutput]:
    """The objective plus nll_weight times the chosen response's mean NLL, which is reported as `loss/nll`.

    Args:
        loss: an objective with this module's signature.
        nll_weight: loss per nat and token, >= 0; 0 gives the objective itself.

    References:
        Pang et al., Iterative Reasoning Preference Optimization, arXiv 2404.19733, 2024.
    """
    return loss if nll_weight == 0 else Partial(_loss_with_nll, loss, nll_weight)


def weighted_by_policy(loss: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
    """The objective with each pair's loss times the policy's probability of its responses, as WPO has it.

    The weight is the product of both responses' mean probability, exp(avg log pi); it has no gradient and is
    reported as `loss/policy_weight`. Pairs that the policy itself might have written count most. The paper's
    alignment of weights to sampled responses is left out: it needs the whole distribution of each token.

    Args:
        loss: an objective with this module's signature.

    References:
        Zhou et al., WPO, arXiv 2406.11827, 2024, equation 2.
    """
    return Partial(_loss_weighted_by_policy, loss)


def _loss_weighted_by_policy(
    loss: Callable[..., LossOutput],
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    **settings: Any,
) -> LossOutput:
    output = loss(stats, masks, key_B, **settings)
    logp_BP = response_mean(jax.lax.stop_gradient(stats.logp_BPT), stats.valid_BPT)
    weight_B = jnp.exp(logp_BP.sum(axis=1))
    parts = {name: weight_B * x for name, x in output.metrics.items() if name.startswith("loss/")}
    return LossOutput(weight_B * output.loss_B, output.metrics | parts | {"loss/policy_weight": weight_B})


def settings_of(objective: Callable[..., LossOutput]) -> Mapping[str, Scalar]:
    """The settings bound to an objective, such as beta.

    Args:
        objective: a loss with its settings as keywords, perhaps wrapped by `with_nll` or
            `weighted_by_policy`; a bare loss has none.
    """
    if not isinstance(objective, functools.partial):
        return {}
    is_wrapper = objective.func in (_loss_with_nll, _loss_weighted_by_policy)
    return settings_of(objective.args[0]) if is_wrapper else objective.keywords


def _loss_with_nll(
    loss: Callable[..., LossOutput],
    nll_weight: Scalar,
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    **settings: Any,
) -> LossOutput:
    return _add_nll(loss(stats, masks, key_B, **settings), stats, nll_weight)


def _add_nll(output: LossOutput, stats: TokenStats, nll_weight: Scalar) -> LossOutput:
    nll_B = nll_weight * chosen_nll(stats)
    # A sum, because cpo and orpo have an NLL of their own, to which with_nll may add.
    reported_B = output.metrics.get("loss/nll", 0.0) + nll_B
    return LossOutput(output.loss_B + nll_B, output.metrics | {"loss/nll": reported_B})


def summed_log_ratio(stats: TokenStats) -> Float[Array, "B P"]:
    """Sum of the log-ratios of a response's tokens, in nats.

    Args:
        stats: only the two log-probabilities are read.
    """
    return response_sum(log_ratio(stats), stats.valid_BPT)


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

    def smoothed(margin_B: Float[Array, "B"]) -> Float[Array, "B"]:
        kept_B = negative_log_sigmoid(margin_B)
        flipped_B = negative_log_sigmoid(-margin_B)
        return (1 - label_smoothing) * kept_B + label_smoothing * flipped_B

    return compare(beta * summed_log_ratio(stats), smoothed)


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

    return compare(beta * summed_log_ratio(stats), unbiased)


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
    ratio_BP = response_mean(log_ratio(stats), stats.valid_BPT)
    return compare(ratio_BP, lambda margin_B: (margin_B - 1 / (2 * beta)) ** 2)


def dpo_norm_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """Length-normalised DPO: -log sigmoid(beta (avg r_c - avg r_r)).

    Args:
        beta: scale of the mean log-ratio, per nat, > 0; 5 for Tulu 3.

    References:
        Lambert et al., Tulu 3, arXiv 2411.15124, 2024, section 5.1.2.
    """
    return compare(beta * response_mean(log_ratio(stats), stats.valid_BPT))


def hinge_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """The hinge of SLiC on log-ratios, in RSO's form: relu(1 - beta D).

    Args:
        beta: scale of the reward, per nat, > 0.

    References:
        Zhao et al., SLiC-HF, arXiv 2305.10425, 2023; Liu et al., RSO, arXiv 2309.06657, 2023.
    """
    return compare(beta * summed_log_ratio(stats), lambda margin_B: jax.nn.relu(1 - margin_B))


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
    return compare(beta * response_mean(stats.logp_BPT, stats.valid_BPT), target=gamma)


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
    logp_BP = response_mean(stats.logp_BPT, stats.valid_BPT)
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
    logp_BP = jnp.minimum(response_mean(stats.logp_BPT, stats.valid_BPT), -eps)
    log_odds_BP = logp_BP - _log1mexp(logp_BP)
    compared = compare(log_odds_BP, lambda margin_B: odds_weight * negative_log_sigmoid(margin_B))
    return _add_nll(compared, stats, 1.0)


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
    return _add_nll(compare(beta * response_sum(stats.logp_BPT, stats.valid_BPT)), stats, alpha)


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
    ratio_BP = summed_log_ratio(stats)
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
    return compare(beta * summed_log_ratio(stats) + alpha * stats.valid_BPT.sum(-1))


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
    return compare(beta * response_mean(stats.logp_BPT, unsure_BPT), target=gamma)


def caldpo_loss(stats: TokenStats, masks: TokenMasks, key_B: PairKeys, *, beta: Scalar) -> LossOutput:
    """Cal-DPO: -log sigmoid(D) + [(sum r_c - 1/(2 beta))^2 + (sum r_r + 1/(2 beta))^2] / 2.

    Margin and rewards are reported without beta; `loss/calibration` is the second term.

    Args:
        beta: strength of the KL term, per nat, > 0. The log-ratios are driven to plus and minus 1/(2 beta).

    References:
        Xiao et al., Cal-DPO, arXiv 2412.14516, 2024.
    """
    ratio_BP = summed_log_ratio(stats)
    compared = compare(ratio_BP)
    scale = 1 / (2 * beta)
    calibration_B = ((ratio_BP[:, 0] - scale) ** 2 + (ratio_BP[:, 1] + scale) ** 2) / 2
    return LossOutput(compared.loss_B + calibration_B, compared.metrics | {"loss/calibration": calibration_B})
