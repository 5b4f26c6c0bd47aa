"""Attention to given keys (reading, generating), or by places in rows of tokens (training).

    attention(q, k, v, reach)[query] = softmax over the keys that it sees of (scale q k^T), times v; sums in
    float32

Rows of tokens are attended to by the kernel that suits the device: `blocks` on CPU, `triton` on GPU, and
those of ops/sequence_attention. All kernels give the same up to rounding.
"""

from typing import Literal, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.types import Packing
from sparsepo_jax.ops.block_attention import Places, block_attention, blocks_seen
from sparsepo_jax.ops.dense_attention import dense_attention
from sparsepo_jax.ops.sequence_attention import sequence_attention
from sparsepo_jax.ops.splash_attention import Spread
from sparsepo_jax.ops.triton_attention import triton_attention
from sparsepo_jax.ops.visits import Visits, visits_of

AttentionKernel = Literal["blocks", "triton", "xla", "cudnn", "splash"]


class Given(NamedTuple):
    """The keys that each query sees, said one by one.

    Attributes:
        attend_BST: which of T keys each of S queries sees; none after its own column.
        positions_BS: of the queries, in tokens; windows count by them.
        positions_BT: of the keys.
    """

    attend_BST: Bool[Array, "B S T"]
    positions_BS: Int[Array, "B S"]
    positions_BT: Int[Array, "B T"]


class Packed(NamedTuple):
    """The keys that each query sees in rows of tokens; made once for all layers and both models.

    Attributes:
        places: where each column of a row stands.
        column_RQW: see core/types.Packing.
        seen_IJ: for the kernel `blocks`, which blocks of keys a block of queries sees; None for the others.
        kernel: which one runs.
        spread: for the kernels `splash` and `triton`; see ops/splash_attention.
        visits: for the kernel `triton`, see ops/visits; None for the others.
        branched: whether a sequence may have several responses.
    """

    places: Places
    column_RQW: Int[Array, "R Q W"]
    seen_IJ: Bool[Array, "I J"] | None
    kernel: AttentionKernel
    spread: Spread | None = None
    visits: Visits | None = None
    branched: bool = True


def reach_of(
    packing: Packing, kernel: AttentionKernel, spread: Spread | None = None, *, branched: bool = True
) -> Packed:
    """What the queries of packed rows see.

    Args:
        packing: the rows of tokens.
        kernel: which one is to run; see ops/sequence_attention for what they can do.
        spread: for the kernels `splash` and `triton` on several devices; see ops/splash_attention.
        branched: whether a sequence may have several responses. False saves gated delta nets a second memory.
    """
    places = Places(packing.sequence_RS, packing.part_RS, packing.positions_RS)
    seen_IJ = blocks_seen(places) if kernel == "blocks" else None
    visits = visits_of(places) if kernel == "triton" else None
    return Packed(places, packing.column_RQW, seen_IJ, kernel, spread, visits, branched)


@jax.named_scope("attend")
def attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    reach: Given | Packed,
    *,
    scale: float,
    softcap: float | None = None,
    window: Array | int | None = None,
    sink_N: Float[Array, " N"] | None = None,
) -> Float[Array, "B S N H"]:
    """The weighted values that each query attends to.

    A query that sees nothing gives finite values and has no gradient.

    Args:
        q_BSNH: queries; a key/value head serves N / K query heads that follow one another.
        k_BTKH: keys.
        v_BTKH: values.
        reach: what each query sees.
        scale: of the scores, such as H ** -0.5.
        softcap: turns scores s into softcap * tanh(s / softcap), as Gemma 2 does (arXiv 2408.00118); None: no
            cap.
        window: a query sees only keys fewer than this many positions back, None: no limit. Positions count,
            not columns, because each response of a pair continues the prompt.
        sink_N: a score that each head's softmax counts beside those of the keys, and that has no value, as in
            gpt-oss (arXiv 2508.10925); None: none.

    Raises:
        ValueError: the kernel cannot do what is asked of it.
    """
    if isinstance(reach, Given):
        attend_BST = reach.attend_BST
        if window is not None:
            attend_BST &= reach.positions_BS[:, :, None] - reach.positions_BT[:, None, :] < window
        return dense_attention(
            q_BSNH, k_BTKH, v_BTKH, attend_BST, scale=scale, softcap=softcap, sink_N=sink_N
        )
    if reach.kernel == "blocks":
        assert reach.seen_IJ is not None
        return block_attention(
            q_BSNH,
            k_BTKH,
            v_BTKH,
            reach.places,
            reach.seen_IJ,
            scale=scale,
            softcap=softcap,
            window=window,
            sink_N=sink_N,
        )
    if reach.kernel == "triton":
        assert reach.visits is not None
        return triton_attention(
            q_BSNH,
            k_BTKH,
            v_BTKH,
            reach.visits,
            scale=scale,
            softcap=softcap,
            window=window,
            sink_N=sink_N,
            spread=reach.spread,
        )
    return sequence_attention(
        q_BSNH,
        k_BTKH,
        v_BTKH,
        reach.places,
        reach.column_RQW,
        kernel=reach.kernel,
        scale=scale,
        softcap=softcap,
        window=window,
        sink_N=sink_N,
        spread=reach.spread,
    )
