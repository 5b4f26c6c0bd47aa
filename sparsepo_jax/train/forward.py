"""One pass: a batch of pairs through policy and reference gives per-token statistics and masks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sparsepo_jax.core.layout import Rows, lay_out
from sparsepo_jax.core.tokens import response_sum
from sparsepo_jax.core.tree import Weights, merge_module
from sparsepo_jax.core.types import LossOutput, PairBatch, TokenMasks, TokenStats
from sparsepo_jax.masks.source import MaskSource
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.ops.logprob_kl import logprob_kl


class Problem(NamedTuple):
    """What is optimised and how it is computed; everything but weights and data. Static: closed over by jitted functions.

    objective(stats, masks, key_B) -> LossOutput; beta scales the unmasked margin that is reported. adapted: the policy is the reference with
    adapters (LoRA); the weights that are trained are those of the adapters alone. cached: what the objective needs of the reference comes with
    the batch, and the reference is not run: the KL is unknown.
    """

    policy_graph: nnx.GraphDef
    reference_graph: nnx.GraphDef
    mask_source: MaskSource
    objective: Callable[[TokenStats, TokenMasks, Array], LossOutput]
    beta: float
    seed: int
    shared_layout: bool = True
    logit_chunk: int = 512
    constrain: Callable[[Array], Array] = lambda x: x
    adapted: bool = False
    cached: bool = False

    def policy(self, trained: Weights, base: Weights | None) -> Decoder:
        """The policy, from the weights that are trained and, under adapters, those that are not."""
        return merge_module(self.policy_graph, {**base, **trained} if self.adapted else trained)


def pair_keys(seed: int, step: Array, row_B: Array) -> Array:
    """One random key a pair, from seed, step and row: draws do not depend on batching, accumulation or hosts."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)


def forward(
    problem: Problem, policy: Weights, masks: Weights, reference: Weights, batch: PairBatch, key_B: Array, *, training: bool
) -> tuple[TokenStats, TokenMasks]:
    """Statistics and masks of every response token. The reference is run as the policy is, so that equal weights give exactly r = k = 0."""
    if problem.cached:
        stats = response_logp(problem, policy, reference, batch, key_B if training else None)._replace(ref_logp_BPT=batch.ref_logp_BPT)
        return stats, problem.mask_source.make(masks, {}, batch, stats, key_B, training)
    rows = lay_out(batch, shared=problem.shared_layout)
    policy_model, reference_model = problem.policy(policy, reference), merge_module(problem.reference_graph, reference)
    inputs = rows.ids_BS, rows.positions_BS, rows.attend_BSS
    run = {"constrain": problem.constrain, "split": rows.split}
    states_BSD, _ = policy_model(*inputs, **run, key_B=_dropout_keys(key_B, rows) if training and problem.adapted else None)
    # Nothing of the reference is differentiated: XLA keeps none of it for the backward pass.
    ref_states_BSD, kept = jax.lax.stop_gradient(
        reference_model(*inputs, tap=lambda name, x: problem.mask_source.keep(name, x, rows), **run)
    )
    ref_states_BPTD, ref_head_VD = jax.lax.stop_gradient(reference_model.head_inputs(rows.at_responses(ref_states_BSD)))
    kept["logits"] = _mean_logits(ref_states_BPTD, ref_head_VD)
    stats = logprob_kl(
        *policy_model.head_inputs(rows.at_responses(states_BSD)), ref_states_BPTD, ref_head_VD, batch.response_BPT, batch.valid_BPT,
        chunk_tokens=problem.logit_chunk, softcaps=(policy_model.spec.logit_softcap, reference_model.spec.logit_softcap),
    )
    return stats, problem.mask_source.make(masks, kept, batch, stats, key_B, training)


def response_logp(problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch, key_B: Array | None = None) -> TokenStats:
    """The policy's side alone (sft): ref_logp is its own, the KL zero. key_B switches the adapters' dropout on."""
    return _own_logp(problem, problem.policy(policy, base), batch, key_B)


def response_log_ratio(problem: Problem, policy: Weights, reference: Weights, batch: PairBatch) -> Float[Array, "B P"]:
    """log pi(y) - log pi_ref(y) of whole responses, nats: of responses drawn from pi, on average KL(pi || ref)."""
    models = problem.policy(policy, reference), merge_module(problem.reference_graph, reference)
    of_policy, of_reference = (response_sum(_own_logp(problem, model, batch, None).logp_BPT, batch.valid_BPT) for model in models)
    return of_policy - of_reference


def reference_tokens(problem: Problem, reference: Weights, batch: PairBatch) -> tuple[Float[Array, "B P T"], Float[Array, "B P T"] | None]:
    """The reference's log-prob of each response token, and the mask that is read off its activations (None: the objective has no such mask)."""
    rows, model = lay_out(batch, shared=problem.shared_layout), merge_module(problem.reference_graph, reference)
    tap = lambda name, x: problem.mask_source.keep(name, x, rows)  # noqa: E731
    states_BSD, kept = model(rows.ids_BS, rows.positions_BS, rows.attend_BSS, tap=tap, constrain=problem.constrain, split=rows.split)
    stats, states_BPTD = _logp_of(problem, model, states_BSD, rows, batch)
    if not problem.mask_source.reads_activations:
        return stats.logp_BPT, None
    kept["logits"] = _mean_logits(*model.head_inputs(states_BPTD))
    return stats.logp_BPT, problem.mask_source.make({}, kept, batch, stats, None, False).reward_BPT


def _mean_logits(states_BPTD: Array, head_VD: Array) -> Float[Array, "B P T"]:
    """The mean logit over the vocabulary is the product with the head's mean row: no logits are needed (dropped by XLA where unused)."""
    return jnp.einsum("BPTD,D->BPT", states_BPTD.astype(jnp.float32), head_VD.mean(axis=0))


def _own_logp(problem: Problem, model: Decoder, batch: PairBatch, key_B: Array | None) -> TokenStats:
    rows = lay_out(batch, shared=problem.shared_layout)
    keys = _dropout_keys(key_B, rows) if key_B is not None and problem.adapted else None
    states_BSD, _ = model(rows.ids_BS, rows.positions_BS, rows.attend_BSS, constrain=problem.constrain, key_B=keys, split=rows.split)
    return _logp_of(problem, model, states_BSD, rows, batch)[0]


def _logp_of(problem: Problem, model: Decoder, states_BSD: Array, rows: Rows, batch: PairBatch) -> tuple[TokenStats, Array]:
    """One model's log-probs, and its states at the positions that predict response tokens."""
    states_BPTD = rows.at_responses(states_BSD)
    stats = logprob_kl(*model.head_inputs(states_BPTD), None, None, batch.response_BPT, batch.valid_BPT, chunk_tokens=problem.logit_chunk,
                       softcaps=(model.spec.logit_softcap, None))
    return stats, states_BPTD


def _dropout_keys(key_B: Array, rows: Rows) -> Array:
    """A key for each row of the decoder, of which a pair may have several; others than masks and objectives draw with."""
    key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, 1000)
    if rows.ids_BS.shape[0] == len(key_B):
        return key_B
    return jax.vmap(lambda key: jax.random.split(key, rows.num_responses))(key_B).reshape(-1)
