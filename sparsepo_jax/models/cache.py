"""Keys and values of the tokens that a decoder has read, so that the next token can run alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.models.decoder_spec import DecoderSpec


class Cache(NamedTuple):
    """A fixed number C of columns, of which the first `used` are written and the rest are free.

    Columns of padding (valid_BC False) are never seen. Positions count real tokens, so they differ from
    columns.
    """

    keys_LBCKH: Float[Array, "L B C K H"]
    values_LBCKH: Float[Array, "L B C K H"]
    positions_BC: Int[Array, "B C"]
    valid_BC: Bool[Array, "B C"]
    used: Int[Array, ""]

    def appended(
        self, positions_BS: Int[Array, "B S"], valid_BS: Bool[Array, "B S"]
    ) -> tuple["Cache", Bool[Array, "B S C"]]:
        """Takes S more columns into use. Their keys and values are still to be `written`, layer by layer.

        Args:
            positions_BS: position of each new token.
            valid_BS: False for padding.

        Returns:
            The cache, and which columns each of the new tokens sees: its own and those before it.
        """
        S = positions_BS.shape[1]
        C = self.valid_BC.shape[1]
        positions_BC = jax.lax.dynamic_update_slice(self.positions_BC, positions_BS, (0, self.used))
        valid_BC = jax.lax.dynamic_update_slice(self.valid_BC, valid_BS, (0, self.used))
        before_SC = jnp.arange(C)[None, :] <= self.used + jnp.arange(S)[:, None]
        cache = self._replace(positions_BC=positions_BC, valid_BC=valid_BC, used=self.used + S)
        return cache, valid_BC[:, None, :] & before_SC[None]

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

        def put(x_LBCKH: Array, x_BSKH: Array) -> Array:
            return jax.lax.dynamic_update_slice(x_LBCKH, x_BSKH[None].astype(x_LBCKH.dtype), begin)

        return self._replace(
            keys_LBCKH=put(self.keys_LBCKH, keys_BSKH), values_LBCKH=put(self.values_LBCKH, values_BSKH)
        )

    def repeated(self, times: int) -> "Cache":
        """The cache with each row repeated, copies side by side.

        Args:
            times: continuations of each prompt.
        """
        return Cache(
            keys_LBCKH=jnp.repeat(self.keys_LBCKH, times, axis=1),
            values_LBCKH=jnp.repeat(self.values_LBCKH, times, axis=1),
            positions_BC=jnp.repeat(self.positions_BC, times, axis=0),
            valid_BC=jnp.repeat(self.valid_BC, times, axis=0),
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
    zeros_LBCKH = jnp.zeros((spec.num_layers, rows, columns, spec.num_kv_heads, spec.head_dim), dtype)
    return Cache(
        keys_LBCKH=zeros_LBCKH,
        values_LBCKH=zeros_LBCKH,
        positions_BC=jnp.zeros((rows, columns), jnp.int32),
        valid_BC=jnp.zeros((rows, columns), bool),
        used=jnp.int32(0),
    )
