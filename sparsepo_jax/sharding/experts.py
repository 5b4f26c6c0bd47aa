"""Experts on a mesh: each device holds some of them, and tokens travel to them.

Experts are cut as whole ones over `fsdp` and `tensor`, the axes that cut other weights. They need no axis of
their own, and none of their weights leaves its device. The rows of a batch are cut over `data` and `fsdp`: a
device gets the tokens of its `fsdp` group, computes what its own experts make of them, and the parts are
summed where the tokens came from. That is exact: no expert has a capacity, and nothing is dropped.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from sparsepo_jax.sharding.mesh import PAIRS
from sparsepo_jax.sharding.rules import EXPERTS, dividing


@functools.cache
def make_spread_experts(mesh: Mesh) -> Callable[..., Array]:
    """spread(function, weights, tokens): function(weights, tokens, first expert), summed over all experts.

    Args:
        mesh: with the axes of mesh.AXES. The weights are stacks [E, ...], the tokens arrays [B, S, ...].
    """

    def spread(function: Callable[..., Array], weights: Any, tokens: Any) -> Array:
        experts = jax.tree.leaves(weights)[0].shape[0]
        axes = dividing(EXPERTS, experts, mesh.shape)

        def of_device(weights: Any, tokens: Any) -> Array:
            here = jax.tree.leaves(weights)[0].shape[0]
            first = jax.lax.axis_index(axes) * here if axes else jnp.int32(0)
            if "fsdp" in axes and mesh.shape["fsdp"] > 1:
                out = _over_group(lambda part: function(weights, part, first), tokens)
            else:
                out = function(weights, tokens, first)
            return jax.lax.psum(out, "tensor") if "tensor" in axes else out

        # check_vma is off because the result of a Pallas call does not say over which axes it differs.
        return jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(PartitionSpec(axes or None), PartitionSpec(*PAIRS)),
            out_specs=PartitionSpec(*PAIRS),
            check_vma=False,
        )(weights, tokens)

    return spread


@functools.partial(jax.checkpoint, static_argnums=0)
def _over_group(function: Callable[[Any], Array], tokens: Any) -> Array:
    """The sum over the devices of an `fsdp` group of function(tokens of this device).

    The tokens of one device after the other go through. All of them may have chosen the experts of one
    device, so that each device needs room for that. For the backward pass nothing but the device's own tokens
    is kept.
    """
    gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, "fsdp"), tokens)
    return jax.lax.psum_scatter(jax.lax.map(jax.checkpoint(function), gathered), "fsdp")
