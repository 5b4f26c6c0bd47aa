"""The products of ops/grouped for GPUs: written in Pallas, compiled by Triton (NVIDIA sm_80 and later).

A program computes one tile of the output: a block of rows times the weights of its expert, or all rows of an
expert for a tile of its weights' gradient. Blocks that are not in use are written as zeros and cost nothing
else. The sizes of tiles were chosen by what fits, and never timed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import Array, Float

from sparsepo_jax.ops.grouped import Groups

INTERPRET = False  # whether to run the kernels step by step, where there is no GPU
STAGES = 3  # loads that are under way at once


def triton_product(
    x_YX: Float[Array, "Y X"], w: Float[Array, "E D F"], groups: Groups, *, transposed: bool
) -> Array:
    """Rows times the weights of their experts; see ops/grouped.

    Args:
        x_YX: rows.
        w: of each expert.
        groups: where the rows of each expert lie.
        transposed: multiply by W^T instead of W.
    """
    rows, outputs = x_YX.shape[0], w.shape[1 if transposed else 2]
    tile = _tile(outputs, x_YX.dtype)
    kernel = functools.partial(
        _multiply, block=groups.block, tile=tile, step=_step(x_YX.shape[1]), transposed=transposed
    )
    return pl.pallas_call(
        kernel,
        grid=(rows // groups.block, pl.cdiv(outputs, tile)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x_YX.dtype),
        compiler_params=_params(groups.block * tile),
        interpret=INTERPRET,
        name="grouped_product",
    )(x_YX, w, groups.expert_I, groups.blocks_E.sum()[None])


def triton_weight_gradient(
    x_YD: Float[Array, "Y D"], d_out_YF: Float[Array, "Y F"], groups: Groups
) -> Float[Array, "E D F"]:
    """x^T d_out over the rows of each expert; see ops/grouped.

    Args:
        x_YD: rows.
        d_out_YF: gradient of their products.
        groups: where the rows of each expert lie.
    """
    experts, (D, F) = len(groups.begin_E), (x_YD.shape[1], d_out_YF.shape[1])
    tiles = _tile(D, x_YD.dtype), _tile(F, x_YD.dtype)
    return pl.pallas_call(
        functools.partial(_multiply_rows, block=groups.block, tiles=tiles, step=_step(groups.block)),
        grid=(pl.cdiv(D, tiles[0]), pl.cdiv(F, tiles[1]), experts),
        out_specs=pl.BlockSpec((None, D, F), lambda i, j, expert: (expert, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((experts, D, F), x_YD.dtype),
        compiler_params=_params(tiles[0] * tiles[1]),
        interpret=INTERPRET,
        name="grouped_weight_gradient",
    )(x_YD, d_out_YF, groups.begin_E, groups.blocks_E)


def _tile(size: int, dtype: Any) -> int:
    most = 128 if jnp.dtype(dtype).itemsize == 2 else 64
    return min(most, max(16, pl.next_power_of_2(size)))


def _step(size: int) -> int:
    return min(32, max(16, pl.next_power_of_2(size)))


def _params(numbers: int) -> Any:
    """Of a program whose sums are so many float32 numbers."""
    return pallas_triton.CompilerParams(num_warps=8 if numbers > 8192 else 4, num_stages=STAGES)


def _load(
    ref: Any, rows: tuple[Array, int, int], columns: tuple[Array, int, int], first: tuple[Array, ...] = ()
) -> Array:
    """ref[*first, rows, columns], each of them (begin, count, size), zeros beyond the size."""
    places = [begin + jnp.arange(count) < size for begin, count, size in (rows, columns)]
    inside = places[0][:, None] & places[1][None, :]
    at = ref.at[*first, pl.ds(rows[0], rows[1]), pl.ds(columns[0], columns[1])]
    return pallas_triton.load(at, mask=inside, other=0.0)


def _store(ref: Any, x: Array, rows: tuple[Array, int], columns: tuple[Array, int]) -> None:
    """Writes x where the ref has places, from these (begin, size)."""
    places = [begin + jnp.arange(n) < size for n, (begin, size) in zip(x.shape, (rows, columns), strict=True)]
    at = ref.at[pl.ds(rows[0], x.shape[0]), pl.ds(columns[0], x.shape[1])]
    pallas_triton.store(at, x.astype(ref.dtype), mask=places[0][:, None] & places[1][None, :])


def _multiply(
    x_ref: Any,
    w_ref: Any,
    expert_ref: Any,
    used_ref: Any,
    out_ref: Any,
    *,
    block: int,
    tile: int,
    step: int,
    transposed: bool,
) -> None:
    number, column = pl.program_id(0), pl.program_id(1) * tile
    inputs, outputs = x_ref.shape[1], out_ref.shape[1]
    expert = (expert_ref[number],)

    def add(k: Array, sums: Array) -> Array:
        x = _load(x_ref, (number * block, block, x_ref.shape[0]), (k * step, step, inputs))
        if transposed:
            w = _load(w_ref, (column, tile, outputs), (k * step, step, inputs), expert)
        else:
            w = _load(w_ref, (k * step, step, inputs), (column, tile, outputs), expert)
        return sums + pallas_triton.dot(x, w, trans_b=transposed)

    used = (number < used_ref[0]).astype(jnp.int32)  # a choice of two plain numbers would be of type i1
    steps = used * pl.cdiv(inputs, step)
    sums = jax.lax.fori_loop(0, steps, add, jnp.zeros((block, tile), jnp.float32))
    _store(out_ref, sums, (number * block, x_ref.shape[0]), (column, outputs))


def _multiply_rows(
    x_ref: Any,
    d_out_ref: Any,
    begin_ref: Any,
    blocks_ref: Any,
    out_ref: Any,
    *,
    block: int,
    tiles: tuple[int, int],
    step: int,
) -> None:
    row, column, expert = pl.program_id(0) * tiles[0], pl.program_id(1) * tiles[1], pl.program_id(2)
    rows, (D, F) = x_ref.shape[0], out_ref.shape
    begin = begin_ref[expert] * block

    def add(k: Array, sums: Array) -> Array:
        at = begin + k * step, step, rows
        x = _load(x_ref, at, (row, tiles[0], D))
        d_out = _load(d_out_ref, at, (column, tiles[1], F))
        return sums + pallas_triton.dot(x, d_out, trans_a=True)

    sums = jax.lax.fori_loop(0, blocks_ref[expert] * (block // step), add, jnp.zeros(tiles, jnp.float32))
    _store(out_ref, sums, (row, D), (column, F))
