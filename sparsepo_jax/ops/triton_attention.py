"""Attention over rows of tokens as they lie, by kernels of our own for GPUs (ops/triton_kernels).

A block of queries visits the blocks of keys that it sees, and no others: no other pair, no other response, no
later column. Rows need no gathers. The backward pass keeps what flash attention keeps: the output, and a
logsumexp per query.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.ops import visits as lists
from sparsepo_jax.ops.remat import attended
from sparsepo_jax.ops.splash_attention import Spread
from sparsepo_jax.ops.visits import Visits

if TYPE_CHECKING:
    from sparsepo_jax.ops.triton_bodies import Settings

INTERPRET = False  # whether to run the kernels step by step, where there is no GPU
# By bits of a number and dims of a head, at most: (columns owned, columns visited, warps, stages) of the
# kernels for the output, the gradient of queries, and those of keys and values. They fit the 99 KiB of shared
# memory that workstations' GPUs have. Products in float32 have no matrix units: small blocks. For 128 dims in
# 16 bits they are the fastest of 5 to 7 that were timed on an H200, at 8 sequences of 512 + 256 + 256 tokens
# and 16 heads: 0.16, 0.18 and 0.23 ms; others took up to 0.25, 0.25 and 0.43. The rest was not timed.
BLOCKS = {
    (16, 64): ((128, 64, 4, 3), (128, 64, 8, 2), (64, 64, 4, 2)),
    (16, 128): ((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2)),
    (16, 256): ((64, 32, 4, 2), (64, 32, 4, 1), (32, 32, 4, 1)),
    (32, 64): ((32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (32, 128): ((32, 16, 4, 1), (32, 16, 4, 1), (32, 16, 4, 1)),
    (32, 256): ((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
}

Heads = tuple[Array, ...]  # queries, keys, values and, if there are any, sinks


def triton_attention(
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    visits: Visits,
    *,
    scale: float,
    softcap: float | None,
    window: Array | int | None,
    sink_N: Float[Array, " N"] | None,
    spread: Spread | None,
) -> Float[Array, "R S N H"]:
    """See ops/attention.

    Args:
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        visits: what each query sees, by blocks.
        scale: of the scores.
        softcap: of the scores, or None.
        window: in positions, or None.
        sink_N: a score without a value for each head, or None.
        spread: spread(function, heads, rows, same) runs the function on each device's rows and heads; see
            sharding/mesh.make_spread. None: on one device.
    """
    settings = _settings(q_RSNH, scale, softcap, window is not None)
    heads = (q_RSNH, k_RSKH, v_RSKH) if sink_N is None else (q_RSNH, k_RSKH, v_RSKH, sink_N)
    limit = jnp.int32(0 if window is None else window)
    attend = functools.partial(_attend, settings)
    return attend(heads, visits, limit) if spread is None else spread(attend, heads, visits, limit)


def _settings(q_RSNH: Array, scale: float, softcap: float | None, windowed: bool) -> "Settings":
    from sparsepo_jax.ops.triton_bodies import Blocks, Settings

    needed = (8 * q_RSNH.dtype.itemsize, q_RSNH.shape[3])
    size = next((size for size in BLOCKS if needed[0] == size[0] and needed[1] <= size[1]), None)
    if size is None:
        raise ValueError(
            f"the triton kernels take heads of at most 256 dims, numbers of 16 or 32 bits; not {needed[1]} "
            f"dims of {needed[0]} bits"
        )
    listed = (lists.OWNED, lists.VISITED)
    forward, queries, keys = (
        Blocks(min(owned, listed[0]), min(visited, listed[1]), warps, stages)
        for owned, visited, warps, stages in BLOCKS[size]
    )
    return Settings(scale, softcap, windowed, listed, forward, queries, keys, INTERPRET)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: "Settings", heads: Heads, visits: Visits, window: Array) -> Array:
    return _forward(settings, heads, visits, window)[0]


def _forward(settings: "Settings", heads: Heads, visits: Visits, window: Array) -> tuple[Array, tuple]:
    from sparsepo_jax.ops.triton_kernels import output

    q, k, v, *sinks = heads
    sink_N = sinks[0] if sinks else None
    out_RSNH, lse_RNC = (attended(x) for x in output(settings, q, k, v, sink_N, visits, window))
    return out_RSNH, (heads, visits, window, out_RSNH, lse_RNC)


@jax.named_scope("attend_gradient")
def _backward(settings: "Settings", saved: tuple, d_out_RSNH: Array) -> tuple[Heads, None, None]:
    from sparsepo_jax.ops.triton_kernels import gradient_of_queries, gradients_of_keys, sink_gradient

    (q, k, v, *sinks), visits, window, out_RSNH, lse_RNC = saved
    d_q, mean_RNC = gradient_of_queries(settings, q, k, v, visits, window, out_RSNH, lse_RNC, d_out_RSNH)
    d_k, d_v = gradients_of_keys(settings, q, k, v, visits, window, mean_RNC, lse_RNC, d_out_RSNH)
    d_sinks = (sink_gradient(sink_N, lse_RNC, mean_RNC, q.shape[1]) for sink_N in sinks)
    return (d_q, d_k, d_v, *d_sinks), None, None


_attend.defvjp(_forward, _backward)
