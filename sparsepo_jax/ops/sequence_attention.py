"""Attention sequence by sequence: the sequences of each row are laid side by side, padded to the longest, and attended to by what a platform
does best on whole matrices.

| kernel | soft cap | window | leaves out |
|---|---|---|---|
| xla | yes | yes | later columns, in chunks |
| cudnn (`jax.nn.dot_product_attention`, GPU, 16-bit types) | no | yes | nothing: what is not seen is masked |
| splash (ops/splash_attention, TPU) | yes | yes | blocks that nothing sees |
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    spread: Spread | None = None,
) -> Float[Array, "R S N H"]:
    """See ops/attention. column_RQW: of each sequence's positions, S where there is none."""
    R, Q, W = column_RQW.shape
    there = column_RQW.reshape(R, Q * W)
    sequence_RS = jnp.maximum(places.sequence_RS, 0)
    # A sequence's columns follow one another.
    begin_RS = jnp.take_along_axis(column_RQW[:, :, 0], sequence_RS, axis=1)
    back = jnp.where(
        places.sequence_RS >= 0, sequence_RS * W + jnp.arange(sequence_RS.shape[1]) - begin_RS, Q * W
    )
    apart = lambda x: _moved(x, there, back).reshape(R * Q, W, *x.shape[2:])
    filled = lambda x, value: jax.vmap(lambda x_S, at: x_S.at[at].get(mode="fill", fill_value=value))(
        x, there
    ).reshape(R * Q, W)
    own = Places(filled(places.sequence_RS, -1), filled(places.part_RS, 0), filled(places.positions_RS, 0))
    heads, settings = (apart(q_RSNH), apart(k_RSKH), apart(v_RSKH)), {"scale": scale, "softcap": softcap}
    if kernel == "splash":
        out = splash_attention(*heads, own, window=window, spread=spread, **settings)
    else:
        out = {"xla": dense_attention, "cudnn": _cudnn}[kernel](
            *heads, own.seen((0, W), (0, W), window), **settings
        )
    return _moved(out.reshape(R, Q * W, *out.shape[2:]), back, there)


@jax.custom_vjp
def _moved(x: Array, there: Array, back: Array) -> Array:
    """x[r, there[r, n]], zero where `there` is past the end. back: the way back; so the gradient is a gather, too."""
    return jax.vmap(lambda x_S, at: x_S.at[at].get(mode="fill", fill_value=0))(x, there)


_moved.defvjp(
    lambda x, there, back: (_moved(x, there, back), (there, back)),
    lambda saved, d: (_moved(d, saved[1], saved[0]), None, None),
)


def _cudnn(q_BSNH, k_BTKH, v_BTKH, attend_BST, *, scale: float, softcap: float | None) -> Array:
    if softcap is not None:
        raise ValueError("cudnn does not cap scores")
    # A query that sees nothing is padding: let it see itself, so that no row of scores is empty.
    attend_BST = attend_BST | jnp.eye(attend_BST.shape[1], dtype=bool)
    return jax.nn.dot_product_attention(
        q_BSNH, k_BTKH, v_BTKH, mask=attend_BST[:, None], scale=scale, implementation="cudnn"
    )
