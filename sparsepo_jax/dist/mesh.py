"""The device mesh: `data` (pairs), `fsdp` (pairs, and weights cut along the same axis), `tensor` (heads, MLP and vocabulary cut)."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sparsepo_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
PAIRS = PartitionSpec(("data", "fsdp"))


def make_mesh(data: int | None, fsdp: int | None, tensor: int | None) -> Mesh:
    """A mesh over all devices; one axis may be None: what the others leave. Raises UserError if they do not fit the devices."""
    sizes, count = [data, fsdp, tensor], jax.device_count()
    known = int(np.prod([size for size in sizes if size]))
    sizes = [size or count // known for size in sizes]
    if int(np.prod(sizes)) != count:
        asked = ", ".join(f"{axis}={size if size else 'free'}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise UserError(f"compute.mesh: {asked} does not fit {count} device(s): the product must be {count}; leave one axis null")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def pair_shards(mesh: Mesh) -> int:
    """Into how many parts the pairs of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [micro-steps, pairs, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, *PAIRS))


def make_constrain(mesh: Mesh):
    """Pins the residual stream [rows, positions, width] to the cut of the rows, so that weights travel instead of activations."""
    sharding = NamedSharding(mesh, PartitionSpec(*PAIRS, None, None))

    def constrain(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    return constrain


def make_constrain_head(mesh: Mesh):
    """Gathers a head matrix [vocabulary, width] over `fsdp` once, before it is read part by part."""
    sharding = NamedSharding(mesh, PartitionSpec("tensor", None))

    def constrain(head_VD: Array) -> Array:
        return jax.lax.with_sharding_constraint(head_VD, sharding) if head_VD.shape[0] % mesh.shape["tensor"] == 0 else head_VD

    return constrain


def put_batch(batch, mesh: Mesh):
    """A host's slice [micro-steps, pairs of this host, ...] becomes part of the global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
