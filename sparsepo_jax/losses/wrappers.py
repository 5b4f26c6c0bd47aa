"""What any objective can be wrapped in: likelihood, L1 of the masks, WPO's weights, a sum of objectives.

A wrapper takes an objective, `loss(stats, masks, key_B, **settings) -> LossOutput`, and gives another.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.tokens import response_mean
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import PairKeys, add_l1


def chosen_nll(stats: TokenStats) -> Float[Array, "B"]:
    """Mean negative log-likelihood of the chosen response's tokens.

    Args:
        stats: only the policy's log-probabilities are read.

    Returns:
        Nats per token, >= 0; 0 for a response without tokens, and for a single one that is not desirable.
    """
    nll_B = -response_mean(stats.logp_BPT[:, 0], stats.valid_BPT[:, 0])
    return nll_B if stats.desirable_BP is None else jnp.where(stats.desirable_BP[:, 0], nll_B, 0.0)


def with_nll(loss: Callable[..., LossOutput], nll_weight: float) -> Callable[..., LossOutput]:
    """The objective plus nll_weight times the chosen response's mean NLL, which is reported as `loss/nll`.

    Masks do not weigh the NLL.

    Args:
        loss: an objective of losses/.
        nll_weight: loss per nat and token, >= 0; 0 gives the objective itself.

    References:
        Pang et al., Iterative Reasoning Preference Optimization, arXiv 2404.19733, 2024.
    """
    return loss if nll_weight == 0 else Partial(_loss_with_nll, loss, nll_weight)


def weighted_by_policy(
    loss: Callable[..., LossOutput], *, aligned: bool = False
) -> Callable[..., LossOutput]:
    """The objective with each pair's loss times the policy's probability of its responses, as WPO has it.

    The weight is the product of both responses' mean probability, exp(avg log pi); it has no gradient and is
    reported as `loss/policy_weight`. Pairs that the policy itself might have written count most.

    Args:
        loss: an objective of losses/.
        aligned: divide each token's probability by the mean of those that the policy draws in its place, so
            that what the policy draws has a weight near 1 even where many tokens would do. It needs
            `stats.expected_BPT`.

    References:
        Zhou et al., WPO, arXiv 2406.11827, 2024, equation 2; the alignment as in TRL's DPOTrainer.
    """
    return Partial(_loss_weighted_by_aligned if aligned else _loss_weighted_by_policy, loss)


def _loss_weighted_by_policy(
    loss: Callable[..., LossOutput],
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    **settings: Any,
) -> LossOutput:
    return _weighted(loss(stats, masks, key_B, **settings), stats.logp_BPT, stats)


def _loss_weighted_by_aligned(
    loss: Callable[..., LossOutput],
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    **settings: Any,
) -> LossOutput:
    assert stats.expected_BPT is not None, "the problem reads the alignment"
    return _weighted(loss(stats, masks, key_B, **settings), stats.logp_BPT - stats.expected_BPT, stats)


def _weighted(output: LossOutput, logp_BPT: Float[Array, "B P T"], stats: TokenStats) -> LossOutput:
    """The output times exp of the sum of both responses' means of a log-probability."""
    logp_BP = response_mean(jax.lax.stop_gradient(logp_BPT), stats.valid_BPT)
    weight_B = jnp.exp(logp_BP.sum(axis=1))
    parts = {name: weight_B * x for name, x in output.metrics.items() if name.startswith("loss/")}
    return LossOutput(weight_B * output.loss_B, output.metrics | parts | {"loss/policy_weight": weight_B})


def with_l1(
    loss: Callable[..., LossOutput], *, l1_reward: Scalar, l1_kl: Scalar, shared: bool | Bool[Array, ""]
) -> Callable[..., LossOutput]:
    """The objective plus L1 of its masks, as SparsePO has it; see `token_weighted.add_l1`.

    Args:
        loss: an objective of losses/.
        l1_reward: loss per unit of the reward mask, >= 0.
        l1_kl: loss per unit of the KL mask, >= 0.
        shared: whether reward and KL have one mask.
    """
    return Partial(_loss_with_l1, loss, l1_reward, l1_kl, shared)


def _loss_with_l1(
    loss: Callable[..., LossOutput],
    l1_reward: Scalar,
    l1_kl: Scalar,
    shared: bool | Bool[Array, ""],
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    **settings: Any,
) -> LossOutput:
    output = loss(stats, masks, key_B, **settings)
    return add_l1(output, stats, masks, l1_reward=l1_reward, l1_kl=l1_kl, shared=shared)


def mixed(losses: Sequence[Callable[..., LossOutput]], weights: Sequence[float]) -> Callable[..., LossOutput]:
    """The sum of objectives, each times its weight.

    What part n adds is reported as `loss/part_n`, from 1; margin and rewards are those of the first part.

    Args:
        losses: objectives of losses/ with their settings.
        weights: one a loss, >= 0.

    References:
        Wang et al., Enhancing the Reasoning Ability of Multimodal LLMs via Mixed Preference Optimization
        (MPO), arXiv 2411.10442, 2024.
    """
    return Partial(_loss_of_mix, tuple(losses), tuple(weights))


def _loss_of_mix(
    losses: tuple[Callable[..., LossOutput], ...],
    weights: tuple[Scalar, ...],
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
) -> LossOutput:
    outputs = [loss(stats, masks, key_B) for loss in losses]
    parts_B = [weight * output.loss_B for weight, output in zip(weights, outputs, strict=True)]
    reported = {f"loss/part_{n}": part_B for n, part_B in enumerate(parts_B, start=1)}
    metrics = {name: x_B for name, x_B in outputs[0].metrics.items() if not name.startswith("loss/")}
    return LossOutput(jnp.stack(parts_B).sum(axis=0), metrics | reported)


def settings_of(objective: Callable[..., LossOutput]) -> Mapping[str, Scalar | None]:
    """The settings bound to an objective, such as beta. Some may be None, as alpha of f-DPO.

    Args:
        objective: a loss with its settings as keywords, perhaps in wrappers of this file; a bare loss has
            none.
    """
    if not isinstance(objective, functools.partial):
        return {}
    if objective.func is _loss_of_mix:  # the first part's, as its rewards are the ones reported
        return settings_of(objective.args[0][0])
    # A wrapper's first argument is what it wraps; a loss has its settings by keyword alone.
    return settings_of(objective.args[0]) if objective.args else objective.keywords


def _loss_with_nll(
    loss: Callable[..., LossOutput],
    nll_weight: Scalar,
    stats: TokenStats,
    masks: TokenMasks,
    key_B: PairKeys,
    **settings: Any,
) -> LossOutput:
    return add_nll(loss(stats, masks, key_B, **settings), stats, nll_weight)


def add_nll(output: LossOutput, stats: TokenStats, nll_weight: Scalar) -> LossOutput:
    """A loss plus nll_weight times the chosen response's mean NLL.

    Args:
        output: of an objective.
        stats: only the policy's log-probabilities are read.
        nll_weight: loss per nat and token, >= 0.
    """
    nll_B = nll_weight * chosen_nll(stats)
    # A sum, because cpo and orpo have an NLL of their own, to which with_nll may add.
    reported_B = output.metrics.get("loss/nll", 0.0) + nll_B
    return LossOutput(output.loss_B + nll_B, output.metrics | {"loss/nll": reported_B})
