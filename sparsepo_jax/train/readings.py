"""What few objectives read of a token besides: its importance (TI-DPO), a learned baseline (TBPO-Q), how
probable the policy's own tokens are (WPO)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.layout import at_tokens, to_pairs
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch, TokenStats
from sparsepo_jax.masks.source import MaskSource
from sparsepo_jax.ops.attention import reach_of
from sparsepo_jax.ops.logprob_kl import logprob_kl
from sparsepo_jax.train.problem import Problem

BASELINE = "baseline."  # begins the paths of the baseline's weights, and the names of its tensors


def with_readings(
    problem: Problem,
    stats: TokenStats,
    weights: tuple[Weights, Weights, Weights | None],
    batch: PairBatch,
    states_RSD: Float[Array, "R S D"],
) -> TokenStats:
    """The statistics with what the objective reads besides.

    Args:
        problem: says what the objective reads.
        stats: without it.
        weights: the policy's, those of masks and baseline, the reference's or what the policy stands on.
        batch: pairs.
        states_RSD: the policy's, after the final norm.
    """
    policy, masks, base = weights
    if "importance" in problem.reads:
        stats = stats._replace(importance_BPT=token_importance(problem, policy, base, batch))
    if "baseline" in problem.reads:
        stats = stats._replace(baseline_BPT=token_baseline(masks, states_RSD, batch))
    if "alignment" in problem.reads:
        expected_BPT = expected_logp(problem, (policy, base), batch, states_RSD, stats.logp_BPT)
        stats = stats._replace(expected_BPT=expected_BPT)
    return stats


def expected_logp(
    problem: Problem,
    weights: tuple[Weights, Weights | None],
    batch: PairBatch,
    states_RSD: Float[Array, "R S D"],
    logp_BPT: Float[Array, "B P T"],
) -> Float[Array, "B P T"]:
    """log sum_v pi(v)^2 in each token's place: of the mean probability of the tokens that pi draws there.

    With z the logits, it is lse(2 z) - 2 lse(z) = 2 log pi(y) - (2 z_y - lse(2 z)) for any token y: one more
    pass over the vocabulary, of doubled logits.

    Args:
        problem: what is computed.
        weights: the policy's trained ones, and what they stand on under LoRA.
        batch: pairs.
        states_RSD: the policy's, after the final norm.
        logp_BPT: log pi of the tokens that are there.

    Returns:
        Nats, at most 0, without gradient; 0 outside responses.

    References:
        Zhou et al., WPO, arXiv 2406.11827, 2024: the alignment of weights.
    """
    model = problem.policy(*weights)
    packing = batch.packing
    states_RMD, head_VD = jax.lax.stop_gradient(model.head_inputs(at_tokens(states_RSD, packing.at_RM)))
    doubled_RM, _, _ = logprob_kl(
        states_RMD,
        head_VD,
        None,
        None,
        packing.label_RM,
        packing.valid_RM,
        blocks=problem.head_blocks._replace(keep=False),
        forms=(model.logit_form.doubled(),) * 2,
    )
    return jax.lax.stop_gradient(2 * logp_BPT - to_pairs(doubled_RM, batch))


def token_importance(
    problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch
) -> Float[Array, "B P T"]:
    """How strongly the largest logit at a response's end depends on the embedding of each of its tokens.

    The L1 norm of the gradient in the embedding, without dropout; a second forward and backward pass of the
    policy. The end is the position that predicts the last token. That token's own importance is 0: the
    models do not run it.

    Args:
        problem: what is computed.
        policy: the policy's trained weights.
        base: what they stand on under LoRA.
        batch: pairs.

    Returns:
        Importances, >= 0, without gradient; 0 outside responses.

    References:
        Yang et al., Token-Importance Guided Direct Preference Optimization, arXiv 2505.19653, 2025.
    """
    model = problem.policy(*jax.lax.stop_gradient((policy, base)))
    packing = batch.packing
    valid_BPT = batch.valid_BPT
    is_last_BPT = valid_BPT & ~_has_next(valid_BPT)

    def summed_logit(offset_RSD: Float[Array, "R S D"]) -> Float[Array, ""]:
        states_RSD, _ = model(
            packing.ids_RS,
            packing.positions_RS,
            reach_of(packing, problem.attention, problem.spread),
            constrain=problem.constrain,
            unroll=problem.unroll,
            dispatch=problem.dispatch,
            offset_BSD=offset_RSD,
        )
        # The slots of the last tokens: one state a response, so that few rows meet the head.
        slot_BP = jnp.where(is_last_BPT, batch.slot_BPT, 0).max(axis=-1)
        slot_RX = slot_BP.reshape(packing.ids_RS.shape[0], -1)
        at_RX = jnp.take_along_axis(packing.at_RM, slot_RX, axis=1)
        largest_RX = model.logits(at_tokens(states_RSD, at_RX)).max(axis=-1)
        return jnp.where(valid_BPT.any(axis=-1), largest_RX.reshape(slot_BP.shape), 0.0).sum()

    R, S = packing.ids_RS.shape
    slope_RSD = jax.grad(summed_logit)(jnp.zeros((R, S, model.spec.width), problem.dtype))
    size_RS = jnp.abs(slope_RSD.astype(jnp.float32)).sum(axis=-1)
    return jax.lax.stop_gradient(_at_own(size_RS, batch))


def _at_own(x_RS: Float[Array, "R S"], batch: PairBatch) -> Float[Array, "B P T"]:
    """What stands in each response token's own column; 0 for the last one, which is not run.

    It is not the column that predicts the next one: other turns may stand between them.
    """
    own_RM = batch.packing.own_RM
    is_run_RM = own_RM < x_RS.shape[1]
    x_RM = at_tokens(x_RS, jnp.where(is_run_RM, own_RM, 0))
    return to_pairs(jnp.where(is_run_RM, x_RM, jnp.zeros_like(x_RM)), batch)


def _has_next(valid_BPT: Bool[Array, "B P T"]) -> Bool[Array, "B P T"]:
    """True on all tokens of a response but its last."""
    return valid_BPT & jnp.roll(valid_BPT, -1, axis=-1).at[..., -1].set(False)


@functools.cache
def with_baseline(source: MaskSource, width: int) -> MaskSource:
    """A source of masks beside whose weights those of a baseline are trained, which gives 0 at the start.

    Args:
        source: of the masks.
        width: of the policy's states.
    """

    def init(rngs: nnx.Rngs) -> Weights:
        head = {f"{BASELINE}weight": jnp.zeros(width), f"{BASELINE}bias": jnp.zeros(())}
        return source.init(rngs) | head

    return source._replace(init=init)


def split_baseline(weights: Weights) -> tuple[Weights, Weights]:
    """(the weights of mask nets, those of the baseline).

    Args:
        weights: both, by path.
    """
    nets = {path: x for path, x in weights.items() if not path.startswith(BASELINE)}
    return nets, {path: x for path, x in weights.items() if path.startswith(BASELINE)}


def token_baseline(
    masks: Weights, states_RSD: Float[Array, "R S D"], batch: PairBatch
) -> Float[Array, "B P T"]:
    """w . h + b of the policy's state h that predicts each token. No gradient reaches the policy through it.

    Args:
        masks: weights of masks and baseline.
        states_RSD: the policy's, after the final norm.
        batch: pairs.

    References:
        Nguyen et al., TokenRatio, arXiv 2605.12288, 2026: TBPO-Q.
    """
    packing = batch.packing
    states_RMD = jax.lax.stop_gradient(at_tokens(states_RSD, packing.at_RM)).astype(jnp.float32)
    # Padding may hold anything, NaN included, so it must not meet the weights.
    states_RMD = jnp.where(packing.valid_RM[..., None], states_RMD, 0.0)
    weight_D, bias = masks[f"{BASELINE}weight"], masks[f"{BASELINE}bias"]
    return to_pairs(jnp.einsum("RMD,D->RM", states_RMD, weight_D, precision="highest") + bias, batch)
