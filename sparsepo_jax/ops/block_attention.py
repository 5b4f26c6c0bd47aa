"""Attention over rows of tokens that hold several sequences, block by block.

Blocks in which nothing is seen are left out. Which ones these are is decided while the program runs, for each
batch anew: other pairs, the other response, later columns. Blocks follow one another, which suits a CPU: the
products are small enough for its caches, and padding costs no work. The forward pass keeps what flash
attention keeps: the output, and one logsumexp per query.

References:
    Dao et al., FlashAttention, arXiv 2205.14135, 2022.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.ops.dense_attention import gradients, masked_scores, output_mean, sink_gradient
from sparsepo_jax.ops.remat import attended

# Columns. Measured on CPU at 64+192 and 256+64 tokens: 128 takes 1.4 times as long, as more of its blocks are
# seen in part.
BLOCK = 64
Span = tuple[Array | int, int]  # the first column, and how many


class Places(NamedTuple):
    """Where each column of a row stands.

    A key is seen by the queries of its own sequence from its column on, if it is of part 0 (the prompt) or of
    their part, and fewer than `window` positions back.

    Attributes:
        sequence_RS: number of the sequence in its row, -1 for padding.
        part_RS: 0 for the prompt, p for response p.
        positions_RS: of the token in its sequence, the same for tokens of different responses.
    """

    sequence_RS: Int[Array, "R S"]
    part_RS: Int[Array, "R S"]
    positions_RS: Int[Array, "R S"]

    def seen(self, queries: Span, keys: Span, window: Array | int | None) -> Bool[Array, "R S T"]:
        """Whether each query sees each key.

        Args:
            queries: the columns of the queries.
            keys: the columns of the keys.
            window: how many positions a query sees back, itself included; None: no limit.
        """
        q_sequence, q_part, q_position = (_cut(x_RS, queries)[:, :, None] for x_RS in self)
        k_sequence, k_part, k_position = (_cut(x_RS, keys)[:, None, :] for x_RS in self)
        q_column = queries[0] + jnp.arange(queries[1])[None, :, None]
        k_column = keys[0] + jnp.arange(keys[1])[None, None, :]
        same_sequence = (q_sequence == k_sequence) & (q_sequence >= 0)
        seen = same_sequence & (q_column >= k_column) & ((k_part == 0) | (k_part == q_part))
        return seen if window is None else seen & (q_position - k_position < window)

    def padded(self, block: int) -> "Places":
        """The same with whole blocks of columns.

        Args:
            block: columns of a block.
        """
        pad = ((0, 0), (0, -self.sequence_RS.shape[1] % block))
        return Places(
            jnp.pad(self.sequence_RS, pad, constant_values=-1),
            jnp.pad(self.part_RS, pad),
            jnp.pad(self.positions_RS, pad),
        )


def _cut(x_RS: Array, span: Span) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_RS, *span, axis=1)


def blocks_seen(places: Places) -> Bool[Array, "I J"]:
    """Which blocks of keys any query of a block sees, in any row.

    Args:
        places: where each column stands. Windows are not considered.
    """
    places = places.padded(BLOCK)
    R, S = places.sequence_RS.shape

    def seen_by(n: Array) -> Array:
        seen = places.seen((n * BLOCK, BLOCK), (0, S), None)
        return seen.reshape(R, BLOCK, -1, BLOCK).any(axis=(0, 1, 3))

    return jax.lax.map(seen_by, jnp.arange(S // BLOCK))


def block_attention(
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    places: Places,
    seen_IJ: Bool[Array, "I J"],
    *,
    scale: float,
    softcap: float | None,
    window: Array | int | None,
    sink_N: Float[Array, " N"] | None = None,
) -> Float[Array, "R S N H"]:
    """See ops/attention.

    Args:
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        places: where each column stands.
        seen_IJ: blocks_seen(places).
        scale: of the scores.
        softcap: of the scores, or None.
        window: in positions, or None.
        sink_N: a score without a value for each head, or None.
    """
    R, S, N, H = q_RSNH.shape
    K = k_RSKH.shape[2]
    pad = ((0, 0), (0, 0), (0, -S % BLOCK), (0, 0))

    def heads_first(x: Array) -> Array:
        return jnp.pad(jnp.moveaxis(x, 1, 2), pad)

    q_RKGSH = heads_first(q_RSNH * jnp.asarray(scale, q_RSNH.dtype)).reshape(R, K, N // K, -1, H)
    k_RKSH, v_RKSH = heads_first(k_RSKH), heads_first(v_RSKH)
    sink_1KG1 = None if sink_N is None else sink_N.reshape(1, K, N // K, 1)
    out = _blocked(softcap, q_RKGSH, k_RKSH, v_RKSH, places.padded(BLOCK), seen_IJ, window, sink_1KG1)
    return jnp.moveaxis(out.reshape(R, N, -1, H)[:, :, :S], 1, 2)


def _block(x: Array, n: Array, axis: int = -2) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, n * BLOCK, BLOCK, axis=axis)


def _over_seen(seen_J: Array, n: Array, visit: Callable, carried: tuple) -> tuple:
    """visit(key block, carried) for the blocks that query block n sees."""

    def step(t: Array, carried: tuple) -> tuple:
        return jax.lax.cond(seen_J[t], functools.partial(visit, t), lambda carried: carried, carried)

    return jax.lax.fori_loop(jnp.argmax(seen_J), n + 1, step, carried)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(
    softcap: float | None,
    q_RKGSH: Array,
    k_RKSH: Array,
    v_RKSH: Array,
    places: Places,
    seen_IJ: Array,
    window: Array | int | None,
    sink_1KG1: Array | None,
) -> Array:
    return _forward(softcap, q_RKGSH, k_RKSH, v_RKSH, places, seen_IJ, window, sink_1KG1)[0]


def _forward(
    softcap: float | None,
    q_RKGSH: Array,
    k_RKSH: Array,
    v_RKSH: Array,
    places: Places,
    seen_IJ: Array,
    window: Array | int | None,
    sink_1KG1: Array | None,
) -> tuple[Array, tuple]:
    *heads, S, H = q_RKGSH.shape

    def of_queries(_: None, n: Array) -> tuple[None, tuple[Array, Array]]:
        q = _block(q_RKGSH, n)

        def visit(t: Array, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            largest, total, out = carried
            seen = places.seen((n * BLOCK, BLOCK), (t * BLOCK, BLOCK), window)
            scores, _ = masked_scores(softcap, q, _block(k_RKSH, t), seen)
            larger = jnp.maximum(largest, scores.max(axis=-1))
            # The largest score of a query that has seen nothing yet is the least number.
            weights = jnp.where(seen[:, None, None], jnp.exp(scores - larger[..., None]), 0.0)
            shrink = jnp.exp(largest - larger)
            more = jnp.einsum(
                "RKGST,RKTH->RKGSH",
                weights.astype(v_RKSH.dtype),
                _block(v_RKSH, t),
                preferred_element_type=jnp.float32,
            )
            return larger, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + more

        if sink_1KG1 is None:
            start = jnp.full((*heads, BLOCK), jnp.finfo(jnp.float32).min), jnp.zeros((*heads, BLOCK))
        else:  # as if each query had seen its sink
            start = jnp.broadcast_to(sink_1KG1, (*heads, BLOCK)), jnp.ones((*heads, BLOCK))
        largest, total, out = _over_seen(seen_IJ[n], n, visit, (*start, jnp.zeros((*heads, BLOCK, H))))
        total = jnp.where(total > 0, total, 1.0)
        return None, ((out / total[..., None]).astype(v_RKSH.dtype), largest + jnp.log(total))

    _, (out, lse) = jax.lax.scan(of_queries, None, jnp.arange(S // BLOCK))
    out_RKGSH = attended(jnp.moveaxis(out, 0, 3).reshape(*heads, S, H))
    lse_RKGS = attended(jnp.moveaxis(lse, 0, 3).reshape(*heads, S))
    return out_RKGSH, (q_RKGSH, k_RKSH, v_RKSH, places, seen_IJ, window, sink_1KG1, out_RKGSH, lse_RKGS)


def _add_block(x: Array, part: Array, t: Array) -> Array:
    """x with the part added to its block t."""
    return jax.lax.dynamic_update_slice_in_dim(x, _block(x, t) + part, t * BLOCK, axis=-2)


@jax.named_scope("attend_gradient")
def _backward(softcap: float | None, saved: tuple, d_out: Array) -> tuple:
    q_RKGSH, k_RKSH, v_RKSH, places, seen_IJ, window, sink_1KG1, out_RKGSH, lse_RKGS = saved
    mean_RKGS = output_mean(out_RKGSH, d_out)

    def of_queries(d_kv: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], Array]:
        q, d = _block(q_RKGSH, n), _block(d_out, n)
        lse, mean = _block(lse_RKGS, n, -1), _block(mean_RKGS, n, -1)

        def visit(t: Array, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = carried
            seen = places.seen((n * BLOCK, BLOCK), (t * BLOCK, BLOCK), window)
            k, v = _block(k_RKSH, t), _block(v_RKSH, t)
            more_q, more_k, more_v = gradients(softcap, q, k, v, seen, lse, d, mean)
            return d_q + more_q, _add_block(d_k, more_k, t), _add_block(d_v, more_v, t)

        start = (jnp.zeros(q.shape, jnp.float32), *d_kv)
        d_q, d_k, d_v = _over_seen(seen_IJ[n], n, visit, start)
        return (d_k, d_v), d_q

    zeros = (jnp.zeros(k_RKSH.shape, jnp.float32), jnp.zeros(v_RKSH.shape, jnp.float32))
    numbers = jnp.arange(q_RKGSH.shape[3] // BLOCK)
    (d_k, d_v), d_q = jax.lax.scan(of_queries, zeros, numbers)
    d_q = jnp.moveaxis(d_q, 0, 3).reshape(q_RKGSH.shape)
    d_sink = None if sink_1KG1 is None else sink_gradient(sink_1KG1, lse_RKGS, mean_RKGS)
    d_q, d_k, d_v = d_q.astype(q_RKGSH.dtype), d_k.astype(k_RKSH.dtype), d_v.astype(v_RKSH.dtype)
    return d_q, d_k, d_v, None, None, None, d_sink


_blocked.defvjp(_forward, _backward)
