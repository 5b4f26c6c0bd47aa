"""From rows of tokens to the response tokens in them, and from those to pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparsepo_jax.core.types import PairBatch


def at_tokens(x_RS: Float[Array, "R S ..."], at_RM: Int[Array, "R M"]) -> Float[Array, "R M ..."]:
    """What stands at the positions that predict each response token, row by row."""
    return jax.vmap(lambda x_S, at_M: x_S[at_M])(x_RS, at_RM)


def to_pairs(x_RM: Float[Array, "*L R M"], batch: PairBatch) -> Float[Array, "*L B P T"]:
    """A number of each response token, by pair, response and token; 0, with zero gradient, where there is none."""
    R, slot_BPT = batch.packing.at_RM.shape[0], batch.slot_BPT
    found = jnp.take_along_axis(x_RM, slot_BPT.reshape(*(1,) * (x_RM.ndim - 2), R, -1), axis=-1)
    return jnp.where(batch.valid_BPT, found.reshape(*x_RM.shape[:-2], *slot_BPT.shape), 0)
