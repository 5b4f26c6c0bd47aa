"""A scan over layers whose backward pass adds the gradient of each layer to running sums.

Differentiated in the usual way, a scan gives the gradients of all its layers as one stack, which is then
added to the sums of the micro-steps before: a second array of the weights' size. Here the sums go through the
backward pass, and only one layer's gradient is there at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (carried, weights of a layer, what else it reads) to (carried, what is kept of the layer)
Layer = Callable[[Any, Any, Any], tuple[Any, Any]]


def adding_scan(
    layers: list[Layer], carried: Any, weights: list[Any], others: list[Any], sums: list[Any]
) -> tuple[Any, list[Any]]:
    """`jax.lax.scan` over layers, several in its body, whose gradient in `sums` is their new value.

    JAX lets a backward pass give values only as gradients of inputs. So the sums are an input, and what comes
    as their gradient is the sums plus the gradient in the weights, which have none of their own, nor have
    `others`. A loss may be read through the same sums once only: twice would count them twice.

    Of a layer nothing is held for the backward pass but what is carried into it: it is computed again.

    Args:
        layers: those of the scan's body, in their order; what one keeps is of floats.
        carried: into the first layer; floats.
        weights: for each layer of the body, those of all repetitions, with a leading axis of these.
        others: what else it reads, with the same axis.
        sums: of gradients so far, with the shapes of the weights, of any type of float.

    Returns:
        (what the last layer gives, for each layer of the body what was kept of it, stacked).
    """

    @jax.custom_vjp
    def run(carried: Any, weights: list[Any], others: list[Any], sums: list[Any]) -> tuple[Any, list[Any]]:
        result, _ = forward(carried, weights, others, sums)
        return result

    def forward(carried: Any, weights: list[Any], others: list[Any], sums: list[Any]) -> tuple[Any, Any]:
        def body(carried: Any, of_layers: tuple[list[Any], list[Any]]) -> tuple[Any, Any]:
            kept, inputs = [], []
            for layer, *read in zip(layers, *of_layers, strict=True):
                inputs.append(carried)
                carried, kept_here = layer(carried, *read)
                kept.append(kept_here)
            return carried, (kept, inputs)

        last, (kept, inputs) = jax.lax.scan(body, carried, (weights, others))
        return (last, kept), (inputs, weights, others, sums)

    def backward(held: Any, slopes: Any) -> tuple[Any, None, None, list[Any]]:
        inputs, weights, others, sums = held
        slope, slope_of_kept = slopes

        def body(state: tuple[Any, list[Any]], of_layers: Any) -> tuple[tuple[Any, list[Any]], None]:
            slope, sums = state
            place, *parts = of_layers
            new = []
            for layer, total, *read in reversed(list(zip(layers, sums, *parts, strict=True))):
                slope, total = _back(layer, slope, total, place, *read)
                new.append(total)
            return (slope, new[::-1]), None

        places = jnp.arange(len(jax.tree.leaves(sums)[0]))
        xs = (places, inputs, weights, others, slope_of_kept)
        (slope, sums), _ = jax.lax.scan(body, (slope, sums), xs, reverse=True)
        return slope, None, None, sums

    run.defvjp(forward, backward)
    return run(carried, weights, others, sums)


def _back(
    layer: Layer,
    slope: Any,
    sums: Any,
    place: Any,
    before: Any,
    weights: Any,
    others: Any,
    slope_of_kept: Any,
) -> tuple[Any, Any]:
    """(slope in what a layer read, the sums with its gradient in them)."""
    # Else XLA may take what the forward pass computed, and hold it, where it writes a scan of one turn out.
    before, slope = jax.lax.optimization_barrier((before, slope))
    _, pull = jax.vjp(lambda before, weights: layer(before, weights, others), before, weights)
    slope, gradient = pull((slope, slope_of_kept))

    def added(total: jax.Array, more: jax.Array) -> jax.Array:
        return total.at[place].add(more.astype(total.dtype))

    return slope, jax.tree.map(added, sums, gradient)
