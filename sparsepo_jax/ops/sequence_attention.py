"""Attention sequence by sequence, by what a platform does best on whole matrices.

The sequences of each row are laid side by side, padded to the longest.

| kernel | soft cap | sinks | window | leaves out |
|---|---|---|---|---|
| xla | yes | yes | yes | later columns, in chunks |
| cudnn (`jax.nn.dot_product_attention`, GPU, 16-bit types) | no | no | yes | nothing, but masks it |
| splash (ops/splash_attention, TPU) | yes | yes | yes | blocks that nothing sees |
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.ops.block_attention import Places
from sparsepo_jax.ops.dense_attention import dense_attention
from sparsepo_jax.ops.splash_attention import Spread, splash_attention

Kernel = Literal["xla", "cudnn", "splash"]


def sequence_attention(
    q_RSNH: Float[Array, "R S N H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSKH: Float[Array, "R S K H"],
    places: Places,
    column_RQW: Int[Array, "R Q W"],
    *,
    kernel: Kernel,
    scale: float,
    softcap: float | None,
    window: Array | int | None,
    sink_N: Float[Array, " N"] | None = None,
    spread: Spread | None = None,
) -> Float[Array, "R S N H"]:
    """See ops/attention.

    Args:
        q_RSNH: queries.
        k_RSKH: keys.
        v_RSKH: values.
        places: where each column of a row stands.
        column_RQW: the column of each sequence's positions, S where there is none.
        kernel: which one runs on the sequences.
        scale: of the scores.
        softcap: of the scores, or None.
        window: in positions, or None.
        sink_N: a score without a value for each head, or None.
        spread: for the kernel `splash`; see ops/splash_attention.

    Raises:
        ValueError: a soft cap or sinks are asked of cudnn.
    """
    R, Q, W = column_RQW.shape
    there = column_RQW.reshape(R, Q * W)
    back = _way_back(places, column_RQW)

    def apart(x: Array) -> Array:
        return _moved(x, there, back).reshape(R * Q, W, *x.shape[2:])

    def filled(x_RS: Array, value: int) -> Array:
        return jax.vmap(lambda x_S, at: x_S.at[at].get(mode="fill", fill_value=value))(x_RS, there).reshape(
            R * Q, W
        )

    q, k, v = apart(q_RSNH), apart(k_RSKH), apart(v_RSKH)
    apart_places = Places(
        filled(places.sequence_RS, -1), filled(places.part_RS, 0), filled(places.positions_RS, 0)
    )
    if kernel == "splash":
        out = splash_attention(
            q,
            k,
            v,
            apart_places,
            scale=scale,
            softcap=softcap,
            window=window,
            sink_N=sink_N,
            spread=spread,
        )
    else:
        dense = dense_attention if kernel == "xla" else _cudnn
        seen = apart_places.seen((0, W), (0, W), window)
        out = dense(q, k, v, seen, scale=scale, softcap=softcap, sink_N=sink_N)
    return _moved(out.reshape(R, Q * W, *out.shape[2:]), back, there)


def _way_back(places: Places, column_RQW: Array) -> Int[Array, "R S"]:
    """Where each column of a row stands among the sequences laid side by side; past their end for padding."""
    _, Q, W = column_RQW.shape
    sequence_RS = jnp.maximum(places.sequence_RS, 0)
    # A sequence's columns follow one another, so its first one tells them all.
    begin_RS = jnp.take_along_axis(column_RQW[:, :, 0], sequence_RS, axis=1)
    columns = jnp.arange(sequence_RS.shape[1])[None]
    return jnp.where(places.sequence_RS >= 0, sequence_RS * W + columns - begin_RS, Q * W)


@jax.custom_vjp
def _moved(x: Array, there: Array, back: Array) -> Array:
    """x[r, there[r, n]], zero where `there` is past the end.

    back is the inverse of there, so that the gradient is a gather, too.
    """
    return jax.vmap(lambda x_S, at: x_S.at[at].get(mode="fill", fill_value=0))(x, there)


def _moved_forward(x: Array, there: Array, back: Array) -> tuple[Array, tuple[Array, Array]]:
    return _moved(x, there, back), (there, back)


def _moved_backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, None, None]:
    there, back = saved
    return _moved(d, back, there), None, None


_moved.defvjp(_moved_forward, _moved_backward)


def _cudnn(
    q_BSNH: Float[Array, "B S N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    attend_BST: Bool[Array, "B S T"],
    *,
    scale: float,
    softcap: float | None,
    sink_N: Float[Array, " N"] | None,
) -> Array:
    if softcap is not None or sink_N is not None:
        raise ValueError(f"cudnn {'does not cap scores' if sink_N is None else 'has no sinks'}")
    # A query that sees nothing is padding. Let it see itself, so that no row of scores is empty.
    attend_BST = attend_BST | jnp.eye(attend_BST.shape[1], dtype=bool)[None]
    return jax.nn.dot_product_attention(
        q_BSNH, k_BTKH, v_BTKH, mask=attend_BST[:, None], scale=scale, implementation="cudnn"
    )
