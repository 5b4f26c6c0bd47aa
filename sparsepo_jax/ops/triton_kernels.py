"""The kernels of ops/triton_attention: written in Pallas, compiled by Triton (NVIDIA sm_80 and later).

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
from jaxtyping import Array, Float, Int

from sparsepo_jax.ops.visits import PARTS, Visits

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


class _Columns(NamedTuple):
    """Columns along one side of a block of scores."""

    numbers: Array
    parts: Array
    positions: Array | None

    def see(self, keys: "_Columns", window: Array | None) -> Array:
        """Whether these queries see the keys."""
        parts = jnp.where(self.parts >= 0, self.parts, -2)  # padding does not see padding, which is -1
        prompts = parts - (parts & (PARTS - 1))
        seen = (self.numbers >= keys.numbers) & ((keys.parts == parts) | (keys.parts == prompts))
        if window is None:
            return seen
        assert self.positions is not None and keys.positions is not None
        return seen & (self.positions - keys.positions < window)


class _Kernel(NamedTuple):
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

    def along(self, axis: int, begin: Array, size: int) -> _Columns:
        """So many columns as a vector along an axis of the scores."""
        at = pl.ds(pl.multiple_of(begin, 16), size)

        def expanded(x: Array) -> Array:
            return x[:, None] if axis == 0 else x[None, :]

        return _Columns(
            expanded(begin + jnp.arange(size)),
            expanded(self.parts[at]),
            expanded(self.positions[at]) if self.settings.windowed else None,
        )

    def inside(self, begin: Array, size: int, padded: int) -> Array | None:
        """Which of [size, padded] numbers exist; None: all of them."""
        inside = None
        if self.columns % size:
            inside = (begin + jnp.arange(size) < self.columns)[:, None]
        if self.dims != padded:
            dims = (jnp.arange(padded) < self.dims)[None, :]
            inside = dims if inside is None else inside & dims
        return None if inside is None else jnp.broadcast_to(inside, (size, padded))

    def load(self, ref: Any, begin: Array, size: int) -> Array:
        """The ref's numbers [size, padded dims], 0 where there are none."""
        inside = self.inside(begin, size, ref.shape[-1])
        return pallas_triton.load(ref, mask=inside, other=None if inside is None else 0.0)

    def store(self, ref: Any, begin: Array, x: Array) -> None:
        """Writes numbers [size, padded dims] where they exist."""
        pallas_triton.store(ref, x.astype(ref.dtype), mask=self.inside(begin, *x.shape))

    def weights(self, product: Array, lse: Array, seen: Array | None) -> tuple[Array, Array | None]:
        """The softmax's weights once its logsumexp is known, and d score / d product up to the scale."""
        scores, slope = self.scores(product)
        weights = jnp.exp2(scores - lse)
        return (weights if seen is None else jnp.where(seen, weights, 0.0)), slope

    def scores(self, product: Array) -> tuple[Array, Array | None]:
        """Scores in units of log 2, and their derivative (of natural ones) in the scaled product."""
        softcap, scale = self.settings.softcap, self.settings.scale
        if softcap is None:
            return product * (scale * math.log2(math.e)), None
        tanh = jnp.tanh(product * (scale / softcap))
        return tanh * (softcap * math.log2(math.e)), 1 - tanh * tanh

    def over_visits(self, visit: Callable[..., Any], carried: Any, heads: int = 1) -> Any:
        """visit(first column, head, carried, masked) for each block of the program's list and each head."""
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


def _output(kernel: _Kernel, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
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


def _gradient_of_queries(
    kernel: _Kernel,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    d_q_ref: Any,
    mean_ref: Any,
) -> None:
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


def _gradients_of_keys(
    kernel: _Kernel,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    mean_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
) -> None:
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


class _Specs(NamedTuple):
    """Which part of each array a program (block, head, row) is given."""

    padded: int  # dims of a head, rounded up to a power of two
    owned: int
    group: int  # query heads that share a key head, where the grid counts query heads; else 1

    def columns(self, x_RS: Array) -> pl.BlockSpec:
        """Its row of [R, S]."""
        return pl.BlockSpec((None, x_RS.shape[1]), lambda i, n, r: (r, 0))

    def lists(self, x_RIX: Array, listed: int) -> pl.BlockSpec:
        """Its list of [R, I, X]; so many columns have one."""
        cuts = listed // self.owned
        return pl.BlockSpec((None, None, x_RIX.shape[2]), lambda i, n, r: (r, jax.lax.div(i, cuts), 0))

    def own(self) -> pl.BlockSpec:
        """The columns that it owns, of [R, S, heads, H]."""
        return pl.BlockSpec((None, self.owned, None, self.padded), lambda i, n, r: (r, i, n, 0))

    def own_numbers(self) -> pl.BlockSpec:
        """The columns that it owns, of [R, N, S]."""
        return pl.BlockSpec((None, None, self.owned), lambda i, n, r: (r, n, i))

    def own_head(self) -> pl.BlockSpec:
        """The number of its head, of [N]."""
        return pl.BlockSpec((1,), lambda i, n, r: (n,))

    def keys(self, k_RSKH: Array) -> pl.BlockSpec:
        """All columns of its key head."""
        shape = (None, k_RSKH.shape[1], None, self.padded)
        return pl.BlockSpec(shape, lambda i, n, r: (r, 0, jax.lax.div(n, self.group), 0))

    def queries(self, q_RSNH: Array, heads: int) -> pl.BlockSpec:
        """All columns of the query heads of its key head."""
        return pl.BlockSpec((None, q_RSNH.shape[1], heads, self.padded), lambda i, n, r: (r, 0, n, 0))

    def numbers(self, x_RNS: Array, heads: int) -> pl.BlockSpec:
        """The same of [R, N, S]."""
        return pl.BlockSpec((None, heads, x_RNS.shape[2]), lambda i, n, r: (r, n, 0))


def _call(
    body: Callable[..., None],
    settings: Settings,
    blocks: Blocks,
    visits: Visits,
    lists: Array,
    window: Array,
    specs: _Specs,
    inputs: list[tuple[Array, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    grid: tuple[int, int, int],
) -> tuple[Array, ...]:
    """Runs the body of a kernel over a grid of blocks, heads and rows."""
    q_RSNH = inputs[0][0]

    def kernel(*refs: Any) -> None:
        window_ref, *shared = refs[:4]
        limit = window_ref[0] if settings.windowed else None
        body(_Kernel(settings, blocks, q_RSNH.shape[1], q_RSNH.shape[3], limit, *shared), *refs[4:])

    shared = [
        (window[None], pl.BlockSpec((1,), lambda i, n, r: (0,))),
        (visits.part_RC, specs.columns(visits.part_RC)),
        (visits.positions_RC, specs.columns(visits.positions_RC)),
        (lists, specs.lists(lists, settings.listed[0])),
    ]
    arrays, in_specs = zip(*shared, *inputs, strict=True)
    out_shape, out_specs = zip(*outputs, strict=True)
    kernel.__name__ = f"attention{body.__name__}"
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=tuple(out_specs),
        out_shape=tuple(out_shape),
        compiler_params=pallas_triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=settings.interpret,
        name=kernel.__name__,
    )(*arrays)


def _padded(dims: int) -> int:
    return max(16, pl.next_power_of_2(dims))


def output(
    settings: Settings,
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    sink_N: Float[Array, " N"] | None,
    visits: Visits,
    window: Int[Array, ""],
) -> tuple[Float[Array, "R S N H"], Float[Array, "R N C"]]:
    """The output, and log2 of the sum of each query's exponentials, padded to whole blocks.

    Args:
        settings: see `Settings`.
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        sink_N: a score without a value for each head, or None.
        visits: who sees whom.
        window: in positions; unused if the settings are not windowed.
    """
    R, S, N, H = q_RSNH.shape
    blocks = settings.forward
    specs = _Specs(_padded(H), blocks.owned, N // k_RSKH.shape[2])
    lse = jax.ShapeDtypeStruct((R, N, visits.part_RC.shape[1]), jnp.float32)
    keys = specs.keys(k_RSKH)
    inputs = [(q_RSNH, specs.own()), (k_RSKH, keys), (v_RSKH, keys)]
    if sink_N is not None:
        inputs.append((sink_N, specs.own_head()))
    out_RSNH, lse_RNC = _call(
        _output,
        settings,
        blocks,
        visits,
        visits.keys_RIX,
        window,
        specs,
        inputs,
        [(jax.ShapeDtypeStruct(q_RSNH.shape, q_RSNH.dtype), specs.own()), (lse, specs.own_numbers())],
        (pl.cdiv(S, blocks.owned), N, R),
    )
    return out_RSNH, lse_RNC


def gradient_of_queries(
    settings: Settings,
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    visits: Visits,
    window: Int[Array, ""],
    out_RSNH: Float[Array, "R S N H"],
    lse_RNC: Float[Array, "R N C"],
    d_out_RSNH: Float[Array, "R S N H"],
) -> tuple[Float[Array, "R S N H"], Float[Array, "R N C"]]:
    """The gradient of queries, and the mean cotangent of each query's weights, under the weights.

    Args:
        settings: see `Settings`.
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        visits: who sees whom.
        window: in positions; unused if the settings are not windowed.
        out_RSNH: the output.
        lse_RNC: what `output` gave with it.
        d_out_RSNH: the output's cotangent.
    """
    R, S, N, H = q_RSNH.shape
    blocks = settings.queries
    specs = _Specs(_padded(H), blocks.owned, N // k_RSKH.shape[2])
    own, keys, numbers = specs.own(), specs.keys(k_RSKH), specs.own_numbers()
    inputs = [(q_RSNH, own), (k_RSKH, keys), (v_RSKH, keys)]
    inputs += [(out_RSNH, own), (d_out_RSNH, own), (lse_RNC, numbers)]
    d_q = jax.ShapeDtypeStruct(q_RSNH.shape, q_RSNH.dtype)
    mean = jax.ShapeDtypeStruct(lse_RNC.shape, jnp.float32)
    d_q_RSNH, mean_RNC = _call(
        _gradient_of_queries,
        settings,
        blocks,
        visits,
        visits.keys_RIX,
        window,
        specs,
        inputs,
        [(d_q, own), (mean, numbers)],
        (pl.cdiv(S, blocks.owned), N, R),
    )
    return d_q_RSNH, mean_RNC


def gradients_of_keys(
    settings: Settings,
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    visits: Visits,
    window: Int[Array, ""],
    mean_RNC: Float[Array, "R N C"],
    lse_RNC: Float[Array, "R N C"],
    d_out_RSNH: Float[Array, "R S N H"],
) -> tuple[Float[Array, "R S K H"], Float[Array, "R S K H"]]:
    """The gradients of keys and values.

    Args:
        settings: see `Settings`.
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        visits: who sees whom.
        window: in positions; unused if the settings are not windowed.
        mean_RNC: what `gradient_of_queries` gave with the gradient.
        lse_RNC: what `output` gave with the output.
        d_out_RSNH: the output's cotangent.
    """
    R, S, N, H = q_RSNH.shape
    K = k_RSKH.shape[2]
    blocks = settings.keys
    specs = _Specs(_padded(H), blocks.owned, 1)
    own, queries, numbers = specs.own(), specs.queries(q_RSNH, N // K), specs.numbers(lse_RNC, N // K)
    inputs = [(q_RSNH, queries), (k_RSKH, own), (v_RSKH, own)]
    inputs += [(d_out_RSNH, queries), (lse_RNC, numbers), (mean_RNC, numbers)]
    d_k_RSKH, d_v_RSKH = _call(
        _gradients_of_keys,
        settings,
        blocks,
        visits,
        visits.queries_RJX,
        window,
        specs,
        inputs,
        [(jax.ShapeDtypeStruct(x.shape, x.dtype), own) for x in (k_RSKH, v_RSKH)],
        (pl.cdiv(S, blocks.owned), K, R),
    )
    return d_k_RSKH, d_v_RSKH


def sink_gradient(
    sink_N: Float[Array, " N"], lse_RNC: Float[Array, "R N C"], mean_RNC: Float[Array, "R N C"], columns: int
) -> Float[Array, " N"]:
    """The gradient of the sinks. It is that of a score whose value is zero.

    Args:
        sink_N: the score without a value of each head.
        lse_RNC: what `output` gave with the output.
        mean_RNC: what `gradient_of_queries` gave with the gradient.
        columns: of a row, without padding.
    """
    weight = jnp.exp2(sink_N[None, :, None] * math.log2(math.e) - lse_RNC[..., :columns])
    return -(weight * mean_RNC[..., :columns]).sum(axis=(0, 2))
