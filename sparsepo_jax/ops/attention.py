"""Attention by what its queries may see: the keys that are given (reading, generating), or what the places in rows of tokens say (training).

    attention(q, k, v, reach)[query] = softmax over the keys that it sees of (scale q k^T) times v, sums in float32

Rows of tokens are attended to by the kernel that suits the device: `blocks` on CPU, and elsewhere those of ops/sequence_attention. All give the
same up to rounding.
"""

from typing import Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.types import Packing
from sparsepo_jax.ops.block_attention import Places, block_attention, blocks_seen
from sparsepo_jax.ops.dense_attention import dense_attention
from sparsepo_jax.ops.sequence_attention import sequence_attention
from sparsepo_jax.ops.splash_attention import Spread

AttentionKernel = Literal["blocks", "xla", "cudnn", "splash"]


class Given(NamedTuple):
    """attend_BST: which of T keys each of S queries sees, none after its own column; the positions of both, by which windows count."""

    attend_BST: Bool[Array, "B S T"]
    positions_BS: Int[Array, "B S"]
    positions_BT: Int[Array, "B T"]


class Packed(NamedTuple):
    """What rows of tokens say; made once for all layers and models. blocks_QT: for the kernel `blocks`, else None. spread: for the kernel
    `splash`, see ops/splash_attention."""

    places: Places
    column_RQW: Int[Array, "R Q W"]
    blocks_QT: Bool[Array, "Q T"] | None
    kernel: AttentionKernel
    spread: Spread | None = None


def reach_of(packing: Packing, kernel: AttentionKernel, spread: Spread | None = None) -> Packed:
    places = Places(packing.sequence_RS, packing.part_RS, packing.positions_RS)
    return Packed(
        places, packing.column_RQW, blocks_seen(places) if kernel == "blocks" else None, kernel, spread
    )


def attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    reach: Given | Packed,
    *,
    scale: float,
    softcap: float | None = None,
    window: Array | int | None = None,
) -> Float[Array, "B S N H"]:
    """A query that sees nothing gives something finite, and has no gradient.

    softcap: scores s become softcap * tanh(s / softcap) (Gemma 2, 2408.00118). window: a query sees keys fewer than so many positions back, by
    position, not by column: both responses continue the prompt.
    """
    settings = {"scale": scale, "softcap": softcap}
    if isinstance(reach, Packed):
        if reach.kernel == "blocks":
            return block_attention(
                q_BSNH, k_BTKH, v_BTKH, reach.places, reach.blocks_QT, window=window, **settings
            )
        settings |= {"kernel": reach.kernel, "spread": reach.spread, "window": window}
        return sequence_attention(q_BSNH, k_BTKH, v_BTKH, reach.places, reach.column_RQW, **settings)
    attend_BST = reach.attend_BST
    if window is not None:
        attend_BST &= reach.positions_BS[:, :, None] - reach.positions_BT[:, None, :] < window
    return dense_attention(q_BSNH, k_BTKH, v_BTKH, attend_BST, **settings)
