"""Attention by Pallas's splash kernel on TPU: blocks of scores exist in the chip's own memory alone.

The masks that the kernel is mostly used with are made with the program, and cannot say what differs from row
to row. But it also takes a mask that is data. It then leaves out the blocks of keys that no query of a block
sees, and applies the mask within those that are seen in part. So a prompt stands there once for all its
responses, with windows by position and caps on scores.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.ops.block_attention import Places
from sparsepo_jax.ops.remat import ATTENTION

Spread = Callable[..., Array]
TILE = 128  # columns; the kernel's blocks are multiples of this
LARGEST_BLOCK = 512
INTERPRET = False  # whether to run the kernel step by step, where there is no TPU


def splash_attention(
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    places: Places,
    *,
    scale: float,
    softcap: float | None,
    window: Array | int | None,
    sink_N: Float[Array, " N"] | None,
    spread: Spread | None,
) -> Float[Array, "R S N H"]:
    """See ops/attention. The mask takes S x S bytes of one row at a time.

    Args:
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        places: where each column of a row stands.
        scale: of the scores.
        softcap: of the scores, or None.
        window: in positions, or None.
        sink_N: a score without a value for each head, or None.
        spread: spread(function, heads, rows, same) runs the function on each device's rows and heads; see
            sharding/mesh.make_spread. None: on one device.
    """
    S = q_RSNH.shape[1]
    pad = -S % TILE

    def longer(x: Array, value: int = 0) -> Array:
        return jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)), constant_values=value)

    heads = (longer(q_RSNH * jnp.asarray(scale, q_RSNH.dtype)), longer(k_RSKH), longer(v_RSKH))
    sinks = () if sink_N is None else (sink_N,)
    rows = Places(longer(places.sequence_RS, -1), longer(places.part_RS), longer(places.positions_RS))
    limit = jnp.int32(jnp.iinfo(jnp.int32).max if window is None else window)

    def attend(heads: tuple[Array, ...], rows: Places, window: Array) -> Array:
        sink_N = heads[3] if sinks else None

        # The named values are all that is kept for the backward pass: the output, and a logsumexp per query.
        # The mask, which would be [S, S] for each layer, is made again.
        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(ATTENTION))
        def of_row(row: tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]) -> Array:
            return _of_row(*row, window, softcap, sink_N)

        return jax.lax.map(of_row, (heads[:3], rows))

    by_head = (*heads, *sinks)
    out = attend(by_head, rows, limit) if spread is None else spread(attend, by_head, rows, limit)
    return out[:, :S]


def _of_row(
    heads: tuple[Array, Array, Array],
    places: tuple[Array, Array, Array],
    window: Array,
    softcap: float | None,
    sink_N: Array | None,
) -> Array:
    """[S, N, H] of one row: heads [S, heads, H], places [S]."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    S = heads[0].shape[0]
    (seen_SS,) = Places(*(x[None] for x in places)).seen((0, S), (0, S), window)
    # A query that sees nothing is padding. Let it see itself, so that no row of scores is empty.
    seen_SS |= jnp.eye(S, dtype=bool)
    block = next(size for size in range(min(LARGEST_BLOCK, S), 0, -TILE) if S % size == 0)
    sizes = splash.BlockSizes(**dict.fromkeys(_BLOCKS, block))  # type: ignore[arg-type]
    kernel = splash.make_splash_mha(
        seen_SS[None],
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENTION,
        interpret=INTERPRET,
    )
    # The constructor turns this flag into an array as well, and the call then branches on it (JAX 0.10.2).
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    # In the type of the activations, as all weights: JAX 0.10.2 gives the sinks' gradient no other.
    sinks = {} if sink_N is None else {"sinks": sink_N.astype(heads[0].dtype)}
    out_NSH = kernel(*(jnp.moveaxis(x, 1, 0) for x in heads), **sinks)
    return jnp.where(places[0][:, None, None] >= 0, jnp.moveaxis(out_NSH, 0, 1), 0)


_BLOCKS = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
)
