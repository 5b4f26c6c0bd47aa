"""Attention, and what all layers are made with and told.

A block does not know where it runs. What changes between training, reading a prompt and generating is
handed to it as `Hooks`: who listens to activations, which keys and values a query may see, and the
adapters' dropout.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.experts import Experts, Routing
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.mixture import Mixture
from sparsepo_jax.models.modules import AdaptedLinear, HeadNorms, LayerNorm, Linear, RMSNorm
from sparsepo_jax.models.rotary import LayerTurns, grown, rotate
from sparsepo_jax.ops.attention import Given, Packed, attention
from sparsepo_jax.ops.norms import rms_norm
from sparsepo_jax.ops.remat import rotated


class DeltaState(NamedTuple):
    """What a gated delta net goes on from.

    Attributes:
        inputs_BYF: of the convolution, those of the last tokens, in order; zero before the first one.
        memory_BNHX: of each value head, see ops/gated_delta.
    """

    inputs_BYF: Float[Array, "B Y F"]
    memory_BNHX: Float[Array, "B N H X"]


def _nothing() -> None:
    return None


def _forget(state: DeltaState) -> None:
    pass


class Hooks(NamedTuple):
    """What a block calls while it runs.

    Attributes:
        keep: keep(name, x) is told of each named activation, [B, S, features].
        remember: takes a layer's new keys and values [B, S, K, H] and returns all that its queries may see,
            [B, T, K, H] each: the same arrays, or a cache with the new ones at its end.
        drop: drop(projection, x) applies the adapters' dropout to the input of a projection's adapter.
        reach: which keys each query sees (see ops/attention).
        window: a query sees fewer than so many positions back; None: all.
        routing: how tokens are sent to experts, in a mixture of them.
        recall: gives what a gated delta net goes on from; None: the first token is a sequence's first.
        retain: is told what the next token goes on from.
    """

    keep: Callable[[str, Array], None]
    remember: Callable[[Array, Array], tuple[Array, Array]]
    drop: Callable[[str, Array], Array]
    reach: Given | Packed
    window: Array | int | None
    routing: Routing = Routing()
    recall: Callable[[], DeltaState | None] = _nothing
    retain: Callable[[DeltaState], None] = _forget

    def project(self, name: str, linear: Linear, x_BSX: Array) -> Array:
        """linear(x), plus the adapter's part if the projection has one.

        Args:
            name: the projection's name, as in `DecoderSpec.projections`.
            linear: the projection.
            x_BSX: its input.
        """
        if not isinstance(linear, AdaptedLinear):
            return linear(x_BSX)
        scale = jnp.asarray(linear.lora_scale, x_BSX.dtype)
        return linear(x_BSX) + scale * linear.lora(self.drop(name, x_BSX))


class LayerFactory(NamedTuple):
    """Makes the projections and norms of a decoder, all from the same settings.

    Attributes:
        spec: the decoder's shape.
        dtype: type of the activations. Weights are float32.
        lora: which projections get an adapter; None: none does.
        rngs: source of the initial weights.
    """

    spec: DecoderSpec
    dtype: DTypeLike
    lora: Lora | None
    rngs: nnx.Rngs

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool, std: float | None = None) -> Linear:
        """A projection of a block, with an adapter if `lora` targets it.

        Args:
            name: its name, one of `DecoderSpec.projections`.
            inputs: features that it reads.
            outputs: features that it writes.
            bias: whether it adds a bias.
            std: standard deviation of the initial weights; None: the spec's `init_std`.
        """
        kernel_init = nnx.initializers.normal(std or self.spec.init_std)
        if self.lora is None or name not in self.lora.targets:
            return Linear(
                inputs, outputs, use_bias=bias, dtype=self.dtype, kernel_init=kernel_init, rngs=self.rngs
            )
        return AdaptedLinear(
            inputs,
            outputs,
            self.lora,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=kernel_init,
            rngs=self.rngs,
        )

    def experts(self, mixture: Mixture) -> Experts:
        """A mixture of experts, with adapters if `lora` targets them.

        Args:
            mixture: its shape.
        """
        return Experts(
            mixture,
            self.spec.activation,
            self.spec.width,
            dtype=self.dtype,
            lora=self.lora,
            stds=(self.spec.init_std, self.output_std()),
            rngs=self.rngs,
        )

    def output_std(self) -> float:
        """Initial standard deviation of projections that write to the residual stream, as in GPT-2."""
        return self.spec.init_std / (2 * self.spec.num_layers) ** 0.5

    def norm(self) -> LayerNorm | RMSNorm:
        """A norm over the width of the residual stream."""
        if self.spec.norm == "rms":
            return self.rms_norm(self.spec.width)
        return LayerNorm(
            self.spec.width,
            epsilon=self.spec.norm_eps,
            use_bias=self.spec.norm_bias,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def head_norm(self, heads: int) -> HeadNorms | RMSNorm:
        """The norm of queries or keys (see `DecoderSpec.qk_norm`).

        Args:
            heads: of them.
        """
        if self.spec.qk_norm == "own":
            return HeadNorms(heads, self.spec.head_dim, self.spec.norm_eps)
        return self.rms_norm(self.spec.head_dim * (heads if self.spec.qk_norm == "all" else 1))

    def rms_norm(self, features: int) -> RMSNorm:
        """An RMS norm.

        Args:
            features: size of the axis that it is taken over.
        """
        return RMSNorm(features, epsilon=self.spec.norm_eps, dtype=self.dtype, rngs=self.rngs)


class Attention(nnx.Module):
    """Grouped-query attention, with optional norms and rotation of queries and keys."""

    def __init__(self, make: LayerFactory):
        """Attention with random weights.

        Args:
            make: makes its projections and norms, and knows its shape.
        """
        spec = make.spec
        queries = spec.num_heads * spec.head_dim
        keys = spec.num_kv_heads * spec.head_dim
        self.spec = spec
        self.query = make.linear("attention.query", spec.width, queries, bias=spec.qkv_bias)
        self.key = make.linear("attention.key", spec.width, keys, bias=spec.qkv_bias)
        if spec.gated_attention:
            self.gate = make.linear("attention.gate", spec.width, queries, bias=spec.qkv_bias)
        if not spec.key_is_value:
            self.value = make.linear("attention.value", spec.width, keys, bias=spec.qkv_bias)
        if spec.qk_norm is not None:
            self.query_norm = make.head_norm(spec.num_heads)
            self.key_norm = make.head_norm(spec.num_kv_heads)
        if spec.sinks:
            self.sinks = nnx.Param(spec.init_std * jax.random.normal(make.rngs.params(), (spec.num_heads,)))
        self.out = make.linear(
            "attention.out", queries, spec.width, bias=spec.out_bias, std=make.output_std()
        )

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        positions_BS: Int[Array, "B S"],
        turns: LayerTurns | None,
        hooks: Hooks,
    ) -> Float[Array, "B S D"]:
        """The attention's contribution to the residual stream.

        Args:
            x_BSD: the block's (normed) input.
            positions_BS: position of each token, from 0.
            turns: how queries and keys are rotated; None: they are not.
            hooks: see `Hooks`.
        """
        spec = self.spec
        B, S, _ = x_BSD.shape
        q_BSNH, k_BSKH, v_BSKH = self._projected(x_BSD, hooks)
        if turns is not None:
            q_BSNH = rotated(rotate(q_BSNH, positions_BS, turns))
            k_BSKH = rotated(rotate(k_BSKH, positions_BS, turns))
            hooks.keep("q_rotated", q_BSNH.reshape(B, S, -1))
            hooks.keep("k_rotated", k_BSKH.reshape(B, S, -1))
        if spec.query_growth is not None:
            q_BSNH = grown(q_BSNH, positions_BS, spec.query_growth)
        k_BTKH, v_BTKH = hooks.remember(k_BSKH, v_BSKH)
        heads_BSNH = attention(
            q_BSNH,
            k_BTKH,
            v_BTKH,
            hooks.reach,
            scale=spec.query_scale or spec.head_dim**-0.5,
            softcap=spec.attn_softcap,
            window=hooks.window,
            sink_N=self.sinks[...] if spec.sinks else None,
        )
        heads_BSX = heads_BSNH.reshape(B, S, -1)
        if spec.gated_attention:
            gate_BSX = hooks.project("attention.gate", self.gate, x_BSD)
            heads_BSX = heads_BSX * jax.nn.sigmoid(gate_BSX)
        hooks.keep("attn_heads", heads_BSX)
        return hooks.project("attention.out", self.out, heads_BSX)

    def _projected(self, x_BSD: Array, hooks: Hooks) -> tuple[Array, Array, Array]:
        """Queries [B, S, N, H], keys and values [B, S, K, H], before rotation."""
        spec = self.spec
        B, S, _ = x_BSD.shape
        q_BSX = hooks.project("attention.query", self.query, x_BSD)
        k_BSX = hooks.project("attention.key", self.key, x_BSD)
        v_BSX = k_BSX if spec.key_is_value else hooks.project("attention.value", self.value, x_BSD)
        hooks.keep("q", q_BSX)
        hooks.keep("k", k_BSX)
        hooks.keep("v", v_BSX)
        if spec.qk_norm == "all":
            q_BSX = self.query_norm(q_BSX)
            k_BSX = self.key_norm(k_BSX)
        q_BSNH = q_BSX.reshape(B, S, -1, spec.head_dim)
        k_BSKH = k_BSX.reshape(B, S, -1, spec.head_dim)
        v_BSKH = v_BSX.reshape(B, S, -1, spec.head_dim)
        if spec.qk_norm in ("head", "own"):
            q_BSNH = self.query_norm(q_BSNH)
            k_BSKH = self.key_norm(k_BSKH)
        if spec.value_norm:
            v_BSKH = rms_norm(v_BSKH, jnp.ones(spec.head_dim), spec.norm_eps)
        return q_BSNH, k_BSKH, v_BSKH
