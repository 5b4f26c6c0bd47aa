"""What a decoder keeps of the tokens that it has read, so that the next token can run alone.

Layers that attend keep keys and values of each token, gated delta nets a memory of all of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.delta_shape import DeltaShape
from sparsepo_jax.models.layers import DeltaState
from sparsepo_jax.models.stacks import Stack
from sparsepo_jax.ops.attention import Given, Packed


class KeysValues(NamedTuple):
    """What the layers of a stack have computed of each column, for later columns to attend to."""

    keys_LBCKH: Float[Array, "L B C K H"]
    values_LBCKH: Float[Array, "L B C K H"]

    def written(
        self, place: Int[Array, ""], keys_BSKH: Array, values_BSKH: Array, column: Int[Array, ""]
    ) -> "KeysValues":
        """The same with keys and values of S columns filled in, for one layer.

        Args:
            place: the layer's place in the stack, from 0.
            keys_BSKH: keys of the new columns, rotated.
            values_BSKH: values of the new columns.
            column: the first of the new columns.
        """
        begin = (place, 0, column, 0, 0)

        def put(x_LBCKH: Array, x_BSKH: Array) -> Array:
            return jax.lax.dynamic_update_slice(x_LBCKH, x_BSKH[None].astype(x_LBCKH.dtype), begin)

        return KeysValues(put(self.keys_LBCKH, keys_BSKH), put(self.values_LBCKH, values_BSKH))


class DeltaStates(NamedTuple):
    """What the gated delta nets of a stack go on from, see `DeltaState`."""

    inputs_LBYF: Float[Array, "L B Y F"]
    memory_LBNHX: Float[Array, "L B N H X"]

    def written(self, place: Int[Array, ""], state: DeltaState) -> "DeltaStates":
        """The same with another state of one layer.

        Args:
            place: the layer's place in the stack, from 0.
            state: its new state.
        """
        return DeltaStates(
            *(x_L.at[place].set(x.astype(x_L.dtype)) for x_L, x in zip(self, state, strict=True))
        )

    def of(self, place: Int[Array, ""]) -> DeltaState:
        """The state of one layer.

        Args:
            place: the layer's place in the stack, from 0.
        """
        return DeltaState(*(x_L[place] for x_L in self))


class Cache(NamedTuple):
    """A fixed number C of columns, of which the first `used` are written and the rest are free.

    Columns of padding (valid_BC False) are never seen. Positions count real tokens, so they differ from
    columns. What layers have computed lies in `stacks`, by the stack's path.
    """

    stacks: dict[str, KeysValues | DeltaStates]
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
        stack: str,
        place: Int[Array, ""],
        keys_BSKH: Float[Array, "B S K H"],
        values_BSKH: Float[Array, "B S K H"],
    ) -> "Cache":
        """The cache with keys and values of its last S used columns filled in, for one layer.

        Args:
            stack: the path of the layer's stack.
            place: the layer's place in it, from 0.
            keys_BSKH: keys of the new columns, rotated.
            values_BSKH: values of the new columns.
        """
        column = self.used - keys_BSKH.shape[1]
        stored = self.stacks[stack]
        assert isinstance(stored, KeysValues)
        return self._with(stack, stored.written(place, keys_BSKH, values_BSKH, column))

    def retained(self, stack: str, place: Int[Array, ""], state: DeltaState) -> "Cache":
        """The cache with another state of one gated delta net.

        Args:
            stack: the path of the layer's stack.
            place: the layer's place in it, from 0.
            state: after the last used column.
        """
        stored = self.stacks[stack]
        assert isinstance(stored, DeltaStates)
        return self._with(stack, stored.written(place, state))

    def _with(self, stack: str, filled: KeysValues | DeltaStates) -> "Cache":
        return self._replace(stacks={**self.stacks, stack: filled})

    def repeated(self, times: int) -> "Cache":
        """The cache with each row repeated, copies side by side.

        Args:
            times: continuations of each prompt.
        """
        return Cache(
            stacks=jax.tree.map(lambda x_LBX: jnp.repeat(x_LBX, times, axis=1), self.stacks),
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
        dtype: type of keys and values. Memories are float32.
    """

    def of_stack(stack: Stack) -> KeysValues | DeltaStates:
        block = spec.of_layer(stack.layers[0])
        if block.delta is not None:
            return empty_states(block.delta, len(stack.layers), rows, dtype)
        shape = (len(stack.layers), rows, columns, block.num_kv_heads, block.head_dim)
        zeros_LBCKH = jnp.zeros(shape, dtype)
        return KeysValues(zeros_LBCKH, zeros_LBCKH)

    return Cache(
        stacks={stack.path: of_stack(stack) for scan in spec.scans() for stack in scan},
        positions_BC=jnp.zeros((rows, columns), jnp.int32),
        valid_BC=jnp.zeros((rows, columns), bool),
        used=jnp.int32(0),
    )


def empty_states(shape: DeltaShape, layers: int, rows: int, dtype: DTypeLike) -> DeltaStates:
    """Those before a sequence's first token.

    Args:
        shape: of the gated delta nets.
        layers: of the stack.
        rows: sequences that are read at the same time.
        dtype: type of the convolution's inputs.
    """
    return DeltaStates(
        jnp.zeros((layers, rows, shape.reach - 1, shape.convolved), dtype),
        jnp.zeros((layers, rows, shape.value_heads, shape.key_dim, shape.value_dim), jnp.float32),
    )


class Memory:
    """What one layer knows of tokens before. `cache` holds what is new once it was told."""

    def __init__(self, cache: Cache | None, stack: str, place: Array, reach: Given | Packed):
        """Nothing is remembered yet.

        Args:
            cache: of all layers; None: what is computed is not kept.
            stack: the path of the layer's stack.
            place: the layer's place in it.
            reach: which keys each query sees.
        """
        self.cache = cache
        self._stack = stack
        self._place = place
        self._reach = reach

    def remember(self, k_BSKH: Array, v_BSKH: Array) -> tuple[Array, Array]:
        """See `Hooks.remember`.

        Args:
            k_BSKH: new keys.
            v_BSKH: new values.
        """
        if self.cache is None:
            return k_BSKH, v_BSKH
        self.cache = self.cache.written(self._stack, self._place, k_BSKH, v_BSKH)
        if self._reads_first():
            return k_BSKH, v_BSKH
        stored = self.cache.stacks[self._stack]
        assert isinstance(stored, KeysValues)
        return stored.keys_LBCKH[self._place], stored.values_LBCKH[self._place]

    def recall(self) -> DeltaState | None:
        """See `Hooks.recall`."""
        if self.cache is None or self._reads_first():
            return None
        stored = self.cache.stacks[self._stack]
        assert isinstance(stored, DeltaStates)
        return stored.of(self._place)

    def retain(self, state: DeltaState) -> None:
        """See `Hooks.retain`.

        Args:
            state: after the last token.
        """
        if self.cache is not None:
            self.cache = self.cache.retained(self._stack, self._place, state)

    def _reads_first(self) -> bool:
        """Whether these are the first tokens, which see nothing but themselves."""
        assert isinstance(self._reach, Given)
        queries, keys = self._reach.attend_BST.shape[1:]
        return queries == keys
