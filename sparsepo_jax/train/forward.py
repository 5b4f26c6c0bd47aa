"""One pass: a batch of pairs through policy and reference gives per-token statistics and masks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.layout import at_tokens, to_pairs
from sparsepo_jax.core.tokens import response_sum
from sparsepo_jax.core.tree import Weights, merge_module
from sparsepo_jax.core.types import LossOutput, PairBatch, Scalar, TokenMasks, TokenStats
from sparsepo_jax.masks.source import MaskSource
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.lora import split_adapters
from sparsepo_jax.ops.attention import AttentionKernel, reach_of
from sparsepo_jax.ops.logprob_kl import HeadBlocks, logprob_best, logprob_kl
from sparsepo_jax.ops.splash_attention import Spread


class Problem(NamedTuple):
    """What is optimised and how it is computed; everything but weights and data.

    To jitted functions it is an argument, a pytree whose leaves are numbers: the objective's settings (if it is a jax.tree_util.Partial), beta and
    seed. All else is compared, and must be found equal: problems that differ in numbers alone have one program.

    objective(stats, masks, key_B) -> LossOutput; beta scales the unmasked margin that is reported. adapted: the policy is the reference's base
    with adapters (LoRA); the weights that are trained are those of the adapters alone. The reference may have adapters of its own, which stay. cached: what the objective needs of the reference comes with
    the batch, and the reference is not run: the KL is unknown. constrain: pins the sharding of rows of states; spread: runs on each device what XLA
    cannot cut, see ops/splash_attention.
    """

    policy_graph: nnx.GraphDef
    reference_graph: nnx.GraphDef
    mask_source: MaskSource
    objective: Callable[[TokenStats, TokenMasks, Array], LossOutput]
    beta: Scalar
    seed: int | Int[Array, ""]
    attention: AttentionKernel = "blocks"
    head_blocks: HeadBlocks = HeadBlocks()
    constrain: Callable[[Array], Array] = lambda x: x
    spread: Spread | None = None
    adapted: bool = False
    cached: bool = False

    def policy_weights(self, trained: Weights, base: Weights | None) -> Weights:
        """All weights of the policy, from those that are trained and, under adapters, those that are not. Adapters of the reference's own are left out."""
        return {**split_adapters(base)[0], **trained} if self.adapted else trained

    def policy(self, trained: Weights, base: Weights | None) -> Decoder:
        """The policy, from the same."""
        return merge_module(self.policy_graph, self.policy_weights(trained, base))


jax.tree_util.register_pytree_node(
    Problem,
    lambda problem: (
        (problem.objective, problem.beta, problem.seed),
        problem._replace(objective=None, beta=None, seed=None),
    ),
    lambda structure, numbers: structure._replace(objective=numbers[0], beta=numbers[1], seed=numbers[2]),
)


def pair_keys(seed: int | Int[Array, ""], step: Array, row_B: Array) -> Array:
    """One random key a pair, from seed, step and row: draws do not depend on batching, accumulation or hosts."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)


def forward(
    problem: Problem,
    policy: Weights,
    masks: Weights,
    reference: Weights,
    batch: PairBatch,
    key_B: Array,
    *,
    training: bool,
) -> tuple[TokenStats, TokenMasks]:
    """Statistics and masks of every response token. The reference is run as the policy is, so that equal weights give exactly r = k = 0."""
    if problem.cached:
        stats = response_logp(problem, policy, reference, batch, key_B if training else None)._replace(
            ref_logp_BPT=batch.ref_logp_BPT
        )
        return stats, problem.mask_source.make(masks, {}, batch, stats, key_B, training)
    policy_model, reference_model = (
        problem.policy(policy, reference),
        merge_module(problem.reference_graph, reference),
    )
    inputs, at_RM = _inputs(problem, batch), batch.packing.at_RM
    states_RSD, _ = policy_model(
        *inputs,
        constrain=problem.constrain,
        dropout_key_BS=_dropout_keys(problem, batch, key_B if training else None),
    )
    # Nothing of the reference is differentiated: XLA keeps none of it for the backward pass.
    ref_states_RSD, kept = jax.lax.stop_gradient(
        reference_model(
            *inputs, tap=lambda name, x: problem.mask_source.keep(name, x, at_RM), constrain=problem.constrain
        )
    )
    stats, (ref_states_RMD, ref_head_VD) = _statistics(
        problem, batch, (policy_model, states_RSD), (reference_model, ref_states_RSD)
    )
    kept["logits"] = _mean_logits(ref_states_RMD, ref_head_VD)
    return stats, problem.mask_source.make(masks, kept, batch, stats, key_B, training)


def response_logp(
    problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch, key_B: Array | None = None
) -> TokenStats:
    """The policy's side alone (sft): ref_logp is its own, the KL zero. key_B switches the adapters' dropout on."""
    return _own_logp(problem, problem.policy(policy, base), batch, key_B)


def response_log_ratio(
    problem: Problem, policy: Weights, reference: Weights, batch: PairBatch
) -> Float[Array, "B P"]:
    """log pi(y) - log pi_ref(y) of whole responses, nats: of responses drawn from pi, on average KL(pi || ref)."""
    models = problem.policy(policy, reference), merge_module(problem.reference_graph, reference)
    of_policy, of_reference = (
        response_sum(_own_logp(problem, model, batch, None).logp_BPT, batch.valid_BPT) for model in models
    )
    return of_policy - of_reference


def response_greedy(
    problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch
) -> tuple[Float[Array, "B P"], Bool[Array, "B P"]]:
    """log pi(y) of whole responses, nats, and whether greedy decoding writes them: no token is more probable than the one that is there."""
    model, packing = problem.policy(policy, base), batch.packing
    states_RSD, _ = model(*_inputs(problem, batch), constrain=problem.constrain)
    states_RMD, head_VD = model.head_inputs(at_tokens(states_RSD, packing.at_RM))
    found = logprob_best(
        states_RMD,
        head_VD,
        packing.label_RM,
        packing.valid_RM,
        blocks=problem.head_blocks,
        softcap=model.spec.logit_softcap,
    )
    logp_BPT, best_BPT = (to_pairs(x_RM, batch) for x_RM in found)
    return response_sum(logp_BPT, batch.valid_BPT), (logp_BPT >= best_BPT).all(axis=-1)


def reference_tokens(
    problem: Problem, reference: Weights, batch: PairBatch
) -> tuple[Float[Array, "B P T"], Float[Array, "B P T"] | None]:
    """The reference's log-prob of each response token, and the mask that is read off its activations (None: the objective has no such mask)."""
    model = merge_module(problem.reference_graph, reference)
    tap = lambda name, x: problem.mask_source.keep(name, x, batch.packing.at_RM)
    states_RSD, kept = model(*_inputs(problem, batch), tap=tap, constrain=problem.constrain)
    stats, head_inputs = _statistics(problem, batch, (model, states_RSD))
    if not problem.mask_source.reads_activations:
        return stats.logp_BPT, None
    kept["logits"] = _mean_logits(*head_inputs)
    return stats.logp_BPT, problem.mask_source.make({}, kept, batch, stats, None, False).reward_BPT


def _inputs(problem: Problem, batch: PairBatch) -> tuple:
    return (
        batch.packing.ids_RS,
        batch.packing.positions_RS,
        reach_of(batch.packing, problem.attention, problem.spread),
    )


def _statistics(
    problem: Problem,
    batch: PairBatch,
    policy: tuple[Decoder, Array],
    reference: tuple[Decoder, Array] | None = None,
) -> tuple[TokenStats, tuple[Array, Array]]:
    """Statistics from final states [R, S, D], and what the last model's head reads at response tokens, a constant."""
    sides = [side for side in (policy, reference) if side is not None]
    heads = []
    for model, states_RSD in sides:
        heads.append(model.head_inputs(at_tokens(states_RSD, batch.packing.at_RM)))
    softcaps = [model.spec.logit_softcap for model, _ in sides]
    if reference is None:
        heads, softcaps = [*heads, (None, None)], [*softcaps, None]
    numbers_RM = logprob_kl(
        *heads[0],
        *heads[1],
        batch.packing.label_RM,
        batch.packing.valid_RM,
        blocks=problem.head_blocks,
        softcaps=tuple(softcaps),
    )
    stats = TokenStats(*(to_pairs(x_RM, batch) for x_RM in numbers_RM), batch.valid_BPT)
    return stats, jax.lax.stop_gradient(heads[len(sides) - 1])


def _mean_logits(states_RMD: Array, head_VD: Array) -> Float[Array, "R M"]:
    """The mean logit over the vocabulary is the product with the head's mean row: no logits are needed (dropped by XLA where unused)."""
    return jnp.einsum("RMD,D->RM", states_RMD.astype(jnp.float32), head_VD.mean(axis=0))


def _own_logp(problem: Problem, model: Decoder, batch: PairBatch, key_B: Array | None) -> TokenStats:
    states_RSD, _ = model(
        *_inputs(problem, batch),
        constrain=problem.constrain,
        dropout_key_BS=_dropout_keys(problem, batch, key_B),
    )
    return _statistics(problem, batch, (model, states_RSD))[0]


def _dropout_keys(problem: Problem, batch: PairBatch, key_B: Array | None) -> Array | None:
    """A key for each position, from its pair's (by others than masks and objectives draw with) and its column in the pair: draws do not depend on
    what else lies in the row. None: no dropout."""
    if key_B is None or not problem.adapted:
        return None
    sequence_RS, column_RQW = batch.packing.sequence_RS, batch.packing.column_RQW
    R, pairs = sequence_RS.shape[0], len(key_B) // sequence_RS.shape[0]
    per_pair = column_RQW.shape[1] // pairs  # sequences
    pair_RS, first_RS = (jnp.maximum(sequence_RS, 0) // per_pair * n for n in (1, per_pair))
    begin_RS = jnp.take_along_axis(column_RQW[:, :, 0], first_RS, axis=1)
    key_RS = jax.vmap(lambda key, pair: key[pair])(
        jax.vmap(jax.random.fold_in, (0, None))(key_B, 1000).reshape(R, pairs), pair_RS
    )
    return jax.vmap(jax.vmap(jax.random.fold_in))(key_RS, jnp.arange(sequence_RS.shape[1]) - begin_RS)
