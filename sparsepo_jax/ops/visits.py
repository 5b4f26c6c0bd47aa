"""Which blocks of columns see each other in rows of tokens, as lists that a kernel works off."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sparsepo_jax.ops.block_attention import Places

OWNED = 128  # columns of a block that has a list
VISITED = 64  # columns of the blocks in the list; they divide the others
PARTS = 2**12  # more than a sequence has parts


class Visits(NamedTuple):
    """What each row's queries see, by blocks and by columns. Rows are padded to whole blocks.

    A list holds how many blocks are seen in full, how many are seen at all, and the first columns of the
    blocks, those seen in full first. Windows are not considered.

    Attributes:
        part_RC: a number for each sequence and part, a multiple of PARTS for its prompt; -1 for padding.
        positions_RC: of the tokens in their sequences.
        keys_RIX: for each block of OWNED queries, the list of blocks of VISITED keys that it sees.
        queries_RJX: for each block of OWNED keys, the list of blocks of VISITED queries that see it.
    """

    part_RC: Int[Array, "R C"]
    positions_RC: Int[Array, "R C"]
    keys_RIX: Int[Array, "R I X"]
    queries_RJX: Int[Array, "R J X"]


def visits_of(places: Places) -> Visits:
    """The lists of a batch.

    Args:
        places: where each column stands.
    """
    places = places.padded(OWNED)
    S = places.sequence_RS.shape[1]
    seen_RST = places.seen((0, S), (0, S), None)
    part_RC = places.sequence_RS * PARTS + places.part_RS
    return Visits(
        jnp.where(places.sequence_RS >= 0, part_RC, -1).astype(jnp.int32),
        places.positions_RS.astype(jnp.int32),
        _lists(seen_RST),
        _lists(seen_RST.swapaxes(1, 2)),
    )


def _lists(seen_RST: Bool[Array, "R S T"]) -> Int[Array, "R I X"]:
    R, S, _ = seen_RST.shape
    blocks = seen_RST.reshape(R, S // OWNED, OWNED, -1, VISITED)
    some_RIJ, all_RIJ = blocks.any(axis=(2, 4)), blocks.all(axis=(2, 4))
    order_RIJ = jnp.argsort(2 - some_RIJ.astype(jnp.int32) - all_RIJ.astype(jnp.int32), axis=-1, stable=True)
    counts = [x.sum(axis=-1, keepdims=True, dtype=jnp.int32) for x in (all_RIJ, some_RIJ)]
    return jnp.concatenate([*counts, order_RIJ.astype(jnp.int32) * VISITED], axis=-1)
