"""One decoder for all families: stacks of equal blocks, run by scans, driven by a DecoderSpec.

Activations leave through a tap: a callable that is given each named activation and returns what to keep of
it (None: nothing). The names, in the order in which they occur, all [B, S, features] with heads merged:

    embed                                       token (and position) embedding, once
    [attn_norm]  q k v  [q_rotated k_rotated]   input norm of attention; projections; after rotation (rotary)
    attn_heads  attn_out  [attn_resid]          before and after the output projection; residual after it
                                                (sequential blocks)
    [mlp_norm]  mlp_act  mlp_out                input norm of the MLP; input of its last projection; output
    block_out                                   residual stream after the block
    [router_logits router_choice]               of a mixture of experts, in place of mlp_act: [B, S, E], and
                                                the chosen experts [B, S, K]
    q  k  v  attn_heads  attn_out               of a gated delta net: projections before the convolution; the
                                                gated read of its memory, before and after the last projection
    final_norm                                  once

Profiles show the parts as scopes: `embed`, `attention` and `mlp` within each block, `final_norm`, `head`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.host_memory import on_device
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.models.cache import Cache, Memory, empty_cache
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.experts import Routing
from sparsepo_jax.models.layer_kinds import kind_arrays, kinds_of
from sparsepo_jax.models.layer_scan import (
    Layer,
    blocks_of,
    choices_of,
    in_order,
    scan_layers,
    stacked_blocks,
    sums_of,
)
from sparsepo_jax.models.layers import Hooks, LayerFactory
from sparsepo_jax.models.lora import Lora, dequantized
from sparsepo_jax.models.modules import Embed
from sparsepo_jax.models.stacks import Stack
from sparsepo_jax.ops.attention import Given, Packed
from sparsepo_jax.ops.grouped import HERE, Dispatch
from sparsepo_jax.ops.logits import LogitForm
from sparsepo_jax.ops.remat import Remat, with_remat

Tap = Callable[[str, Array], Any]  # gives an array, or a tree of them, to keep; or None
TILE = 128  # a TPU multiplies so many columns at a time, even if fewer are there


def _unchanged(x: Array) -> Array:
    return x


_Carried = tuple[Array, Cache | None]  # residual stream and cache


class Decoder(nnx.Module):
    """A causal language model. The weights of its blocks carry a leading layer axis."""

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: Remat = "nothing",
        lora: Lora | None = None,
        rngs: nnx.Rngs,
    ):
        """A decoder with random weights.

        Args:
            spec: its shape.
            dtype: type of the activations. Weights are float32; those under adapters are held as
                `lora.hold_base` left them.
            remat: what the backward pass computes again of each block instead of keeping it.
            lora: adapters beside the projections; None: none.
            rngs: source of the initial weights.
        """
        self.spec = spec
        self.dtype = dtype
        self.remat = remat
        self.dropout = 0.0 if lora is None else lora.dropout
        init = nnx.initializers.normal(spec.init_std)
        self.embed = Embed(spec.vocab_size, spec.width, dtype=dtype, embedding_init=init, rngs=rngs)
        if spec.positions == "learned":
            self.embed_positions = Embed(
                spec.max_positions, spec.width, dtype=dtype, embedding_init=init, rngs=rngs
            )
        self.blocks = stacked_blocks(spec, dtype, lora, rngs)
        self.final_norm = LayerFactory(spec, dtype, None, rngs).norm()
        if not spec.tied_head:
            self.head = Embed(spec.vocab_size, spec.width, dtype=dtype, embedding_init=init, rngs=rngs)
        if spec.head_bias:
            self.head_bias = nnx.Param(jnp.zeros(spec.vocab_size))

    def __call__(
        self,
        ids_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        reach: Given | Packed,
        *,
        tap: Tap | None = None,
        constrain: Callable[[Array], Array] = _unchanged,
        dropout_key_BS: Key[Array, "B S"] | None = None,
        unroll: bool = False,
        dispatch: Dispatch = HERE,
        choice_LBSK: Int[Array, "L B S K"] | None = None,
        offset_BSD: Float[Array, "B S D"] | None = None,
        sums: Weights | None = None,
    ) -> tuple[Float[Array, "B S D"], dict[str, Any]]:
        """Runs rows of tokens.

        Args:
            ids_BS: token ids, below the spec's `vocab_size`.
            positions_BS: position of each token, from 0.
            reach: which keys each position sees (see ops/attention).
            tap: is told of each named activation (see the top of this file) and returns what to keep.
            constrain: applied to the residual stream [B, S, D], to pin its sharding.
            dropout_key_BS: switches the adapters' dropout on, drawn token by token; None: no dropout.
            unroll: write the blocks out one after another instead of looping over them. Weights and kept
                activations are then read where they lie, not copied out of and into stacks, for a program
                that takes several times as long to compile.
            dispatch: where and by what experts are computed, in a mixture of them.
            choice_LBSK: the experts that tokens are sent to in place of those that the routers choose.
            offset_BSD: added to the embedded tokens, for gradients in them; None: nothing is.
            sums: of the gradients of the blocks' weights so far, by path. The gradient in them is then the
                new sums, and weights of blocks have none of their own (see ops/adding_scan); of a block
                nothing but its input is held, and layers are looped over, whatever `remat` and `unroll` say.

        Returns:
            The states after the final norm, and what the tap kept, by name. What it kept of blocks carries
            a leading axis of the layers that have such an activation, in order.

        Raises:
            ValueError: the tap kept arrays of different sizes of different layers.
        """
        states_BSD, kept, _ = self._run(
            ids_BS,
            positions_BS,
            reach,
            None,
            constrain,
            tap=tap,
            dropout_key_BS=dropout_key_BS,
            unroll=unroll,
            dispatch=dispatch,
            choice_LBSK=choice_LBSK,
            offset_BSD=offset_BSD,
            sums=sums,
        )
        return states_BSD, kept

    def read(
        self,
        ids_BS: Int[Array, "B S"],
        valid_BS: Bool[Array, "B S"],
        columns: int,
        constrain: Callable[[Array], Array] = _unchanged,
        dispatch: Dispatch = HERE,
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """Runs prompts and keeps what later tokens need of them.

        Args:
            ids_BS: token ids of the prompts, padded on the left.
            valid_BS: False for padding.
            columns: size of the cache, tokens, at least S.
            constrain: applied to the residual stream [B, S, D], to pin its sharding.
            dispatch: where and by what experts are computed, in a mixture of them.

        Returns:
            The states after the final norm, and the cache that holds the prompts.
        """
        rows, S = ids_BS.shape
        positions_BS = jnp.maximum(jnp.cumsum(valid_BS, axis=1) - 1, 0)
        empty = empty_cache(self.spec, rows, columns, self.dtype)
        cache, attend_BSC = empty.appended(positions_BS, valid_BS)
        # The columns after the prompts are still empty: nothing needs to look at them.
        reach = Given(attend_BSC[:, :, :S], positions_BS, positions_BS)
        states_BSD, _, filled = self._run(ids_BS, positions_BS, reach, cache, constrain, dispatch=dispatch)
        assert filled is not None
        return states_BSD, filled

    def extend(
        self,
        ids_B: Int[Array, " B"],
        cache: Cache,
        constrain: Callable[[Array], Array] = _unchanged,
        dispatch: Dispatch = HERE,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Runs one more token of each row.

        Args:
            ids_B: token ids.
            cache: what was read before; needs a free column.
            constrain: applied to the residual stream [B, 1, D], to pin its sharding.
            dispatch: where and by what experts are computed, in a mixture of them.

        Returns:
            The tokens' states after the final norm, and the cache with the tokens in it.
        """
        positions_B1 = cache.valid_BC.sum(axis=1, dtype=jnp.int32)[:, None]
        cache, attend_B1C = cache.appended(positions_B1, jnp.ones_like(positions_B1, bool))
        reach = Given(attend_B1C, positions_B1, cache.positions_BC)
        states_B1D, _, filled = self._run(
            ids_B[:, None], positions_B1, reach, cache, constrain, dispatch=dispatch
        )
        assert filled is not None
        return states_B1D[:, 0], filled

    def head_inputs(self, states: Float[Array, "*B D"]) -> tuple[Float[Array, "*B X"], Float[Array, "V X"]]:
        """The two factors of the logits, (x, W); `logit_form` makes logits of x W^T.

        x are the states and W is the head, or the token embedding if the head is tied. A head's bias
        becomes one more column of W, which meets a constant 1 in x. Columns of zeros follow, up to a
        multiple of TILE, because an odd width could not be sharded over devices.

        Args:
            states: states after the final norm.

        Returns:
            x, of the states' type, and W, float32.
        """
        head_VD = (self.embed if self.spec.tied_head else self.head).embedding[...]
        if not self.spec.head_bias:
            return states, head_VD
        padding = -(self.spec.width + 1) % TILE

        def padded(column: Array) -> Array:
            return jnp.pad(column, [(0, 0)] * (column.ndim - 1) + [(0, padding)])

        ones = jnp.ones_like(states[..., :1])
        bias_V1 = self.head_bias[...][:, None]
        x = jnp.concatenate([states, padded(ones)], axis=-1)
        return x, jnp.concatenate([head_VD, padded(bias_V1)], axis=1)

    @property
    def logit_form(self) -> LogitForm:
        """What becomes of the products of states and head."""
        return LogitForm(self.spec.logit_scale, self.spec.logit_softcap)

    def logits(self, states_BSD: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits, float32, for sampling, inspection and parity.

        Training uses ops.logprob_kl instead, which never holds all logits of a batch.

        Args:
            states_BSD: states after the final norm.
        """
        with jax.named_scope("head"):
            x_BSX, head_VX = self.head_inputs(states_BSD)
            logits_BSV = jnp.einsum(
                "...X,VX->...V", x_BSX, head_VX.astype(self.dtype), preferred_element_type=jnp.float32
            )
            return self.logit_form.logits(logits_BSV)

    def _run(
        self,
        ids_BS: Array,
        positions_BS: Array,
        reach: Given | Packed,
        cache: Cache | None,
        constrain: Callable[[Array], Array],
        *,
        tap: Tap | None = None,
        dropout_key_BS: Array | None = None,
        unroll: bool = False,
        dispatch: Dispatch = HERE,
        choice_LBSK: Array | None = None,
        offset_BSD: Array | None = None,
        sums: Weights | None = None,
    ) -> tuple[Array, dict[str, Any], Cache | None]:
        """Final states, what the tap kept, and the cache with these tokens in it."""
        kept: dict[str, Any] = {}
        with jax.named_scope("embed"):
            x_BSD = constrain(self._embedded(ids_BS, positions_BS))
            if offset_BSD is not None:
                x_BSD = x_BSD + offset_BSD
            _listener(tap, kept)("embed", x_BSD)
        valid_BS = reach.places.sequence_RS >= 0 if isinstance(reach, Packed) else None

        def runner(stack: Stack, graph: nnx.GraphDef) -> Callable[[_Carried, Layer], tuple[_Carried, dict]]:
            """A function that runs a layer of a stack."""
            arrays = kind_arrays(self.spec, stack.kind)

            def run_block(carried: _Carried, layer: Layer) -> tuple[_Carried, dict[str, Any]]:
                x_BSD, cache = carried
                kept_here: dict[str, Any] = {}
                memory = Memory(cache, stack.path, layer.place, reach)
                kind = arrays.of_layer(layer.kind)
                block = nnx.merge(graph, dequantized(on_device(layer.weights)))
                hooks = Hooks(
                    keep=_listener(tap, kept_here),
                    remember=memory.remember,
                    drop=self._dropout(layer.number(stack), dropout_key_BS),
                    reach=reach,
                    window=kind.window,
                    routing=Routing(dispatch, valid_BS, layer.choice_BSK),
                    recall=memory.recall,
                    retain=memory.retain,
                )
                x_BSD = block(x_BSD, positions_BS, kind.turns, hooks)
                return (constrain(x_BSD), memory.cache), kept_here

            return run_block if sums is not None else with_remat(run_block, self.remat)

        carried, kept_of_scans = (x_BSD, cache), []
        for scan in self.spec.scans():
            runners, layers = [], []
            for stack in scan:
                graph, weights = nnx.split(blocks_of(self.blocks, stack))
                kinds, choice = kinds_of(self.spec, stack), choices_of(self.spec, stack, choice_LBSK)
                runners.append(runner(stack, graph))
                layers.append(Layer(weights, kinds, jnp.arange(len(stack.layers)), choice))
            sums_of_scan = None
            if sums is not None:
                sums_of_scan = [
                    sums_of(stack, layer.weights, sums) for stack, layer in zip(scan, layers, strict=True)
                ]
            carried, kept_L = scan_layers(runners, carried, layers, sums_of_scan, unroll=unroll)
            kept_of_scans.append(kept_L)
        x_BSD, cache = carried
        kept.update(in_order(kept_of_scans))
        with jax.named_scope("final_norm"):
            x_BSD = self.final_norm(x_BSD)
            _listener(tap, kept)("final_norm", x_BSD)
        return x_BSD, kept, cache

    def _embedded(self, ids_BS: Array, positions_BS: Array) -> Array:
        x_BSD = self.embed(ids_BS)
        if self.spec.embed_scale != 1.0:
            x_BSD = x_BSD * jnp.asarray(self.spec.embed_scale, x_BSD.dtype)
        if self.spec.positions == "learned":
            x_BSD = x_BSD + self.embed_positions(positions_BS)
        return x_BSD

    def _dropout(self, layer: Array, key_BS: Array | None) -> Callable[[str, Array], Array]:
        """The dropout of one layer's adapters: a function of projection and input (see `Hooks.drop`)."""
        names = self.spec.projection_names()

        def drop(name: str, x_BSX: Array) -> Array:
            if key_BS is None or self.dropout == 0.0:
                return x_BSX
            place = layer * len(names) + names.index(name)

            def draw(key: Array) -> Array:
                return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.dropout, x_BSX.shape[2:])

            return jnp.where(jax.vmap(jax.vmap(draw))(key_BS), x_BSX / (1 - self.dropout), 0)

        return drop


def _listener(tap: Tap | None, kept: dict[str, Any]) -> Callable[[str, Array], None]:
    """A `Hooks.keep` that puts what the tap returns into `kept`, by name."""

    def keep(name: str, x: Array) -> None:
        value = None if tap is None else tap(name, x)
        if value is not None:
            kept[name] = value

    return keep
