"""A causal convolution over the last few tokens of each token's own sequence and part, channel by channel.

    out_t = w_0 x_t + w_1 x_(t-1) + ... + w_(Y-1) x_(t-Y+1)

A token's past goes through its response into the prompt, though another response may lie between them in the
row. What lies before a sequence is zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparsepo_jax.ops.block_attention import Places


def short_convolution(
    x_RSX: Float[Array, "R S X"],
    weight_YX: Float[Array, "Y X"],
    places: Places,
    column_RQW: Int[Array, "R Q W"] | None,
) -> Float[Array, "R S X"]:
    """The convolution, computed in float32.

    Args:
        x_RSX: inputs. Those of padding do not count.
        weight_YX: weights w of each channel, those of the token itself first.
        places: where each column stands.
        column_RQW: the column of each sequence's positions; None: no sequence has several responses.

    Returns:
        The sums, float32; of padding they mean nothing.
    """
    x_RSX, weight_YX = x_RSX.astype(jnp.float32), weight_YX.astype(jnp.float32)
    sequence_RS = places.sequence_RS
    since_RS = None if column_RQW is None else _since_the_gap(places, column_RQW, len(weight_YX))
    out_RSX = x_RSX * weight_YX[0][None, None]
    for back in range(1, len(weight_YX)):
        follows_RS = (sequence_RS == _shifted(sequence_RS, back, -1)) & (sequence_RS >= 0)
        if since_RS is not None:
            follows_RS &= since_RS >= back
        past_RSX = jnp.where(follows_RS[..., None], _shifted(x_RSX, back, 0), 0.0)
        out_RSX += past_RSX * weight_YX[back][None, None]
    if column_RQW is None or since_RS is None:
        return out_RSX
    return out_RSX + _from_prompts(x_RSX, weight_YX, places, column_RQW, since_RS)


def _shifted(x_RS: Array, back: int, fill: int) -> Array:
    """The entries so many columns back."""
    pad = [(0, 0), (back, 0)] + [(0, 0)] * (x_RS.ndim - 2)
    return jnp.pad(x_RS, pad, constant_values=fill)[:, : x_RS.shape[1]]


def _prompt_lengths(places: Places, column_RQW: Array) -> Int[Array, "R Q"]:
    sequences_Q11 = jnp.arange(column_RQW.shape[1])[:, None, None]
    of_prompt_QRS = (places.sequence_RS[None] == sequences_Q11) & (places.part_RS[None] == 0)
    return of_prompt_QRS.sum(axis=2, dtype=jnp.int32).T


def _since_the_gap(places: Places, column_RQW: Array, most: int) -> Int[Array, "R S"]:
    """How many columns back a token's past lies without a gap; `most` where there is no gap."""
    sequence_RS = jnp.maximum(places.sequence_RS, 0)
    begin_RS = jnp.take_along_axis(column_RQW[:, :, 0], sequence_RS, axis=1)
    prompt_RS = jnp.take_along_axis(_prompt_lengths(places, column_RQW), sequence_RS, axis=1)
    columns_1S = jnp.arange(sequence_RS.shape[1])[None]
    has_gap_RS = columns_1S - begin_RS != places.positions_RS
    return jnp.where(has_gap_RS, places.positions_RS - prompt_RS, most)


def _from_prompts(
    x_RSX: Array, weight_YX: Array, places: Places, column_RQW: Array, since_RS: Array
) -> Float[Array, "R S X"]:
    """What the first tokens of a response that does not follow its prompt see of the prompt's end.

    There are few such tokens: their sums are made once for each sequence, and put in place by a product.
    """
    R, _, X = x_RSX.shape
    Q, reach = column_RQW.shape[1], len(weight_YX) - 1
    length_RQ1 = _prompt_lengths(places, column_RQW)[..., None]
    back_11Y = jnp.arange(reach)[None, None]
    at_RQY = column_RQW[:, :, :1] + length_RQ1 - 1 - back_11Y
    there_RQY = length_RQ1 > back_11Y
    at_RX = jnp.where(there_RQY, at_RQY, 0).reshape(R, -1)
    ends_RQYX = jnp.take_along_axis(x_RSX, at_RX[..., None], axis=1).reshape(R, Q, reach, X)
    ends_RQYX = jnp.where(there_RQY[..., None], ends_RQYX, 0.0)
    # Token number `since` of a response comes since + 1 + back after the token `back` from the prompt's end.
    sums = [
        jnp.einsum("RQYX,YX->RQX", ends_RQYX[:, :, : reach - since], weight_YX[since + 1 :])
        for since in range(reach)
    ]
    sums_RYX = jnp.stack(sums, axis=2).reshape(R, Q * reach, X)
    number_RS = jnp.where(since_RS < reach, places.sequence_RS * reach + since_RS, -1)
    chosen_RSY = (number_RS[..., None] == jnp.arange(Q * reach)[None, None]).astype(jnp.float32)
    return jnp.einsum("RSY,RYX->RSX", chosen_RSY, sums_RYX, precision=jax.lax.Precision.HIGHEST)
