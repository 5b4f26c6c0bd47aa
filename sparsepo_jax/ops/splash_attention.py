"""Attention by Pallas's splash kernel on TPU: blocks of scores in the chip's own memory, none of them outside it.

The kernel's usual masks are made with the program and cannot say what differs from row to row. What it also takes is a mask that is data: it leaves
out the blocks of keys that no query of a block sees, and applies the mask in those that are seen in part. So a prompt is there once for all its
responses, with windows by position and caps on scores.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.ops.block_attention import Places

Spread = Callable[..., Array]
TILE = 128  # columns: what the kernel's blocks are multiples of
LARGEST_BLOCK = 512
INTERPRET = False  # the kernel step by step, where there is no TPU


def splash_attention(
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    places: Places,
    *,
    scale: float,
    softcap: float | None,
    window: Array | int | None,
    spread: Spread | None,
) -> Float[Array, "R S N H"]:
    """See ops/attention. The mask takes S x S bytes of each row, one row at a time. spread(function, heads, rows, same): the function over each
    device's rows and heads, see dist/mesh; None: one device."""
    S = q_RSNH.shape[1]
    pad = -S % TILE
    longer = lambda x, value=0: jnp.pad(
        x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)), constant_values=value
    )
    heads = longer(q_RSNH * jnp.asarray(scale, q_RSNH.dtype)), longer(k_RSKH), longer(v_RSKH)
    rows = Places(longer(places.sequence_RS, -1), longer(places.part_RS), longer(places.positions_RS))
    window = jnp.int32(jnp.iinfo(jnp.int32).max if window is None else window)

    def attend(heads, rows, window):
        # Only names are kept for the backward pass: the output and a logsumexp a query. What is seen is made again, it would be [S, S] a layer.
        of_row = jax.checkpoint(
            lambda row: _of_row(*row, window, softcap),
            policy=jax.checkpoint_policies.save_only_these_names(_KEPT),
        )
        return jax.lax.map(of_row, (heads, rows))

    out = attend(heads, rows, window) if spread is None else spread(attend, heads, rows, window)
    return out[:, :S]


_KEPT = "splash_attention"


def _of_row(heads: tuple[Array, Array, Array], places: Places, window: Array, softcap: float | None) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    S = heads[0].shape[0]
    (seen_SS,) = Places(*(x[None] for x in places)).seen((0, S), (0, S), window)
    # A query that sees nothing is padding: let it see itself, so that no row of scores is empty.
    seen_SS |= jnp.eye(S, dtype=bool)
    block = next(size for size in range(min(LARGEST_BLOCK, S), 0, -TILE) if S % size == 0)
    sizes = splash.BlockSizes(**dict.fromkeys(_BLOCKS, block))
    kernel = splash.make_splash_mha(
        seen_SS[None],
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=_KEPT,
        interpret=INTERPRET,
    )
    # It makes an array of this flag, too, and then asks it (JAX 0.10.2).
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    out_NSH = kernel(*(jnp.moveaxis(x, 1, 0) for x in heads))
    return jnp.where(places.sequence_RS[:, None, None] >= 0, jnp.moveaxis(out_NSH, 0, 1), 0)


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
