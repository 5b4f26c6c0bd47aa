"""A key a pair, and the numbers of its own that each part of a step draws from it.

Parts that drew from the same key would draw the same numbers: SamPO would keep the very tokens to which a
random mask gives the smallest weights.
"""

import enum

import jax
from jaxtyping import Array, Key


class Draw(enum.IntEnum):
    """What draws. 0 and 1 are taken: random masks and the nets' dropout draw from the pair's key itself."""

    GATE = 2
    SAMPO = 3
    KL_NET = 4
    ADAPTER_DROPOUT = 1000


def keys_for(draw: Draw, key_B: Key[Array, "B"]) -> Key[Array, "B"]:
    """The keys of one part.

    Args:
        draw: which part.
        key_B: one random key per pair.
    """
    return jax.vmap(jax.random.fold_in, (0, None))(key_B, int(draw))
