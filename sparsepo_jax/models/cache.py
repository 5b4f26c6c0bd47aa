"""Keys and values of the tokens that a decoder has read, so that the next token can run alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.models.decoder_spec import DecoderSpec


class Cache(NamedTuple):
    """A fixed number T of columns, of which the first `used` are written and the rest are free.

    Columns of padding (valid_BT False) are never seen. Positions count real tokens, so they differ from
    columns.
    """

    keys_LBTKH: Float[Array, "L B T K H"]
    values_LBTKH: Float[Array, "L B T K H"]
    positions_BT: Int[Array, "B T"]
    valid_BT: Bool[Array, "B T"]
    used: Int[Array, ""]

    def appended(
        self, positions_BS: Int[Array, "B S"], valid_BS: Bool[Array, "B S"]
    ) -> tuple["Cache", Bool[Array, "B S T"]]:
        """Takes S more columns into use. Their keys and values are still to be `written`, layer by layer.

        Args:
            positions_BS: position of each new token.
            valid_BS: False for padding.

        Returns:
            The cache, and which columns each of the new tokens sees: its own and those before it.
        """
        S = positions_BS.shape[1]
        T = self.valid_BT.shape[1]
        positions_BT = jax.lax.dynamic_update_slice(self.positions_BT, positions_BS, (0, self.used))
        valid_BT = jax.lax.dynamic_update_slice(self.valid_BT, valid_BS, (0, self.used))
        before_ST = jnp.arange(T)[None, :] <= self.used + jnp.arange(S)[:, None]
        cache = self._replace(positions_BT=positions_BT, valid_BT=valid_BT, used=self.used + S)
        return cache, valid_BT[:, None, :] & before_ST[None]

    def written(
        self,
        layer: Int[Array, ""],
        keys_BSKH: Float[Array, "B S K H"],
        values_BSKH: Float[Array, "B S K H"],
    ) -> "Cache":
        """The cache with keys and values of its last S used columns filled in, for one layer.

        Args:
            layer: the layer's number, from 0.
            keys_BSKH: keys of the new columns, rotated.
            values_BSKH: values of the new columns.
        """
        begin = (layer, 0, self.used - keys_BSKH.shape[1], 0, 0)

        def put(x_LBTKH: Array, x_BSKH: Array) -> Array:
            return jax.lax.dynamic_update_slice(x_LBTKH, x_BSKH[None].astype(x_LBTKH.dtype), begin)

        return self._replace(
            keys_LBTKH=put(self.keys_LBTKH, keys_BSKH), values_LBTKH=put(self.values_LBTKH, values_BSKH)
        )

    def repeated(self, times: int) -> "Cache":
        """The cache with each row repeated, copies side by side.

        Args:
            times: continuations of each prompt.
        """
        return Cache(
            keys_LBTKH=jnp.repeat(self.keys_LBTKH, times, axis=1),
            values_LBTKH=jnp.repeat(self.values_LBTKH, times, axis=1),
            positions_BT=jnp.repeat(self.positions_BT, times, axis=0),
            valid_BT=jnp.repeat(self.valid_BT, times, axis=0),
            used=self.used,
        )


def empty_cache(spec: DecoderSpec, rows: int, columns: int, dtype: DTypeLike) -> Cache:
    """A cache with no column used.

    Args:
        spec: shape of the decoder.
        rows: sequences that are read at the same time.
        columns: tokens of the longest prompt (padding included) and of all that may follow it.
        dtype: type of keys and values.
    """
    zeros_LBTKH = jnp.zeros((spec.num_layers, rows, columns, spec.num_kv_heads, spec.head_dim), dtype)
    return Cache(
        keys_LBTKH=zeros_LBTKH,
        values_LBTKH=zeros_LBTKH,
        positions_BT=jnp.zeros((rows, columns), jnp.int32),
        valid_BT=jnp.zeros((rows, columns), bool),
        used=jnp.int32(0),
    )
