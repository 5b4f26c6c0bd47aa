"""Attention over rows of tokens that hold several sequences: scores are made block by block, and blocks in which nothing is seen are left out.

What is left out is found out while it runs, for each batch anew: other pairs, the other response, later columns. Blocks follow one another, which
suits a CPU: small products from its caches, and no work for padding. Forward and backward keep what flash attention keeps (Dao et al. 2022,
2205.14135): the output and a logsumexp a query.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.ops.dense_attention import gradients, masked_scores, output_mean

BLOCK = 64  # columns; measured on CPU at 64+192 and 256+64 tokens: 128 takes 1.4 times as long, since more of its blocks are seen in part


class Places(NamedTuple):
    """Where each column of a row stands: its sequence (-1: padding), part and position. A key is seen by queries of its own sequence from its
    column on, if it is of part 0 or of theirs, and fewer than `window` positions back."""

    sequence_RS: Int[Array, "R S"]
    part_RS: Int[Array, "R S"]
    positions_RS: Int[Array, "R S"]

    def seen(
        self, queries: slice | tuple, keys: slice | tuple, window: Array | int | None
    ) -> Bool[Array, "R S T"]:
        """Whether each query sees each key; both given as (first column, number)."""
        of = lambda span: (
            *(jax.lax.dynamic_slice_in_dim(x, *span, axis=1) for x in self),
            span[0] + jnp.arange(span[1]),
        )
        (q_sequence, q_part, q_position, q_column), (k_sequence, k_part, k_position, k_column) = (
            of(queries),
            of(keys),
        )
        q_sequence, q_part, q_position = (x[:, :, None] for x in (q_sequence, q_part, q_position))
        k_sequence, k_part, k_position = (x[:, None, :] for x in (k_sequence, k_part, k_position))
        found = (
            (q_sequence == k_sequence)
            & (q_sequence >= 0)
            & (q_column[:, None] >= k_column)
            & ((k_part == 0) | (k_part == q_part))
        )
        return found if window is None else found & (q_position - k_position < window)

    def padded(self) -> "Places":
        """To whole blocks."""
        pad = ((0, 0), (0, -self.sequence_RS.shape[1] % BLOCK))
        return Places(
            jnp.pad(self.sequence_RS, pad, constant_values=-1),
            jnp.pad(self.part_RS, pad),
            jnp.pad(self.positions_RS, pad),
        )


def blocks_seen(places: Places) -> Bool[Array, "Q T"]:
    """Which block of keys any query of a block sees, in any row; windows not considered."""
    places = places.padded()
    R, S = places.sequence_RS.shape
    of_block = lambda n: (
        places.seen((n * BLOCK, BLOCK), (0, S), None).reshape(R, BLOCK, -1, BLOCK).any(axis=(0, 1, 3))
    )
    return jax.lax.map(of_block, jnp.arange(S // BLOCK))


def block_attention(
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    places: Places,
    seen_QT: Bool[Array, "Q T"],
    *,
    scale: float,
    softcap: float | None,
    window: Array | int | None,
) -> Float[Array, "R S N H"]:
    """See ops/attention. seen_QT: blocks_seen(places)."""
    (R, S, N, H), K = q_RSNH.shape, k_RSKH.shape[2]
    pad = ((0, 0), (0, 0), (0, -S % BLOCK), (0, 0))
    heads_first = lambda x: jnp.pad(jnp.moveaxis(x, 1, 2), pad)
    q_RKGSH = heads_first(q_RSNH * jnp.asarray(scale, q_RSNH.dtype)).reshape(R, K, N // K, -1, H)
    out = _blocked(
        softcap, q_RKGSH, heads_first(k_RSKH), heads_first(v_RSKH), places.padded(), seen_QT, window
    )
    return jnp.moveaxis(out.reshape(R, N, -1, H)[:, :, :S], 1, 2)


def _block(x: Array, n: Array, axis: int = -2) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, n * BLOCK, BLOCK, axis=axis)


def _over_seen(seen_T: Array, n: Array, visit, carried):
    """visit(key block, carried) for the blocks that query block n sees."""
    step = lambda t, carried: jax.lax.cond(
        seen_T[t], functools.partial(visit, t), lambda carried: carried, carried
    )
    return jax.lax.fori_loop(jnp.argmax(seen_T), n + 1, step, carried)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(softcap, q_RKGSH, k_RKSH, v_RKSH, places, seen_QT, window):
    return _forward(softcap, q_RKGSH, k_RKSH, v_RKSH, places, seen_QT, window)[0]


def _forward(softcap, q_RKGSH, k_RKSH, v_RKSH, places, seen_QT, window):
    *heads, S, H = q_RKGSH.shape

    def of_queries(_, n):
        q = _block(q_RKGSH, n)

        def visit(t, carried):
            largest, total, out = carried
            seen = places.seen((n * BLOCK, BLOCK), (t * BLOCK, BLOCK), window)
            scores, _ = masked_scores(softcap, q, _block(k_RKSH, t), seen)
            larger = jnp.maximum(largest, scores.max(axis=-1))
            # A query that has seen nothing yet has the least number as its largest score.
            weights = jnp.where(seen[:, None, None], jnp.exp(scores - larger[..., None]), 0.0)
            shrink = jnp.exp(largest - larger)
            more = jnp.einsum(
                "BKGST,BKTH->BKGSH",
                weights.astype(v_RKSH.dtype),
                _block(v_RKSH, t),
                preferred_element_type=jnp.float32,
            )
            return larger, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + more

        start = (
            jnp.full((*heads, BLOCK), jnp.finfo(jnp.float32).min),
            jnp.zeros((*heads, BLOCK)),
            jnp.zeros((*heads, BLOCK, H)),
        )
        largest, total, out = _over_seen(seen_QT[n], n, visit, start)
        total = jnp.where(total > 0, total, 1.0)
        return None, ((out / total[..., None]).astype(v_RKSH.dtype), largest + jnp.log(total))

    _, (out, lse) = jax.lax.scan(of_queries, None, jnp.arange(S // BLOCK))
    out, lse = jnp.moveaxis(out, 0, 3).reshape(*heads, S, H), jnp.moveaxis(lse, 0, 3).reshape(*heads, S)
    return out, (q_RKGSH, k_RKSH, v_RKSH, places, seen_QT, window, out, lse)


def _backward(softcap, saved, d_out):
    q_RKGSH, k_RKSH, v_RKSH, places, seen_QT, window, out, lse = saved
    mean = output_mean(out, d_out)

    def of_queries(d_kv, n):
        q, d, l, m = _block(q_RKGSH, n), _block(d_out, n), _block(lse, n, -1), _block(mean, n, -1)

        def visit(t, carried):
            seen = places.seen((n * BLOCK, BLOCK), (t * BLOCK, BLOCK), window)
            d_q, *more = gradients(softcap, q, _block(k_RKSH, t), _block(v_RKSH, t), seen, l, d, m)
            add = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, _block(x, t) + y, t * BLOCK, axis=-2)
            return carried[0] + d_q, *map(add, carried[1:], more)

        d_q, *d_kv = _over_seen(seen_QT[n], n, visit, (jnp.zeros(q.shape, jnp.float32), *d_kv))
        return tuple(d_kv), d_q

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_RKSH, v_RKSH))
    (d_k, d_v), d_q = jax.lax.scan(of_queries, zeros, jnp.arange(q_RKGSH.shape[3] // BLOCK))
    d_q = jnp.moveaxis(d_q, 0, 3).reshape(q_RKGSH.shape)
    return d_q.astype(q_RKGSH.dtype), d_k.astype(k_RKSH.dtype), d_v.astype(v_RKSH.dtype), None, None, None


_blocked.defvjp(_forward, _backward)
