"""What differs between layers of one shape, as arrays that one program looks up: rotation and window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.rope_scaling import Rotation
from sparsepo_jax.models.rotary import LayerTurns, rotary_frequencies
from sparsepo_jax.models.stacks import Stack


class KindArrays(NamedTuple):
    """What differs between layers, as arrays: of all kinds [kinds, ...], or of one layer.

    Attributes:
        turns: how queries and keys are rotated; None: no layer rotates them.
        window: None: no layer has one.
    """

    turns: LayerTurns | None
    window: Array | int | None

    def of_layer(self, kind: Array | None) -> "KindArrays":
        """Those of a layer. All layers share one program, so what differs is looked up, not branched on.

        Args:
            kind: number of the layer's kind; None: there is only one.
        """
        return self if kind is None else jax.tree.map(lambda x: x[kind], self)


def kinds_of(spec: DecoderSpec, stack: Stack) -> Array | None:
    """The number of each layer's kind; None: all are of the stack's kind, or of the only one.

    Args:
        spec: the decoder.
        stack: one of its stacks.
    """
    if stack.kind is not None or not spec.kind_of_layer:
        return None
    return jnp.array(spec.kind_of_layer)


def kind_arrays(spec: DecoderSpec, kind: int | None) -> KindArrays:
    """The arrays of one kind, of all kinds (None), or of the only one.

    Args:
        spec: the decoder.
        kind: number of the kind.
    """
    kinds = spec.kinds if kind is None else (spec.kinds[kind],)
    if kind is not None or not spec.kind_of_layer:
        rotation = kinds[0].rotation
        return KindArrays(None if rotation is None else _turns_of(rotation), kinds[0].window)
    unlimited = jnp.iinfo(jnp.int32).max  # as far as there are positions
    windows = [kind.window or unlimited for kind in kinds]
    has_window = any(kind.window for kind in kinds)
    turns = _turns_of_kinds([kind.rotation for kind in kinds])
    return KindArrays(turns, jnp.array(windows) if has_window else None)


def _turns_of(rotation: Rotation) -> LayerTurns:
    factor = rotation.attention_factor
    return LayerTurns(jnp.asarray(rotary_frequencies(rotation)), None if factor == 1.0 else factor)


def _turns_of_kinds(rotations: list[Rotation | None]) -> LayerTurns | None:
    """The turns of kinds of layers, stacked; a kind that does not rotate has frequencies of zero."""
    pairs = next((rotation.dim // 2 for rotation in rotations if rotation is not None), None)
    if pairs is None:
        return None
    unrotated_X = np.zeros(pairs, np.float32)
    frequencies = [
        unrotated_X if rotation is None else rotary_frequencies(rotation) for rotation in rotations
    ]
    factors = [1.0 if rotation is None else rotation.attention_factor for rotation in rotations]
    has_factor = any(factor != 1.0 for factor in factors)
    return LayerTurns(
        jnp.asarray(np.stack(frequencies)), jnp.array(factors, jnp.float32) if has_factor else None
    )
