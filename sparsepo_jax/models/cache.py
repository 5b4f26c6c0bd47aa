"""Keys and values of what a decoder has read, so that a new token runs alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.models.spec import DecoderSpec


class Cache(NamedTuple):
    """Columns 0 .. used - 1 are written, the rest is free. Columns that are padding (valid_BT False) are never seen; positions count real tokens."""

    keys_LBTKH: Float[Array, "L B T K H"]
    values_LBTKH: Float[Array, "L B T K H"]
    positions_BT: Int[Array, "B T"]
    valid_BT: Bool[Array, "B T"]
    used: Int[Array, ""]

    def appended(self, positions_BS: Array, valid_BS: Array) -> tuple["Cache", Bool[Array, "B S T"]]:
        """The cache with S columns more (their keys and values still to be written), and which columns each of the S sees."""
        S, T = positions_BS.shape[1], self.valid_BT.shape[1]
        positions_BT = jax.lax.dynamic_update_slice(self.positions_BT, positions_BS, (0, self.used))
        valid_BT = jax.lax.dynamic_update_slice(self.valid_BT, valid_BS, (0, self.used))
        before_ST = jnp.arange(T)[None, :] <= self.used + jnp.arange(S)[:, None]
        return self._replace(positions_BT=positions_BT, valid_BT=valid_BT, used=self.used + S), valid_BT[
            :, None, :
        ] & before_ST

    def written(self, layer: Array, keys_BSKH: Array, values_BSKH: Array) -> "Cache":
        """With the last S columns of a layer filled."""
        begin = (layer, 0, self.used - keys_BSKH.shape[1], 0, 0)
        put = lambda whole, part: jax.lax.dynamic_update_slice(whole, part[None].astype(whole.dtype), begin)
        return self._replace(
            keys_LBTKH=put(self.keys_LBTKH, keys_BSKH), values_LBTKH=put(self.values_LBTKH, values_BSKH)
        )

    def repeated(self, times: int) -> "Cache":
        """Each row `times` times, one after the other: several continuations of one prompt."""
        rows = lambda x, axis: jnp.repeat(x, times, axis=axis)
        return Cache(
            rows(self.keys_LBTKH, 1),
            rows(self.values_LBTKH, 1),
            rows(self.positions_BT, 0),
            rows(self.valid_BT, 0),
            self.used,
        )


def empty_cache(spec: DecoderSpec, rows: int, columns: int, dtype: jnp.dtype) -> Cache:
    """columns: the longest prompt and all that may follow it, tokens."""
    zeros = jnp.zeros((spec.num_layers, rows, columns, spec.num_kv_heads, spec.head_dim), dtype)
    return Cache(
        zeros, zeros, jnp.zeros((rows, columns), jnp.int32), jnp.zeros((rows, columns), bool), jnp.int32(0)
    )
