"""The kernels of ops/triton_attention, for NVIDIA sm_80 and later: which part of each array a program gets.

What it does with them is in ops/triton_bodies.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import Array, Float, Int

from sparsepo_jax.ops.triton_bodies import (
    Blocks,
    KernelState,
    Settings,
    write_gradient_of_queries,
    write_gradients_of_keys,
    write_output,
)
from sparsepo_jax.ops.visits import Visits


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
        body(KernelState(settings, blocks, q_RSNH.shape[1], q_RSNH.shape[3], limit, *shared), *refs[4:])

    shared = [
        (window[None], pl.BlockSpec((1,), lambda i, n, r: (0,))),
        (visits.part_RC, specs.columns(visits.part_RC)),
        (visits.positions_RC, specs.columns(visits.positions_RC)),
        (lists, specs.lists(lists, settings.listed[0])),
    ]
    arrays, in_specs = zip(*shared, *inputs, strict=True)
    out_shape, out_specs = zip(*outputs, strict=True)
    kernel.__name__ = f"attention_{body.__name__.removeprefix('write_')}"
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
        write_output,
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
        write_gradient_of_queries,
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
        write_gradients_of_keys,
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
