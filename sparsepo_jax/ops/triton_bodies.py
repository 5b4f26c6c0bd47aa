"""What a program of the attention kernels does (ops/triton_kernels): written in Pallas, compiled by Triton.

A program owns a block of columns of one head, and visits the blocks that a list names: those seen in full
first, which need no mask. Scores exist in the processor's own memory alone. They are in units of log 2, as a
GPU's exponential is.

References:
    Dao, FlashAttention-2, arXiv 2307.08691, 2023.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import Array

from sparsepo_jax.ops.visits import PARTS

UNSEEN = -1e30  # less than any score; finite, so that the difference of two is a number


class Blocks(NamedTuple):
    """How a kernel is cut up.

    Attributes:
        owned: columns that a program owns.
        visited: columns that it visits at a time.
        warps: groups of 32 threads of a program.
        stages: visits whose loads are under way at once.
    """

    owned: int
    visited: int
    warps: int
    stages: int


class Settings(NamedTuple):
    """What is the same for the three kernels.

    Attributes:
        scale: of the scores.
        softcap: of the scores, or None.
        windowed: whether a query sees only so many positions back.
        listed: columns of a block that has a list, and of the blocks in it (see ops/visits); multiples of
            what the kernels own and visit.
        forward: for the output; a program owns queries and visits keys.
        queries: for the gradient of queries; the same.
        keys: for the gradients of keys and values; a program owns keys and visits queries.
        interpret: whether to run the kernels step by step, where there is no GPU.
    """

    scale: float
    softcap: float | None
    windowed: bool
    listed: tuple[int, int]
    forward: Blocks
    queries: Blocks
    keys: Blocks
    interpret: bool


class BlockColumns(NamedTuple):
    """Columns along one side of a block of scores."""

    numbers: Array
    parts: Array
    positions: Array | None

    def see(self, keys: "BlockColumns", window: Array | None) -> Array:
        """Whether these queries see the keys.

        Args:
            keys: columns along the other side.
            window: in positions, or None.
        """
        parts = jnp.where(self.parts >= 0, self.parts, -2)  # padding does not see padding, which is -1
        prompts = parts - (parts & (PARTS - 1))
        seen = (self.numbers >= keys.numbers) & ((keys.parts == parts) | (keys.parts == prompts))
        if window is None:
            return seen
        assert self.positions is not None and keys.positions is not None
        return seen & (self.positions - keys.positions < window)


class KernelState(NamedTuple):
    """What every kernel knows while it runs."""

    settings: Settings
    blocks: Blocks
    columns: int  # of a row, without padding
    dims: int  # of a head
    window: Array | None
    parts: Any  # references: of Visits, what this row and block of columns needs
    positions: Any
    visits: Any

    @property
    def owned(self) -> Array:
        """The first column that the program owns."""
        return pl.program_id(0) * self.blocks.owned

    def along(self, axis: int, begin: Array, size: int) -> BlockColumns:
        """So many columns as a vector along an axis of the scores.

        Args:
            axis: 0 for a column vector, 1 for a row.
            begin: the first one.
            size: their number.
        """
        at = pl.ds(pl.multiple_of(begin, 16), size)

        def expanded(x: Array) -> Array:
            return x[:, None] if axis == 0 else x[None, :]

        return BlockColumns(
            expanded(begin + jnp.arange(size)),
            expanded(self.parts[at]),
            expanded(self.positions[at]) if self.settings.windowed else None,
        )

    def inside(self, begin: Array, size: int, padded: int) -> Array | None:
        """Which of [size, padded] numbers exist; None: all of them.

        Args:
            begin: the first column.
            size: columns.
            padded: dims of a head, rounded up.
        """
        inside = None
        if self.columns % size:
            inside = (begin + jnp.arange(size) < self.columns)[:, None]
        if self.dims != padded:
            dims = (jnp.arange(padded) < self.dims)[None, :]
            inside = dims if inside is None else inside & dims
        return None if inside is None else jnp.broadcast_to(inside, (size, padded))

    def load(self, ref: Any, begin: Array, size: int) -> Array:
        """The ref's numbers [size, padded dims], 0 where there are none.

        Args:
            ref: of a block of columns of one head.
            begin: the first column.
            size: columns.
        """
        inside = self.inside(begin, size, ref.shape[-1])
        return pallas_triton.load(ref, mask=inside, other=None if inside is None else 0.0)

    def store(self, ref: Any, begin: Array, x: Array) -> None:
        """Writes numbers where they exist.

        Args:
            ref: of a block of columns of one head.
            begin: the first column.
            x: [size, padded dims].
        """
        pallas_triton.store(ref, x.astype(ref.dtype), mask=self.inside(begin, *x.shape))

    def weights(self, product: Array, lse: Array, seen: Array | None) -> tuple[Array, Array | None]:
        """The softmax's weights once its logsumexp is known, and d score / d product up to the scale.

        Args:
            product: of queries and keys.
            lse: log2 of the sum of exponentials, broadcast over the product.
            seen: False where a query does not see a key; None: it sees all.
        """
        scores, slope = self.scores(product)
        weights = jnp.exp2(scores - lse)
        return (weights if seen is None else jnp.where(seen, weights, 0.0)), slope

    def scores(self, product: Array) -> tuple[Array, Array | None]:
        """Scores in units of log 2, and their derivative (of natural ones) in the scaled product.

        Args:
            product: of queries and keys.
        """
        softcap, scale = self.settings.softcap, self.settings.scale
        if softcap is None:
            return product * (scale * math.log2(math.e)), None
        tanh = jnp.tanh(product * (scale / softcap))
        return tanh * (softcap * math.log2(math.e)), 1 - tanh * tanh

    def over_visits(self, visit: Callable[..., Any], carried: Any, heads: int = 1) -> Any:
        """visit(first column, head, carried, masked) for each block of the program's list and each head.

        Args:
            visit: gives what is carried on.
            carried: what the first visit gets.
            heads: query heads that share the program's key head, where it visits queries.
        """
        cuts = self.settings.listed[1] // self.blocks.visited
        each = cuts * heads

        def step(n: Array, carried: Any, masked: bool) -> Any:
            place = jax.lax.rem(n, each)
            begin = self.visits[2 + jax.lax.div(n, each)] + jax.lax.rem(place, cuts) * self.blocks.visited
            head = jax.lax.div(place, cuts)
            return visit(begin, head, carried, masked)

        full, some = self.visits[0] * each, self.visits[1] * each
        if self.settings.windowed:  # what is seen in full without a window may lie outside it
            return jax.lax.fori_loop(0, some, functools.partial(step, masked=True), carried)
        carried = jax.lax.fori_loop(0, full, functools.partial(step, masked=False), carried)
        return jax.lax.fori_loop(full, some, functools.partial(step, masked=True), carried)


def write_output(kernel: KernelState, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
    """Writes the output of the program's queries, and log2 of the sum of their exponentials.

    Args:
        kernel: what every program knows.
        q_ref: the queries that it owns.
        k_ref: all keys of their key head.
        v_ref: all values of it.
        refs: the head's sink if there is one, then what is written: the output, and the logarithms.
    """
    *sink_refs, out_ref, lse_ref = refs
    size, step = kernel.blocks[:2]
    queries = kernel.along(0, kernel.owned, size)
    q = kernel.load(q_ref, kernel.owned, size)

    def visit(begin: Array, _: Any, carried: tuple[Array, Array, Array], masked: bool) -> tuple:
        largest, total, out = carried
        at = pl.ds(begin, step)
        k, v = kernel.load(k_ref.at[at], begin, step), kernel.load(v_ref.at[at], begin, step)
        scores, _ = kernel.scores(pallas_triton.dot(q, k, trans_b=True))
        if masked:
            scores = jnp.where(queries.see(kernel.along(1, begin, step), kernel.window), scores, -jnp.inf)
        larger = jnp.maximum(largest, scores.max(axis=1))
        weights = jnp.exp2(scores - larger[:, None])
        shrink = jnp.exp2(largest - larger)
        more = pallas_triton.dot(weights.astype(v.dtype), v)
        return larger, total * shrink + weights.sum(axis=1), out * shrink[:, None] + more

    start = jnp.full(size, UNSEEN), jnp.zeros(size)
    for sink_ref in sink_refs:  # one or none; as if each query had seen it
        start = jnp.full(size, sink_ref[0] * math.log2(math.e)), jnp.ones(size)
    largest, total, out = kernel.over_visits(visit, (*start, jnp.zeros(q.shape, jnp.float32)))
    total = jnp.where(total > 0, total, 1.0)
    kernel.store(out_ref, kernel.owned, out / total[:, None])
    lse_ref[...] = largest + jnp.log(total) * math.log2(math.e)


def write_gradient_of_queries(
    kernel: KernelState,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    d_q_ref: Any,
    mean_ref: Any,
) -> None:
    """Writes the gradient of the program's queries, and the mean cotangent of their weights.

    Args:
        kernel: what every program knows.
        q_ref: the queries that it owns.
        k_ref: all keys of their key head.
        v_ref: all values of it.
        out_ref: the output of its queries.
        d_out_ref: the output's cotangent.
        lse_ref: the logarithms that `write_output` wrote.
        d_q_ref: where the gradient goes.
        mean_ref: where the means go.
    """
    size, step = kernel.blocks[:2]
    queries = kernel.along(0, kernel.owned, size)
    q, out, d_out = (kernel.load(ref, kernel.owned, size) for ref in (q_ref, out_ref, d_out_ref))
    mean = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=1)
    mean_ref[...] = mean
    lse = lse_ref[...]

    def visit(begin: Array, _: Any, d_q: Array, masked: bool) -> Array:
        at = pl.ds(begin, step)
        k, v = kernel.load(k_ref.at[at], begin, step), kernel.load(v_ref.at[at], begin, step)
        seen = queries.see(kernel.along(1, begin, step), kernel.window) if masked else None
        weights, slope = kernel.weights(pallas_triton.dot(q, k, trans_b=True), lse[:, None], seen)
        d_weights = pallas_triton.dot(d_out, v, trans_b=True)
        d_scores = weights * (d_weights - mean[:, None])
        d_scores = d_scores if slope is None else d_scores * slope
        return d_q + pallas_triton.dot(d_scores.astype(k.dtype), k)

    d_q = kernel.over_visits(visit, jnp.zeros(q.shape, jnp.float32))
    kernel.store(d_q_ref, kernel.owned, d_q * kernel.settings.scale)


def write_gradients_of_keys(
    kernel: KernelState,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    mean_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
) -> None:
    """Writes the gradients of the program's keys and values.

    Args:
        kernel: what every program knows.
        q_ref: all queries of the heads that share its key head.
        k_ref: the keys that it owns.
        v_ref: their values.
        d_out_ref: the output's cotangent, of all those queries.
        lse_ref: the logarithms that `write_output` wrote.
        mean_ref: the means that `write_gradient_of_queries` wrote.
        d_k_ref: where the gradient of keys goes.
        d_v_ref: where the gradient of values goes.
    """
    size, step = kernel.blocks[:2]
    keys = kernel.along(0, kernel.owned, size)
    k, v = kernel.load(k_ref, kernel.owned, size), kernel.load(v_ref, kernel.owned, size)

    def visit(begin: Array, head: Any, carried: tuple[Array, Array], masked: bool) -> tuple[Array, Array]:
        d_k, d_v = carried
        at = pl.ds(begin, step)
        q = kernel.load(q_ref.at[at, head], begin, step)
        d_out = kernel.load(d_out_ref.at[at, head], begin, step)
        at = pl.ds(pl.multiple_of(begin, 16), step)
        lse, mean = lse_ref[head, at][None, :], mean_ref[head, at][None, :]
        seen = kernel.along(1, begin, step).see(keys, kernel.window) if masked else None
        # Keys come first, so that the weights are the left side of the products below as they are.
        weights, slope = kernel.weights(pallas_triton.dot(k, q, trans_b=True), lse, seen)
        d_v += pallas_triton.dot(weights.astype(d_out.dtype), d_out)
        d_weights = pallas_triton.dot(v, d_out, trans_b=True)
        d_scores = weights * (d_weights - mean)
        d_scores = d_scores if slope is None else d_scores * slope
        return d_k + pallas_triton.dot(d_scores.astype(q.dtype), q), d_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = kernel.over_visits(visit, (zeros, zeros), heads=q_ref.shape[1])
    kernel.store(d_k_ref, kernel.owned, d_k * kernel.settings.scale)
    kernel.store(d_v_ref, kernel.owned, d_v)
