"""One pass: a batch of pairs through policy and reference gives per-token statistics and masks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.draws import Draw, keys_for
from sparsepo_jax.core.layout import at_tokens, to_pairs
from sparsepo_jax.core.tokens import response_sum
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch, TokenMasks, TokenStats
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.ops.attention import Packed, reach_of
from sparsepo_jax.ops.logprob_kl import logprob_best, logprob_kl
from sparsepo_jax.ops.routing import RouterSums, choice_counts, probability_sums
from sparsepo_jax.train.problem import Problem, pair_keys
from sparsepo_jax.train.readings import with_readings


def forward(
    problem: Problem,
    policy: Weights,
    masks: Weights,
    reference: Weights | None,
    batch: PairBatch,
    key_B: Key[Array, "B"] | None,
    *,
    training: bool,
    step: Int[Array, ""] | None = None,
) -> tuple[TokenStats, TokenMasks, RouterSums | None]:
    """Statistics and masks of every response token, and what the policy's routers did.

    The reference is computed as the policy is (same kernels, same types), so that equal weights give
    log-ratios and KL of exactly 0.

    Args:
        problem: what is computed.
        policy: the policy's trained weights (under LoRA the adapters).
        masks: weights of the mask nets, {} if there are none.
        reference: the reference's weights; under LoRA also the policy's base.
        batch: pairs.
        key_B: a key a pair, for dropout and for masks that are drawn; None: neither is there.
        training: switches dropout on.
        step: batches trained on before this one, for masks that change with it; None: nothing is trained.

    Returns:
        (statistics, whose KL is 0 where the problem is cached; masks; sums over the policy's routers, None if
        it has none).
    """
    dropout_key_B = key_B if training else None
    if problem.cached:
        policy_model = problem.policy(policy, reference)
        policy_states_RSD, routers = _policy_states(problem, policy_model, batch, dropout_key_B)
        stats, _ = _statistics(problem, batch, (policy_model, policy_states_RSD))
        if batch.ref_logp_BPT is None:
            raise ValueError("a cached problem needs batches with the reference's log-probs")
        stats = stats._replace(ref_logp_BPT=batch.ref_logp_BPT)
        stats = with_readings(problem, stats, (policy, masks, reference), batch, policy_states_RSD)
        with jax.named_scope("masks"):
            return stats, problem.mask_source.make(masks, {}, batch, stats, key_B, training, step), routers
    policy_model = problem.policy(policy, reference)
    reference_model = problem.reference(reference)
    ref_states_RSD, kept = _reference_states(problem, reference_model, batch)
    policy_states_RSD, routers = _policy_states(
        problem, policy_model, batch, dropout_key_B, kept.pop("router_choice", None)
    )
    stats, (ref_states_RMD, ref_head_VD) = _statistics(
        problem, batch, (policy_model, policy_states_RSD), (reference_model, ref_states_RSD)
    )
    stats = with_readings(problem, stats, (policy, masks, reference), batch, policy_states_RSD)
    with jax.named_scope("masks"):
        kept["logits"] = _mean_logits(reference_model, ref_states_RMD, ref_head_VD)
        return stats, problem.mask_source.make(masks, kept, batch, stats, key_B, training, step), routers


def response_logp(
    problem: Problem,
    policy: Weights,
    base: Weights | None,
    batch: PairBatch,
    key_B: Key[Array, "B"] | None = None,
) -> tuple[TokenStats, RouterSums | None]:
    """The policy's side of the statistics alone, as sft needs it, and what its routers did.

    Args:
        problem: what is computed.
        policy: the policy's trained weights.
        base: what they stand on under LoRA, else None or unused.
        batch: pairs, or single responses.
        key_B: a key a pair switches dropout in the adapters on; None: no dropout.

    Returns:
        (statistics whose reference is the policy itself, detached, at a KL of zero; sums over the routers,
        None if there are none).
    """
    model = problem.policy(policy, base)
    states_RSD, routers = _policy_states(problem, model, batch, key_B)
    return _statistics(problem, batch, (model, states_RSD))[0], routers


def response_log_ratio(
    problem: Problem, policy: Weights, reference: Weights | None, batch: PairBatch
) -> Float[Array, "B P"]:
    """log pi(y) - log pi_ref(y) of responses, summed over tokens, in nats.

    Averaged over responses that pi has drawn, it estimates KL(pi || ref).

    Args:
        problem: what is computed.
        policy: the policy's trained weights.
        reference: the reference's weights; under LoRA also the policy's base.
        batch: responses to be scored.
    """

    def log_prob(model: Decoder) -> Float[Array, "B P"]:
        states_RSD, _ = _policy_states(problem, model, batch, None)
        stats, _ = _statistics(problem, batch, (model, states_RSD))
        return response_sum(stats.logp_BPT, batch.valid_BPT)

    return log_prob(problem.policy(policy, reference)) - log_prob(problem.reference(reference))


def response_greedy(
    problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch
) -> tuple[Float[Array, "B P"], Bool[Array, "B P"]]:
    """Log-probs of responses, and whether greedy decoding would write them.

    Args:
        problem: what is computed.
        policy: the policy's trained weights.
        base: what they stand on under LoRA, else None or unused.
        batch: responses to be scored.

    Returns:
        (log pi(y) summed over tokens, in nats; whether no token is more probable than the one that is there).
    """
    model = problem.policy(policy, base)
    packing = batch.packing
    states_RSD, _ = _policy_states(problem, model, batch, None)
    states_RMD, head_VD = model.head_inputs(at_tokens(states_RSD, packing.at_RM))
    logp_RM, best_RM = logprob_best(
        states_RMD,
        head_VD,
        packing.label_RM,
        packing.valid_RM,
        blocks=problem.head_blocks,
        form=model.logit_form,
    )
    logp_BPT = to_pairs(logp_RM, batch)
    best_BPT = to_pairs(best_RM, batch)
    return response_sum(logp_BPT, batch.valid_BPT), (logp_BPT >= best_BPT).all(axis=-1)


def reference_tokens(
    problem: Problem, reference: Weights | None, batch: PairBatch
) -> tuple[Float[Array, "B P T"], Float[Array, "B P T"] | None]:
    """What a cache keeps of the reference, token by token.

    Args:
        problem: what is computed.
        reference: the reference's weights.
        batch: pairs.

    Returns:
        (log-probs in nats; the mask that is read off the reference's activations, None if the objective has
        no such mask).
    """
    model = problem.reference(reference)
    states_RSD, kept = _reference_states(problem, model, batch)
    stats, head_inputs = _statistics(problem, batch, (model, states_RSD))
    if not problem.mask_source.reads_activations:
        return stats.logp_BPT, None
    kept["logits"] = _mean_logits(model, *head_inputs)
    key_B = pair_keys(problem.seed, 0, batch.row_B)  # such a mask draws nothing
    return stats.logp_BPT, problem.mask_source.make({}, kept, batch, stats, key_B, False).reward_BPT


def _inputs(problem: Problem, batch: PairBatch) -> tuple[Int[Array, "R S"], Int[Array, "R S"], Packed]:
    """The positional arguments of a model."""
    packing = batch.packing
    R, Q, _ = packing.column_RQW.shape
    B, P, _ = batch.valid_BPT.shape
    reach = reach_of(packing, problem.attention, problem.spread, branched=R * Q < B * P)
    return packing.ids_RS, packing.positions_RS, reach


def _policy_states(
    problem: Problem,
    model: Decoder,
    batch: PairBatch,
    key_B: Key[Array, "B"] | None,
    choice_LRSK: Int[Array, "L R S K"] | None = None,
) -> tuple[Float[Array, "R S D"], RouterSums | None]:
    """The final states of a model, and what its routers did; None: it has none.

    Args:
        problem: what is computed.
        model: which may have dropout.
        batch: pairs.
        key_B: a key a pair for dropout; None: there is none.
        choice_LRSK: the experts that tokens are sent to; None: those that the model's routers choose.
    """
    valid_RS = batch.packing.sequence_RS >= 0

    def tap(name: str, x_RSX: Array) -> Array | None:
        if name == "router_logits":
            return probability_sums(x_RSX, valid_RS)
        if name == "router_choice":
            assert model.spec.mixture is not None
            return choice_counts(x_RSX, model.spec.mixture.experts, valid_RS)
        return None

    with jax.named_scope("policy"):
        states_RSD, kept = model(
            *_inputs(problem, batch),
            tap=tap,
            constrain=problem.constrain,
            dropout_key_BS=_dropout_keys(problem, batch, key_B),
            unroll=problem.unroll,
            dispatch=problem.dispatch,
            choice_LBSK=choice_LRSK,
            sums=problem.sums,
        )
    if not kept:
        return states_RSD, None
    tokens = valid_RS.sum(dtype=jnp.float32)
    return states_RSD, RouterSums(kept["router_choice"], kept["router_logits"], tokens)


def _reference_states(
    problem: Problem, model: Decoder, batch: PairBatch
) -> tuple[Float[Array, "R S D"], dict[str, Any]]:
    """The reference's final states, and what the masks read of its activations, by name.

    If the policy replays its routing, the experts that it chose are among the latter. Nothing of it is
    differentiated, so that XLA keeps nothing of it for the backward pass.
    """

    def tap(name: str, x_RSD: Array) -> Any:
        if name == "router_choice":
            return x_RSD if problem.replays_routing else None
        return problem.mask_source.keep(name, x_RSD, batch.packing.at_RM)

    with jax.named_scope("reference"):
        outputs = model(
            *_inputs(problem, batch),
            tap=tap,
            constrain=problem.constrain,
            unroll=problem.unroll,
            dispatch=problem.dispatch,
        )
        return jax.lax.stop_gradient(outputs)


def _statistics(
    problem: Problem,
    batch: PairBatch,
    policy: tuple[Decoder, Array],
    reference: tuple[Decoder, Array] | None = None,
) -> tuple[TokenStats, tuple[Array, Array]]:
    """Statistics from models and their final states [R, S, D].

    Returns:
        (statistics, (states [R, M, D], head [V, D]) of the last model at response tokens, as constants).
    """
    packing = batch.packing
    with jax.named_scope("logprob_kl"):
        model, states_RSD = policy
        states_RMD, head_VD = model.head_inputs(at_tokens(states_RSD, packing.at_RM))
        last = states_RMD, head_VD
        form = ref_form = model.logit_form
        ref_states_RMD = ref_head_VD = None
        if reference is not None:
            ref_model, ref_states_RSD = reference
            ref_states_RMD, ref_head_VD = ref_model.head_inputs(at_tokens(ref_states_RSD, packing.at_RM))
            last = ref_states_RMD, ref_head_VD
            ref_form = ref_model.logit_form
        numbers_RM = logprob_kl(
            states_RMD,
            head_VD,
            ref_states_RMD,
            ref_head_VD,
            packing.label_RM,
            packing.valid_RM,
            blocks=problem.head_blocks,
            forms=(form, ref_form),
        )
        logp_BPT, ref_logp_BPT, kl_BPT = (to_pairs(x_RM, batch) for x_RM in numbers_RM)
        stats = TokenStats(logp_BPT, ref_logp_BPT, kl_BPT, batch.valid_BPT)
        return stats, jax.lax.stop_gradient(last)


def _mean_logits(model: Decoder, states_RMD: Array, head_VD: Array) -> Float[Array, "R M"]:
    """The mean logit over the vocabulary, as the product with the head's mean row.

    No logits are needed for it, and XLA drops it where no mask reads it.
    """
    states_RMD, mean_D = states_RMD.astype(jnp.float32), head_VD.mean(axis=0, dtype=jnp.float32)
    return jnp.einsum("RMD,D->RM", states_RMD, mean_D, precision="highest") * model.logit_form.scale


def _dropout_keys(
    problem: Problem, batch: PairBatch, key_B: Key[Array, "B"] | None
) -> Key[Array, "R S"] | None:
    """A key for each position, from its pair's key and its column in the pair; None: no dropout.

    So a draw does not depend on what else lies in the row.
    """
    if key_B is None or not problem.adapted:
        return None
    sequence_RS, column_RQW = batch.packing.sequence_RS, batch.packing.column_RQW
    R = sequence_RS.shape[0]
    pairs = len(key_B) // R  # of a row of tokens
    sequences = column_RQW.shape[1] // pairs  # of a pair
    pair_RS = jnp.maximum(sequence_RS, 0) // sequences
    begin_RS = jnp.take_along_axis(column_RQW[:, :, 0], pair_RS * sequences, axis=1)
    pair_key_RB = keys_for(Draw.ADAPTER_DROPOUT, key_B).reshape(R, pairs)
    key_RS = jax.vmap(lambda key_B, pair_S: key_B[pair_S])(pair_key_RB, pair_RS)
    column_RS = jnp.arange(sequence_RS.shape[1])[None] - begin_RS
    return jax.vmap(jax.vmap(jax.random.fold_in))(key_RS, column_RS)
