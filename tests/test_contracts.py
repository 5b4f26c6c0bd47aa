"""Annotations are checked in tests: a wrong shape in any room, or a silent broadcast, is an error."""

import jax.numpy as jnp
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from helpers.tiny import NEOX, random_batch
from sparsepo_jax.core.layout import to_pairs
from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.losses.sequence import sft_nll
from sparsepo_jax.losses.token_weighted import dpo_loss
from sparsepo_jax.masks.fixed import normalise
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops.attention import attention, reach_of
from sparsepo_jax.ops.logprob_kl import logprob_best
from sparsepo_jax.train.metrics import pair_metrics


def statistics(tokens: int, ref_tokens: int) -> TokenStats:
    logp_BPT, ref_logp_BPT = jnp.zeros((2, 2, tokens)), jnp.zeros((2, 2, ref_tokens))
    return TokenStats(logp_BPT, ref_logp_BPT, jnp.zeros_like(logp_BPT), jnp.ones_like(logp_BPT, bool))


def masks(tokens: int) -> TokenMasks:
    return TokenMasks(jnp.ones((2, 2, tokens)), jnp.ones((2, 2, tokens)))


def call_core(n: int):
    batch = random_batch(rows=2)
    return to_pairs(jnp.zeros((n, batch.packing.at_RM.shape[1])), batch)


def call_losses(n: int):
    return sft_nll(jnp.zeros((2, n)), jnp.ones((2, 2), bool))


def call_losses_with_a_wrong_field(n: int):
    return dpo_loss(statistics(2, n), masks(2), None, beta=0.1)


def call_masks(n: int):
    return normalise(jnp.ones((3, 2, n)), jnp.ones((3, 2, 2), bool))


def call_ops(n: int):
    head_VD = jnp.ones((7, n))
    return logprob_best(jnp.ones((1, 3, 2)), head_VD, jnp.zeros((1, 3), int), jnp.ones((1, 3), bool))


def call_ops_attention(n: int):
    packing = random_batch().packing
    S = packing.ids_RS.shape[1]
    k_RSKH = jnp.ones((1, S, 1, n))
    return attention(jnp.ones((1, S, 2, 2)), k_RSKH, k_RSKH, reach_of(packing, "blocks"), scale=1.0)


def call_models(n: int):
    packing = random_batch(rows=2).packing
    decoder = Decoder(spec_from_hf(NEOX), rngs=nnx.Rngs(0))
    return decoder(packing.ids_RS[:n], packing.positions_RS, reach_of(packing, "blocks"))


def call_train(n: int):
    return pair_metrics(statistics(2, 2), masks(n), beta=1.0)


@pytest.mark.parametrize(
    "call",
    [
        call_core,
        call_losses,
        call_losses_with_a_wrong_field,
        call_masks,
        call_ops,
        call_ops_attention,
        call_models,
        call_train,
    ],
)
def test_a_wrong_dimension_is_caught(call):
    call(2)
    with pytest.raises(TypeCheckError):
        call(1)


def test_arrays_of_different_ranks_do_not_broadcast():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
