"""A gated delta net: a short convolution, heads with a memory that tokens correct and read, and a gate.

    q, k, v = act(convolution of projections of x)         a = exp(-speed softplus(decay(x) + bias))
    out = W (norm(gated_delta(q, k, v, a, sigmoid(rate(x)))) * silu(gate(x)))

Positions are nowhere in it: the order of tokens is in the memory.

References:
    Yang et al., Gated delta networks, arXiv 2412.06464, 2024; as Qwen3-Next and Qwen3.5 have it.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sparsepo_jax.models.delta_shape import DeltaShape
from sparsepo_jax.models.layers import DeltaState, Hooks, LayerFactory
from sparsepo_jax.models.modules import Linear
from sparsepo_jax.ops.activations import activated, gated
from sparsepo_jax.ops.attention import Given, Packed
from sparsepo_jax.ops.block_attention import Places
from sparsepo_jax.ops.gated_delta import gated_delta, gated_delta_step
from sparsepo_jax.ops.short_convolution import short_convolution

QueryKeyValue = tuple[Array, Array, Array]  # queries, keys and values
_FASTEST = 16.0  # initial speeds are uniform up to it


class DeltaNet(nnx.Module):
    """A gated delta net, in place of attention."""

    def __init__(self, make: LayerFactory, shape: DeltaShape):
        """Random weights.

        Args:
            make: makes its projections and its norm.
            shape: its heads.
        """
        spec = make.spec
        self.shape = shape
        self.activation = spec.activation
        sizes = shape.projections(spec.width)

        def linear(name: str, std: float | None = None) -> Linear:
            return make.linear(f"delta.{name}", *sizes[f"delta.{name}"], bias=False, std=std)

        self.query, self.key, self.value = linear("query"), linear("key"), linear("value")
        self.gate, self.rate, self.decay = linear("gate"), linear("rate"), linear("decay")
        self.out = linear("out", make.output_std())

        def filters(features: int) -> nnx.Param:
            draw = jax.random.normal(make.rngs.params(), (shape.reach, features))
            return nnx.Param(spec.init_std * draw)

        self.query_filter, self.key_filter = filters(shape.keys), filters(shape.keys)
        self.value_filter = filters(shape.values)
        speed_N = jax.random.uniform(make.rngs.params(), (shape.value_heads,), maxval=_FASTEST, minval=0.01)
        self.log_speed = nnx.Param(jnp.log(speed_N))
        self.decay_bias = nnx.Param(jnp.ones(shape.value_heads))
        self.norm = make.rms_norm(shape.value_dim)

    def __call__(
        self, x_BSD: Float[Array, "B S D"], positions_BS: Int[Array, "B S"], hooks: Hooks
    ) -> Float[Array, "B S D"]:
        """Its contribution to the residual stream.

        Args:
            x_BSD: the block's (normed) input.
            positions_BS: position of each token, from 0.
            hooks: see `Hooks`.
        """
        B, S, _ = x_BSD.shape
        shape = self.shape
        inputs = self._projected(x_BSD, hooks)
        gate_BSX = hooks.project("delta.gate", self.gate, x_BSD)
        rate_BSN = jax.nn.sigmoid(hooks.project("delta.rate", self.rate, x_BSD).astype(jnp.float32))
        decay_BSN = hooks.project("delta.decay", self.decay, x_BSD).astype(jnp.float32)
        speed_N = jnp.exp(self.log_speed[...])
        log_decay_BSN = -speed_N[None, None] * jax.nn.softplus(decay_BSN + self.decay_bias[...][None, None])
        before = hooks.recall()
        if before is None:
            read_BSNX = self._read_first(inputs, log_decay_BSN, rate_BSN, positions_BS, hooks)
        else:
            read_BSNX = self._read_next(inputs, log_decay_BSN, rate_BSN, before, hooks)
        normed_BSX = self.norm(read_BSNX).reshape(B, S, shape.values)
        heads_BSX = gated("silu", gate_BSX, normed_BSX)
        hooks.keep("attn_heads", heads_BSX)
        return hooks.project("delta.out", self.out, heads_BSX)

    def _projected(self, x_BSD: Array, hooks: Hooks) -> QueryKeyValue:
        """Queries, keys and values before the convolution."""
        q_BSX = hooks.project("delta.query", self.query, x_BSD)
        k_BSX = hooks.project("delta.key", self.key, x_BSD)
        v_BSX = hooks.project("delta.value", self.value, x_BSD)
        hooks.keep("q", q_BSX)
        hooks.keep("k", k_BSX)
        hooks.keep("v", v_BSX)
        return q_BSX, k_BSX, v_BSX

    def _filters(self) -> QueryKeyValue:
        return self.query_filter[...], self.key_filter[...], self.value_filter[...]

    def _heads(self, convolved: Iterable[Array], dtype: jnp.dtype) -> QueryKeyValue:
        """Queries and keys [..., K, H], values [..., N, X], from what the convolution made of them."""
        shape = self.shape
        q, k, v = (activated(self.activation, x.astype(dtype)) for x in convolved)
        q, k = (x.reshape(*x.shape[:-1], shape.key_heads, shape.key_dim) for x in (q, k))
        return q, k, v.reshape(*v.shape[:-1], shape.value_heads, shape.value_dim)

    def _read_first(
        self, inputs: QueryKeyValue, log_decay_BSN: Array, rate_BSN: Array, positions_BS: Array, hooks: Hooks
    ) -> Array:
        """What tokens read whose sequences begin here."""
        places, branched = _places(hooks.reach, positions_BS)
        column_RQW = hooks.reach.column_RQW if isinstance(hooks.reach, Packed) and branched else None
        filtered = zip(inputs, self._filters(), strict=True)
        convolved = (short_convolution(x, filter_YX, places, column_RQW) for x, filter_YX in filtered)
        heads = self._heads(convolved, inputs[0].dtype)
        read_BSNX, memory_BNHX = gated_delta(*heads, log_decay_BSN, rate_BSN, places, branched=branched)
        if isinstance(hooks.reach, Given):
            inputs_BSX = jnp.concatenate(inputs, axis=-1)
            there_BSX = jnp.where(places.sequence_RS[..., None] >= 0, inputs_BSX, 0)
            longer_BSX = jnp.pad(there_BSX, ((0, 0), (self.shape.reach - 1, 0), (0, 0)))
            hooks.retain(DeltaState(longer_BSX[:, there_BSX.shape[1] :], memory_BNHX))
        return read_BSNX

    def _read_next(
        self, inputs: QueryKeyValue, log_decay_B1N: Array, rate_B1N: Array, before: DeltaState, hooks: Hooks
    ) -> Array:
        """What one more token reads."""
        inputs_B1X = jnp.concatenate(inputs, axis=-1)
        seen_BYX = jnp.concatenate([before.inputs_BYF.astype(inputs_B1X.dtype), inputs_B1X], axis=1)
        filter_YX = jnp.concatenate(self._filters(), axis=-1)
        newest_first_BYX = seen_BYX[:, ::-1].astype(jnp.float32)
        convolved_BX = (newest_first_BYX * filter_YX[None]).sum(axis=1)
        ends = (self.shape.keys, 2 * self.shape.keys)
        heads = self._heads(jnp.split(convolved_BX, ends, axis=-1), inputs_B1X.dtype)
        read_BNX, memory_BNHX = gated_delta_step(
            *heads, log_decay_B1N[:, 0], rate_B1N[:, 0], before.memory_BNHX
        )
        hooks.retain(DeltaState(seen_BYX[:, 1:], memory_BNHX))
        return read_BNX[:, None]


def _places(reach: Given | Packed, positions_BS: Array) -> tuple[Places, bool]:
    """Where tokens stand, and whether sequences may have several responses. Padding sees not even itself."""
    if isinstance(reach, Packed):
        return reach.places, reach.branched
    there_BS = jnp.diagonal(reach.attend_BST, axis1=1, axis2=2)
    return Places(jnp.where(there_BS, 0, -1), jnp.zeros_like(positions_BS), positions_BS), False
