"""Blocks as stacks, and the scans that run them in the order of their layers (see models/stacks)."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from sparsepo_jax.core.tree import Kept, Weights
from sparsepo_jax.models.block import Block
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.layers import LayerFactory
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.stacks import Stack
from sparsepo_jax.ops import adding_scan

Carried = TypeVar("Carried")


class Layer(NamedTuple):
    """What a scan reads of a layer, or of all layers of a stack.

    Attributes:
        weights: of its block.
        kind: number of its kind; None: all layers of the stack are of one.
        place: its place in the stack.
        choice_BSK: the experts that each token is sent to; None: the layer has none, or its router chooses.
    """

    weights: Any
    kind: Array | None
    place: Array
    choice_BSK: Array | None = None

    def number(self, stack: Stack) -> Array:
        """The layer's number among all layers.

        Args:
            stack: where it lies.
        """
        first, step = stack.layers.start, stack.layers.step
        return self.place if (first, step) == (0, 1) else first + step * self.place


class Stacks(nnx.Module):
    """The blocks of a decoder whose layers differ in shape: an attribute for each stack."""


def stacked_blocks(spec: DecoderSpec, dtype: DTypeLike, lora: Lora | None, rngs: nnx.Rngs) -> Block | Stacks:
    """All blocks of a decoder, with random weights, whose arrays have a leading layer axis.

    Args:
        spec: the decoder.
        dtype: type of the activations.
        lora: which projections get an adapter; None: none does.
        rngs: source of the initial weights.
    """

    def stacked(stack: Stack) -> Block:
        @nnx.split_rngs(splits=len(stack.layers))
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(LayerFactory(spec.of_layer(stack.layers[0]), dtype, lora, rngs))

        return make_blocks(rngs)

    stacks = [stack for scan in spec.scans() for stack in scan]
    if spec.has_one_shape:
        return stacked(stacks[0])
    blocks = Stacks()
    for stack in stacks:
        setattr(blocks, _attribute(stack), stacked(stack))
    return blocks


def blocks_of(blocks: Block | Stacks, stack: Stack) -> Block:
    """The blocks of one stack, as one block whose arrays have a leading layer axis.

    Args:
        blocks: those of the decoder.
        stack: one of its stacks.
    """
    return getattr(blocks, _attribute(stack)) if isinstance(blocks, Stacks) else blocks


def _attribute(stack: Stack) -> str:
    return stack.path.removeprefix("blocks.")


def choices_of(spec: DecoderSpec, stack: Stack, choice_LBSK: Array | None) -> Array | None:
    """The experts to which tokens are sent in the layers of a stack; None: their routers choose.

    Args:
        spec: the decoder.
        stack: one of its stacks.
        choice_LBSK: those of all layers that have experts; None: routers choose.
    """
    if choice_LBSK is None or spec.of_layer(stack.layers[0]).mixture is None:
        return None
    if spec.has_one_shape:
        return choice_LBSK
    rows = [spec.layers_with_experts().index(layer) for layer in stack.layers]
    return choice_LBSK[jnp.array(rows)]


def one_after_another(
    runners: list[Callable[[Carried, Layer], tuple[Carried, Kept]]],
) -> Callable[[Carried, list[Layer]], tuple[Carried, list[Kept]]]:
    """The body of a scan, which runs a layer of each stack.

    Args:
        runners: of each stack the function that runs one of its layers.
    """

    def body(carried: Carried, layers: list[Layer]) -> tuple[Carried, list[Kept]]:
        kept = []
        for run, layer in zip(runners, layers, strict=True):
            carried, kept_here = run(carried, layer)
            kept.append(kept_here)
        return carried, kept

    return body


def scan_layers(
    runners: list[Callable[[Carried, Layer], tuple[Carried, Kept]]],
    carried: Carried,
    layers: list[Layer],
    sums: list[list[Array]] | None,
    *,
    unroll: bool,
) -> tuple[Carried, list[Kept]]:
    """Runs a scan: what its last layer gives, and for each stack what was kept of its layers.

    Args:
        runners: of each stack the function that runs one of its layers.
        carried: into the first layer.
        layers: of each stack, with a leading layer axis.
        sums: see `sums_of`, for each stack; None: gradients are the usual ones.
        unroll: write the layers out one after another; with sums they are looped over all the same.
    """
    if sums is None:
        return jax.lax.scan(one_after_another(runners), carried, layers, unroll=unroll)

    def of_parts(run: Callable[[Carried, Layer], tuple[Carried, Kept]]) -> adding_scan.Layer:
        return lambda carried, weights, other: run(carried, other._replace(weights=weights))

    weights = [layer.weights for layer in layers]
    others = [layer._replace(weights=None) for layer in layers]
    sums_tree = jax.tree.unflatten(jax.tree.structure(weights), jax.tree.leaves(sums))
    return adding_scan.adding_scan([of_parts(run) for run in runners], carried, weights, others, sums_tree)


def sums_of(stack: Stack, weights: Any, sums: Weights) -> list[Array]:
    """The sums of a stack's gradients, in the order of the leaves of its weights.

    Args:
        stack: one of a decoder's.
        weights: of its blocks, a state.
        sums: by path.
    """
    return [sums[".".join((stack.path, *map(str, path)))] for path, _ in nnx.to_flat_state(weights)]


def in_order(kept_of_scans: list[list[Kept]]) -> Kept:
    """What was kept of all layers that have an activation, in their order, by its name.

    Args:
        kept_of_scans: of each scan, for each stack in its body, what was kept of the layers there.

    Raises:
        ValueError: arrays of different sizes were kept of different layers.
    """
    parts: dict[str, list[Any]] = {}
    for kept_of_stacks in kept_of_scans:
        for name in dict.fromkeys(name for kept in kept_of_stacks for name in kept):
            trees = [kept[name] for kept in kept_of_stacks if name in kept]
            parts.setdefault(name, []).append(_joined(name, _alternating, trees))
    return {name: _joined(name, jnp.concatenate, trees) for name, trees in parts.items()}


def _joined(name: str, join: Callable[[list[Array]], Array], trees: list[Any]) -> Any:
    if len(trees) == 1:
        return trees[0]
    sizes = {tuple(x.shape[1:] for x in jax.tree.leaves(tree)) for tree in trees}
    if len(sizes) > 1:
        raise ValueError(
            f"the activation {name} differs in size between layers: keep something of the same size of each, "
            "such as its mean over features"
        )
    return jax.tree.map(lambda *arrays: join(list(arrays)), *trees)


def _alternating(arrays: list[Array]) -> Array:
    """Arrays [L, ...] as one, whose entries are those of each in turn."""
    stacked = jnp.stack(arrays, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])
