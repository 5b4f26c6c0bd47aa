"""Products of tokens with the weights of the experts that they chose, exact: nothing is dropped.

Each token chose K of E experts. There is a row for each choice, rows are sorted by expert, and an expert's
rows fill whole blocks, so that a block meets the weights of one expert:

    tokens 0, 1, 2 chose experts 0 2, 2 1, 2 0; blocks of 2 rows

    expert_I     0     1     2     2        of each block
    choice_Y     0 5   3 -   1 2   4 -      row y holds choice 5 = token 2's second; - fills up a block
    row_TK       0 4   5 2   6 1            where each choice lies

What a device computes grows with the choices of its experts, and not with tokens x experts.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GroupedKernel = Literal["blocks", "triton", "ragged", "dense"]
LEAST, MOST = 16, 128  # rows of a block
SpreadExperts = Callable[..., Array]


def _here(function: Callable[..., Array], weights: Any, tokens: Any) -> Array:
    return function(weights, tokens, 0)


class Dispatch(NamedTuple):
    """Where and by what experts are computed.

    Attributes:
        kernel: what computes their products, see `grouped_product`; dense: every expert on every token.
        spread: spread(function, weights, tokens) adds up function(weights, tokens, first expert) over devices
            that hold different experts; see sharding/experts. By default all experts are here.
    """

    kernel: GroupedKernel = "blocks"
    spread: SpreadExperts = _here


HERE = Dispatch()


class Groups(NamedTuple):
    """Where the rows of each expert lie.

    Attributes:
        choice_Y: number of the choice (token x K + place) in each row; T x K in rows that fill up a block.
        row_TK: row of each choice; Y for a choice of an expert that is not here.
        expert_I: expert of each block; the last one's number for blocks that are not in use.
        begin_E: first block of each expert.
        blocks_E: number of blocks of each expert. Blocks in use come first.
    """

    choice_Y: Int[Array, " Y"]
    row_TK: Int[Array, "T K"]
    expert_I: Int[Array, " I"]
    begin_E: Int[Array, " E"]
    blocks_E: Int[Array, " E"]

    @property
    def block(self) -> int:
        """Rows of a block."""
        return len(self.choice_Y) // len(self.expert_I)


def group_by_expert(choice_TK: Int[Array, "T K"], experts: int, first: Int[Array, ""] | int = 0) -> Groups:
    """Sorts choices by expert, in the order of tokens.

    Args:
        choice_TK: the experts that each token chose, all different; others than first ... first + experts - 1
            are not here and get no row.
        experts: how many there are here.
        first: the number of the first one of them.
    """
    T, K = choice_TK.shape
    most = T * min(K, experts)  # choices that may fall on these experts
    block = _rows_of_block(most, experts)
    blocks = min((most + experts * (block - 1)) // block, most)
    here_X = choice_TK.reshape(-1) - first
    here_X = jnp.where((here_X >= 0) & (here_X < experts), here_X, experts)
    order_X = jnp.argsort(here_X, stable=True)
    sorted_X = here_X[order_X]
    count_E = jnp.bincount(here_X, length=experts + 1)[:experts]
    blocks_E = -(-count_E // block)
    begin_E = jnp.cumsum(blocks_E) - blocks_E
    shift_E = begin_E * block - (jnp.cumsum(count_E) - count_E)
    rows = blocks * block
    is_here_X = sorted_X < experts
    row_X = jnp.where(is_here_X, jnp.arange(T * K) + shift_E[jnp.minimum(sorted_X, experts - 1)], rows)
    choice_Y = jnp.full(rows, T * K, jnp.int32).at[row_X].set(order_X.astype(jnp.int32), mode="drop")
    row_TK = jnp.zeros(T * K, jnp.int32).at[order_X].set(row_X.astype(jnp.int32)).reshape(T, K)
    ends_E = begin_E + blocks_E
    expert_I = jnp.minimum(jnp.searchsorted(ends_E, jnp.arange(blocks), side="right"), experts - 1)
    return Groups(choice_Y, row_TK, *(x.astype(jnp.int32) for x in (expert_I, begin_E, blocks_E)))


def _rows_of_block(choices: int, experts: int) -> int:
    """A power of two near an expert's mean number of rows. Filling up costs half a block for each expert."""
    size = LEAST
    while size < MOST and size * experts < choices:
        size *= 2
    return size


# ---------------------------------------------------------------- tokens to rows and back


@jax.custom_vjp
def to_rows(x_TD: Float[Array, "T D"], groups: Groups) -> Float[Array, "Y D"]:
    """The token of each row; zeros in rows that fill up a block.

    Args:
        x_TD: tokens.
        groups: where the rows lie.
    """
    return jnp.take(x_TD, groups.choice_Y // groups.row_TK.shape[1], axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def from_rows(rows_YD: Float[Array, "Y D"], groups: Groups) -> Float[Array, "T D"]:
    """The sum of each token's rows, taken in float32, of the type of the rows.

    Args:
        rows_YD: rows.
        groups: where they lie. Choices that are not here add nothing.
    """

    def row(place: int) -> Array:
        at_T = groups.row_TK[:, place]
        return jnp.take(rows_YD, at_T, axis=0, mode="fill", fill_value=0).astype(jnp.float32)

    return sum((row(k) for k in range(1, groups.row_TK.shape[1])), start=row(0)).astype(rows_YD.dtype)


# Each one is the other one's transpose.
to_rows.defvjp(
    lambda x_TD, groups: (to_rows(x_TD, groups), groups),
    lambda groups, d_rows_YD: (from_rows(d_rows_YD, groups), None),
)
from_rows.defvjp(
    lambda rows_YD, groups: (from_rows(rows_YD, groups), groups),
    lambda groups, d_out_TD: (to_rows(d_out_TD, groups), None),
)


def of_rows(x_TK: Float[Array, "T K"], groups: Groups) -> Float[Array, " Y"]:
    """The number of each row's choice; zero in rows that fill up a block.

    Args:
        x_TK: a number for each choice.
        groups: where the rows lie.
    """
    return jnp.take(x_TK.reshape(-1), groups.choice_Y, mode="fill", fill_value=0)


def add_expert_bias(
    rows_YF: Float[Array, "Y F"],
    bias_EF: Float[Array, "E F"],
    groups: Groups,
    share_Y: Float[Array, " Y"] | None = None,
) -> Float[Array, "Y F"]:
    """rows + share x the bias of their expert, of the type of the rows.

    The bias's gradient is summed in float32.

    Args:
        rows_YF: rows.
        bias_EF: of each expert.
        groups: where the rows lie.
        share_Y: factors of the bias; None: ones.
    """
    rows_IXF = rows_YF.astype(jnp.float32).reshape(len(groups.expert_I), groups.block, -1)
    bias_IXF = bias_EF.astype(jnp.float32)[groups.expert_I][:, None]
    if share_Y is not None:
        bias_IXF = bias_IXF * share_Y.reshape(*rows_IXF.shape[:2], 1)
    return (rows_IXF + bias_IXF).reshape(rows_YF.shape).astype(rows_YF.dtype)


# ---------------------------------------------------------------- products


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped_product(
    kernel: GroupedKernel, x_YD: Float[Array, "Y D"], w_EDF: Float[Array, "E D F"], groups: Groups
) -> Float[Array, "Y F"]:
    """The product of each row with the weights of its expert; sums in float32, zeros in blocks not in use.

    Args:
        kernel: what computes it. blocks: a loop over the blocks in use, for CPUs; triton: kernels of our own,
            for GPUs; ragged: XLA's, for TPUs. (On CPUs and GPUs XLA multiplies all rows with all experts.)
        x_YD: rows.
        w_EDF: of each expert, of the type of the rows.
        groups: where the rows of each expert lie.
    """
    return _product(kernel, x_YD, w_EDF, groups)


def _forward(kernel: GroupedKernel, x_YD: Array, w_EDF: Array, groups: Groups) -> tuple[Array, tuple]:
    return _product(kernel, x_YD, w_EDF, groups), (x_YD, w_EDF, groups)


def _backward(kernel: GroupedKernel, saved: tuple, d_out_YF: Array) -> tuple[Array, Array, None]:
    x_YD, w_EDF, groups = saved
    d_x_YD = _product(kernel, d_out_YF, w_EDF, groups, transposed=True)
    return d_x_YD, _weight_gradient(kernel, x_YD, d_out_YF, groups, w_EDF.shape[0]), None


grouped_product.defvjp(_forward, _backward)


def _product(
    kernel: GroupedKernel, x_YX: Array, w: Array, groups: Groups, *, transposed: bool = False
) -> Array:
    """Rows times W, or times its transpose."""
    if kernel == "triton":
        from sparsepo_jax.ops.grouped_kernels import triton_product

        return triton_product(x_YX, w, groups, transposed=transposed)
    if kernel == "ragged":
        turned = w.swapaxes(1, 2) if transposed else w
        return jax.lax.ragged_dot(x_YX, turned, _padded_sizes(groups))
    return _product_of_blocks(x_YX, w, groups, transposed=transposed)


def _weight_gradient(
    kernel: GroupedKernel, x_YD: Array, d_out_YF: Array, groups: Groups, experts: int
) -> Array:
    """x^T d_out over the rows of each expert, [E, D, F]."""
    if kernel == "triton":
        from sparsepo_jax.ops.grouped_kernels import triton_weight_gradient

        return triton_weight_gradient(x_YD, d_out_YF, groups)
    if kernel == "ragged":
        numbers = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
        return jax.lax.ragged_dot_general(x_YD, d_out_YF, _padded_sizes(groups), numbers)
    return _gradient_of_blocks(x_YD, d_out_YF, groups, experts)


def _padded_sizes(groups: Groups) -> Array:
    """Rows of each expert, those that fill up its blocks included."""
    return groups.blocks_E * groups.block


def _product_of_blocks(x_YX: Array, w: Array, groups: Groups, *, transposed: bool) -> Array:
    block = groups.block
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))

    def add(number: Array, out: Array) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(x_YX, number * block, block)
        weight = jax.lax.dynamic_index_in_dim(w, groups.expert_I[number], keepdims=False)
        product = jax.lax.dot_general(rows, weight, contracted, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(out, product.astype(out.dtype), number * block, 0)

    out = jnp.zeros((x_YX.shape[0], w.shape[1 if transposed else 2]), x_YX.dtype)
    return jax.lax.fori_loop(0, groups.blocks_E.sum(), add, out)


def _gradient_of_blocks(x_YD: Array, d_out_YF: Array, groups: Groups, experts: int) -> Array:
    block = groups.block
    contracted = (((0,), (0,)), ((), ()))

    def add(number: Array, gradient_EDF: Array) -> Array:
        x, d_out = (jax.lax.dynamic_slice_in_dim(rows, number * block, block) for rows in (x_YD, d_out_YF))
        more = jax.lax.dot_general(x, d_out, contracted, preferred_element_type=jnp.float32)
        expert = groups.expert_I[number]
        before = jax.lax.dynamic_index_in_dim(gradient_EDF, expert, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(gradient_EDF, before + more, expert, 0)

    zeros = jnp.zeros((experts, x_YD.shape[1], d_out_YF.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, groups.blocks_E.sum(), add, zeros).astype(x_YD.dtype)
