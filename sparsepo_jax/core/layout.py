"""From rows of tokens to the response tokens in them, and from those to pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparsepo_jax.core.types import PairBatch


def at_tokens(x_RS: Float[Array, "R S ..."], at_RM: Int[Array, "R M"]) -> Float[Array, "R M ..."]:
    """What stands at the positions that predict each response token.

    Args:
        x_RS: one value or vector for each position of a row.
        at_RM: the column that predicts each response token, as in types.Packing.
    """
    return jax.vmap(lambda x_S, at_M: x_S[at_M])(x_RS, at_RM)


def to_pairs(x_RM: Float[Array, "*L R M"], batch: PairBatch) -> Float[Array, "*L B P T"]:
    """Numbers of response tokens by pair, response and token.

    Args:
        x_RM: one number for each response token of a row.
        batch: where each response token of a pair lies.

    Returns:
        The same numbers; 0, with zero gradient, where a response has no token.
    """
    slot_BPT = batch.slot_BPT
    R = x_RM.shape[-2]
    leading = x_RM.shape[:-2]
    slot_RX = slot_BPT.reshape(*(1,) * len(leading), R, -1)
    x_BPT = jnp.take_along_axis(x_RM, slot_RX, axis=-1).reshape(*leading, *slot_BPT.shape)
    return jnp.where(jnp.broadcast_to(batch.valid_BPT, x_BPT.shape), x_BPT, 0)
