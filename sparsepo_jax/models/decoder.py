"""One decoder for all families: a stack of equal blocks, run by a scan, driven by a DecoderSpec.

Activations leave through a tap: a callable that is given each named activation and returns what to keep of it (or None). Names, in the order
they occur, all [B, S, features] with heads merged:

    embed                                             token (and position) embedding, once
    [attn_norm]  q k v  [q_rotated k_rotated]         input norm of attention; projections; after rotation (rotary families)
    attn_heads  attn_out  [attn_resid]                before and after the output projection; residual after attention (sequential blocks)
    [mlp_norm]  mlp_act  mlp_out                      input norm of the MLP, what its last projection reads, its output
    block_out                                         residual stream after the block
    final_norm                                        once
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.models.cache import Cache, empty_cache
from sparsepo_jax.models.lora import Lora, dequantized, init_a
from sparsepo_jax.models.rotary_fields import RopeScaling
from sparsepo_jax.models.spec import DecoderSpec
from sparsepo_jax.ops.attention import Given, Packed, attention
from sparsepo_jax.ops.logprob_kl import soft_cap

Tap = Callable[[str, Array], Array | None]
TILE = 128  # columns that a TPU multiplies at a time, whether they are there or not


class Hooks(NamedTuple):
    """What a block calls on its way. keep(name, x): a named activation passes by. remember(keys, values) [B, S, K, H] gives all that queries
    may see [B, T, K, H]: these themselves, or a cache with them at its end. drop(projection, x): what its adapter sees of x. reach, window: what a
    query sees, see ops/attention."""

    keep: Callable[[str, Array], None]
    remember: Callable[[Array, Array], tuple[Array, Array]]
    drop: Callable[[str, Array], Array]
    reach: Given | Packed
    window: Array | int | None

    def project(self, name: str, linear: nnx.Linear, x: Array) -> Array:
        """linear(x), with its adapter's part if it has one."""
        if not hasattr(linear, "lora"):
            return linear(x)
        return linear(x) + jnp.asarray(linear.lora_scale, x.dtype) * linear.lora(self.drop(name, x))


def _keeping_slope(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function, whose derivative is computed on the way and is all that is kept for the backward pass: derived from what it kept
    otherwise, that of tanh-GELU costs XLA's CPU a tenth of a whole step, and a quarter of its memory."""
    kept = jax.custom_vjp(function)
    kept.defvjp(
        lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),)), lambda slope, cotangent: (cotangent * slope,)
    )
    return kept


_ACTIVATIONS = {
    "gelu_tanh": _keeping_slope(lambda x: nnx.gelu(x, approximate=True)),
    "gelu": _keeping_slope(lambda x: nnx.gelu(x, approximate=False)),
    "relu": nnx.relu,
    "silu": _keeping_slope(nnx.silu),
}


def rotary_frequencies(rotary_dim: int, base: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position, one for each pair of rotated dims, float32; Llama 3's and linear scaling as in transformers' rope utilities."""
    frequency_H = base ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if scaling is not None and scaling.low is None:
        frequency_H = frequency_H / scaling.factor
    elif scaling is not None:
        turns_H = (
            scaling.original_positions * frequency_H / (2 * np.pi)
        )  # over the positions that the model was first trained on
        keep_H = np.clip((turns_H - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        frequency_H = keep_H * frequency_H + (1 - keep_H) * frequency_H / scaling.factor
    return frequency_H.astype(np.float32)


def rotate(x_BSNH: Array, positions_BS: Array, frequency_H: Array) -> Array:
    """Rotary position embedding of the first dims of each head, halves paired (GPT-NeoX; Su et al. 2021, 2104.09864)."""
    half, rotary_dim = len(frequency_H), 2 * len(frequency_H)
    angle_BS1H = positions_BS[..., None, None].astype(jnp.float32) * frequency_H
    cos, sin = jnp.cos(angle_BS1H).astype(x_BSNH.dtype), jnp.sin(angle_BS1H).astype(x_BSNH.dtype)
    a, b, rest = x_BSNH[..., :half], x_BSNH[..., half:rotary_dim], x_BSNH[..., rotary_dim:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


class Plan(NamedTuple):
    """What all parts of a decoder are made by."""

    spec: DecoderSpec
    dtype: jnp.dtype
    lora: Lora | None
    rngs: nnx.Rngs

    def linear(
        self, name: str, inside: int, outside: int, *, bias: bool, std: float | None = None
    ) -> nnx.Linear:
        init = nnx.initializers.normal(std or self.spec.init_std)
        made = nnx.Linear(inside, outside, use_bias=bias, dtype=self.dtype, kernel_init=init, rngs=self.rngs)
        if self.lora is not None and name in self.lora.targets:
            made.lora = nnx.LoRA(
                inside,
                self.lora.rank,
                outside,
                dtype=self.dtype,
                a_initializer=init_a,
                lora_param_type=nnx.Param,
                rngs=self.rngs,
            )
            made.lora_scale = self.lora.scale
        return made

    def norm(self) -> nnx.LayerNorm | nnx.RMSNorm:
        spec = self.spec
        if spec.norm == "rms":
            return nnx.RMSNorm(spec.width, epsilon=spec.norm_eps, dtype=self.dtype, rngs=self.rngs)
        # The fast variance (mean of squares minus squared mean) loses digits that parity with transformers needs.
        return nnx.LayerNorm(
            spec.width, epsilon=spec.norm_eps, dtype=self.dtype, use_fast_variance=False, rngs=self.rngs
        )


class Attention(nnx.Module):
    def __init__(self, plan: Plan):
        spec = plan.spec
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        make = lambda name, width: plan.linear(f"attention.{name}", spec.width, width, bias=spec.qkv_bias)
        self.spec, self.query, self.key, self.value = (
            spec,
            make("query", queries),
            make("key", keys),
            make("value", keys),
        )
        if spec.qk_norm is not None:
            widths = (queries, keys) if spec.qk_norm == "all" else (spec.head_dim, spec.head_dim)
            self.query_norm, self.key_norm = (
                nnx.RMSNorm(width, epsilon=spec.norm_eps, dtype=plan.dtype, rngs=plan.rngs)
                for width in widths
            )
        self.out = plan.linear(
            "attention.out",
            queries,
            spec.width,
            bias=spec.out_bias,
            std=spec.init_std / (2 * spec.num_layers) ** 0.5,
        )

    def __call__(self, x_BSD: Array, positions_BS: Array, frequency_H: Array | None, hooks: Hooks) -> Array:
        spec, keep, (B, S, _) = self.spec, hooks.keep, x_BSD.shape
        q, k, v = (
            hooks.project(f"attention.{name}", getattr(self, name), x_BSD)
            for name in ("query", "key", "value")
        )
        for name, x in (("q", q), ("k", k), ("v", v)):
            keep(name, x)
        if spec.qk_norm == "all":
            q, k = self.query_norm(q), self.key_norm(k)
        q_BSNH, k_BSKH, v_BSKH = (
            q.reshape(B, S, -1, spec.head_dim),
            k.reshape(B, S, -1, spec.head_dim),
            v.reshape(B, S, -1, spec.head_dim),
        )
        if spec.qk_norm == "head":
            q_BSNH, k_BSKH = self.query_norm(q_BSNH), self.key_norm(k_BSKH)
        if frequency_H is not None:
            q_BSNH, k_BSKH = (
                rotate(q_BSNH, positions_BS, frequency_H),
                rotate(k_BSKH, positions_BS, frequency_H),
            )
            keep("q_rotated", q_BSNH.reshape(B, S, -1))
            keep("k_rotated", k_BSKH.reshape(B, S, -1))
        k_BTKH, v_BTKH = hooks.remember(k_BSKH, v_BSKH)
        scale = spec.query_scale or spec.head_dim**-0.5
        seen = {"reach": hooks.reach, "window": hooks.window}
        heads_BSD = attention(q_BSNH, k_BTKH, v_BTKH, **seen, scale=scale, softcap=spec.attn_softcap).reshape(
            B, S, -1
        )
        keep("attn_heads", heads_BSD)
        return hooks.project("attention.out", self.out, heads_BSD)


class Block(nnx.Module):
    def __init__(self, plan: Plan):
        self.spec = spec = plan.spec
        if spec.norms != "after":
            self.attn_norm = plan.norm()
        if spec.norms != "after" and not spec.shared_norm:
            self.mlp_norm = plan.norm()
        if spec.norms != "before":
            self.attn_post_norm, self.mlp_post_norm = plan.norm(), plan.norm()
        self.attention = Attention(plan)
        self.up = plan.linear("up", spec.width, spec.mlp_width, bias=spec.mlp_bias)
        if spec.gated_mlp:
            self.gate = plan.linear("gate", spec.width, spec.mlp_width, bias=spec.mlp_bias)
        self.down = plan.linear(
            "down",
            spec.mlp_width,
            spec.width,
            bias=spec.mlp_bias,
            std=spec.init_std / (2 * spec.num_layers) ** 0.5,
        )

    def __call__(self, x_BSD: Array, positions_BS: Array, frequency_H: Array | None, hooks: Hooks) -> Array:
        spec, keep, activation = self.spec, hooks.keep, _ACTIVATIONS[self.spec.activation]
        attn_in_BSD = x_BSD
        if spec.norms != "after":
            attn_in_BSD = self.attn_norm(x_BSD)
            keep("attn_norm", attn_in_BSD)
        attn_BSD = self.attention(attn_in_BSD, positions_BS, frequency_H, hooks)
        keep("attn_out", attn_BSD)
        resid_BSD = x_BSD + (attn_BSD if spec.norms == "before" else self.attn_post_norm(attn_BSD))
        if not spec.parallel_residual:
            keep("attn_resid", resid_BSD)
        mlp_in_BSD = x_BSD if spec.parallel_residual else resid_BSD
        if spec.shared_norm:
            mlp_in_BSD = attn_in_BSD
        elif spec.norms != "after":
            mlp_in_BSD = self.mlp_norm(mlp_in_BSD)
            keep("mlp_norm", mlp_in_BSD)
        up_BSF = hooks.project("up", self.up, mlp_in_BSD)
        act_BSF = (
            activation(hooks.project("gate", self.gate, mlp_in_BSD)) * up_BSF
            if spec.gated_mlp
            else activation(up_BSF)
        )
        keep("mlp_act", act_BSF)
        mlp_BSD = hooks.project("down", self.down, act_BSF)
        keep("mlp_out", mlp_BSD)
        out_BSD = resid_BSD + (mlp_BSD if spec.norms == "before" else self.mlp_post_norm(mlp_BSD))
        keep("block_out", out_BSD)
        return out_BSD


class Decoder(nnx.Module):
    """`dtype` is the type of activations; weights are float32, those under adapters as models/lora holds them. Block weights carry a leading
    layer axis."""

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        lora: Lora | None = None,
        rngs: nnx.Rngs,
    ):
        self.spec, self.dtype, self.remat, self.dropout = (
            spec,
            dtype,
            remat,
            0.0 if lora is None else lora.dropout,
        )
        init = nnx.initializers.normal(spec.init_std)
        self.embed = nnx.Embed(spec.vocab_size, spec.width, dtype=dtype, embedding_init=init, rngs=rngs)
        if spec.positions == "learned":
            self.embed_positions = nnx.Embed(
                spec.max_positions, spec.width, dtype=dtype, embedding_init=init, rngs=rngs
            )

        @nnx.split_rngs(splits=spec.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(Plan(spec, dtype, lora, rngs))

        self.blocks = make_blocks(rngs)
        self.final_norm = Plan(spec, dtype, None, rngs).norm()
        if not spec.tied_head:
            self.head = nnx.Embed(spec.vocab_size, spec.width, dtype=dtype, embedding_init=init, rngs=rngs)
        if spec.head_bias:
            self.head_bias = nnx.Param(jnp.zeros(spec.vocab_size))

    def head_inputs(self, states: Float[Array, "... D"]) -> tuple[Float[Array, "... W"], Float[Array, "V W"]]:
        """(x, W) with logits = x W^T, before any softcap: the final states, and the token embedding where the head is tied. A head's bias is a column of W that
        meets a constant 1 in x, followed by zeros up to a multiple of TILE: an odd width could not be cut over devices. W is float32."""
        head_VD = (self.embed if self.spec.tied_head else self.head).embedding[...]
        if not self.spec.head_bias:
            return states, head_VD
        last = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -(self.spec.width + 1) % TILE)])
        ones, bias_V1 = jnp.ones_like(states[..., :1]), self.head_bias[...][:, None]
        return jnp.concatenate([states, last(ones)], axis=-1), jnp.concatenate(
            [head_VD, last(bias_V1)], axis=1
        )

    def __call__(
        self,
        ids_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        reach: Given | Packed,
        *,
        tap: Tap | None = None,
        constrain: Callable[[Array], Array] = lambda x: x,
        dropout_key_BS: Key[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
        """Final states (after the last norm) and what the tap kept; kept activations of blocks carry a leading L.

        reach: which keys each position sees. constrain: applied to the residual stream [B, S, D], to pin its sharding. dropout_key_BS: switches
        the adapters' dropout on, drawn token by token.
        """
        return self._run(ids_BS, positions_BS, reach, None, tap, constrain, dropout_key_BS)[:2]

    def read(
        self,
        ids_BS: Int[Array, "B S"],
        valid_BS: Bool[Array, "B S"],
        columns: int,
        constrain: Callable[[Array], Array] = lambda x: x,
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """Final states of prompts, padded on the left, and a cache of `columns` >= S columns that holds them."""
        positions_BS = jnp.maximum(jnp.cumsum(valid_BS, axis=1) - 1, 0)
        cache, attend_BST = empty_cache(self.spec, ids_BS.shape[0], columns, self.dtype).appended(
            positions_BS, valid_BS
        )
        reach = Given(
            attend_BST[:, :, : ids_BS.shape[1]], positions_BS, positions_BS
        )  # nothing else is there yet
        states_BSD, _, cache = self._run(ids_BS, positions_BS, reach, cache, None, constrain)
        return states_BSD, cache

    def extend(
        self, ids_B: Int[Array, "B"], cache: Cache, constrain: Callable[[Array], Array] = lambda x: x
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Final state of one more token in each row, and the cache with it."""
        positions_B1 = cache.valid_BT.sum(axis=1, dtype=jnp.int32)[:, None]
        cache, attend_B1T = cache.appended(positions_B1, jnp.ones_like(positions_B1, bool))
        states_B1D, _, cache = self._run(
            ids_B[:, None],
            positions_B1,
            Given(attend_B1T, positions_B1, cache.positions_BT),
            cache,
            None,
            constrain,
        )
        return states_B1D[:, 0], cache

    def _run(
        self,
        ids_BS: Array,
        positions_BS: Array,
        reach: Given | Packed,
        cache: Cache | None,
        tap: Tap | None,
        constrain: Callable[[Array], Array],
        dropout_key_BS: Array | None = None,
    ) -> tuple[Array, dict[str, Array], Cache | None]:
        kept: dict[str, Array] = {}
        x_BSD = self.embed(ids_BS)
        if self.spec.embed_scale != 1.0:
            x_BSD = x_BSD * jnp.asarray(self.spec.embed_scale, x_BSD.dtype)
        if self.spec.positions == "learned":
            x_BSD = x_BSD + self.embed_positions(positions_BS)
        x_BSD = constrain(x_BSD)
        _keeper(tap, kept)("embed", x_BSD)
        near, *far = self._kinds_of_layer()
        local_L = None if self.spec.local_layers is None else jnp.array(self.spec.local_layers)
        graph, stacked = nnx.split(self.blocks)
        names = list(self.spec.projections())

        def run_block(carried, layer):
            (x_BSD, cache), (weights, is_local, number) = carried, layer
            kept_here: dict[str, Array] = {}

            def remember(k_BSKH, v_BSKH):
                nonlocal cache
                if cache is None:
                    return k_BSKH, v_BSKH
                cache = cache.written(number, k_BSKH, v_BSKH)
                if (
                    reach.attend_BST.shape[-1] == k_BSKH.shape[1]
                ):  # the first to be written see nothing but themselves
                    return k_BSKH, v_BSKH
                return cache.keys_LBTKH[number], cache.values_LBTKH[number]

            def drop(name, x):
                if dropout_key_BS is None or self.dropout == 0.0:
                    return x
                place = number * len(names) + names.index(name)
                of_token = lambda key: jax.random.bernoulli(
                    jax.random.fold_in(key, place), 1 - self.dropout, x.shape[2:]
                )
                return jnp.where(jax.vmap(jax.vmap(of_token))(dropout_key_BS), x / (1 - self.dropout), 0)

            # The two kinds of layer share one program: what differs is chosen, not branched on.
            frequency_H, window = (
                near if is_local is None else jax.tree.map(lambda x, y: jnp.where(is_local, x, y), near, *far)
            )
            block, hooks = (
                nnx.merge(graph, dequantized(weights)),
                Hooks(_keeper(tap, kept_here), remember, drop, reach, window),
            )
            x_BSD = block(x_BSD, positions_BS, frequency_H, hooks)
            return (constrain(x_BSD), cache), kept_here

        layers = stacked, local_L, jnp.arange(self.spec.num_layers)
        (x_BSD, cache), kept_L = jax.lax.scan(
            jax.checkpoint(run_block) if self.remat else run_block, (x_BSD, cache), layers
        )
        kept.update(kept_L)
        x_BSD = self.final_norm(x_BSD)
        _keeper(tap, kept)("final_norm", x_BSD)
        return x_BSD, kept, cache

    def _kinds_of_layer(self) -> list[tuple[Array | None, int | None]]:
        """(rotary frequencies, window), of all layers or of local and other layers."""
        spec = self.spec
        if not spec.rotary_dim:
            return [(None, spec.window)]
        frequency_H = jnp.asarray(rotary_frequencies(spec.rotary_dim, spec.rotary_base, spec.rope_scaling))
        if spec.local_layers is None:
            return [(frequency_H, spec.window)]
        near = (
            jnp.asarray(rotary_frequencies(spec.rotary_dim, spec.local_rotary_base or spec.rotary_base)),
            spec.window,
        )
        return [near, (frequency_H, jnp.iinfo(jnp.int32).max)]  # as far as there are positions

    def logits(self, states_BSD: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Next-token logits, float32. For inspection and parity; training uses ops.logprob_kl, which never holds them all."""
        x_BSD, head_VD = self.head_inputs(states_BSD)
        logits_BSV = jnp.einsum(
            "...D,VD->...V", x_BSD, head_VD.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return soft_cap(logits_BSV, self.spec.logit_softcap)


def _keeper(tap: Tap | None, kept: dict[str, Array]) -> Tap:
    """A tap that files what `tap` returns under its name."""

    def keep(name: str, x: Array) -> None:
        value = None if tap is None else tap(name, x)
        if value is not None:
            kept[name] = value

    return keep
