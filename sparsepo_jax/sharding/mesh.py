"""The device mesh: `data` (pairs), `fsdp` (pairs, and weights cut along the same axis), `tensor` (heads, MLP and vocabulary cut)."""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sparsepo_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
PAIRS = PartitionSpec(("data", "fsdp"))
LARGE = 2**30  # bytes


def make_mesh(
    data: int | None,
    fsdp: int | None,
    tensor: int | None,
    slices: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices, or these; one axis may be None: what the others leave.

    slices: groups of devices with a fast network of their own, None: as the devices say. Between slices the network is slow: `data`, whose only
    traffic is one sum of gradients a step, is cut over them first, `fsdp` over what is left, `tensor` never. Raises UserError if the axes do not fit
    the devices or their slices.
    """
    devices = jax.devices() if devices is None else devices
    asked, count = (data, fsdp, tensor), len(devices)
    sizes = tuple(size or count // math.prod(size for size in asked if size) for size in asked)
    if math.prod(sizes) != count:
        said = ", ".join(f"{axis}={size if size else 'free'}" for axis, size in zip(AXES, asked, strict=True))
        raise UserError(
            f"compute.mesh: {said} does not fit {count} device(s): the product must be {count}; leave one axis null"
        )
    return Mesh(grid_of(sizes, slices, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def grid_of(sizes: tuple[int, ...], slices: int | None, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices by their places on the three axes; see make_mesh."""
    there = len({getattr(device, "slice_index", 0) for device in devices})
    if slices not in (None, there):
        raise UserError(
            f"compute.mesh.slices: {slices}, but these {len(devices)} device(s) are {there} slice(s); leave it null"
        )
    of_data = math.gcd(there, sizes[0])
    of_fsdp = there // of_data
    if sizes[1] % of_fsdp:
        raise UserError(
            f"compute.mesh: data={sizes[0]} x fsdp={sizes[1]} cannot be cut over {there} slices, and tensor must not be; "
            f"take a multiple of {there} for data"
        )
    if there == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    within = sizes[0] // of_data, sizes[1] // of_fsdp, sizes[2]
    return mesh_utils.create_hybrid_device_mesh(
        within, (of_data, of_fsdp, 1), devices, allow_split_physical_axes=True
    )


def platform_of(mesh: Mesh) -> str:
    """cpu, gpu or tpu: of the mesh's devices, which need not be here."""
    return mesh.devices.flat[0].platform


def pair_shards(mesh: Mesh) -> int:
    """Into how many parts the pairs of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [micro-steps, pairs, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, *PAIRS))


@functools.cache  # the same function for the same mesh: programs that are built on it are found again
def make_constrain(mesh: Mesh):
    """Pins the residual stream [rows, positions, width] to the cut of the rows, so that weights travel instead of activations."""
    sharding = NamedSharding(mesh, PartitionSpec(*PAIRS, None, None))

    def constrain(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    return constrain


@functools.cache
def make_spread(mesh: Mesh):
    """spread(function, heads, rows, same): function(heads, rows, same) run by each device over its own rows [R, ...] and, where all of heads [R, S, heads, H]
    can be cut over `tensor`, its own heads; for what XLA cannot cut itself: a Pallas call. A single key head is there for all."""

    def spread(function, heads, rows, same):
        counts = [x.shape[2] for x in heads]
        cut = all(count == 1 or count % mesh.shape["tensor"] == 0 for count in counts)
        specs = tuple(
            PartitionSpec(*PAIRS, None, "tensor" if cut and count > 1 else None, None) for count in counts
        )
        of_rows = jax.tree.map(lambda x: PartitionSpec(*PAIRS), rows)
        # Not checked: what a Pallas call gives does not say over which axes it differs.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(specs, of_rows, PartitionSpec()),
            out_specs=specs[0],
            check_vma=False,
        )(heads, rows, same)

    return spread


@functools.cache
def make_place_head(mesh: Mesh):
    """(gather, scatter) of heads [shards, vocabulary, width], or parts of their vocabulary: over `fsdp` the width is whole where a part is read, and cut
    where it is kept. What an axis does not divide stays whole."""

    def placed(x_KVD: Array, width: str | None) -> Array:
        axes = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(("tensor", None, width), x_KVD.shape, strict=True)
        ]
        return jax.lax.with_sharding_constraint(x_KVD, NamedSharding(mesh, PartitionSpec(*axes)))

    # First as it is kept: else the whole head is gathered, before the part is taken.
    return (lambda x_KVD: placed(placed(x_KVD, "fsdp"), None)), (lambda x_KVD: placed(x_KVD, "fsdp"))


def lay(x: np.ndarray | Array, sharding: NamedSharding) -> Array:
    """An array that every process has whole, laid over all of them: each puts what lies on its own devices."""
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def to_host(x: Array) -> np.ndarray:
    """The whole of an array, wherever its parts lie, in every process. What is large comes layer by layer: it need not fit one device."""
    if x.is_fully_addressable:
        return np.asarray(x)
    if x.ndim > 1 and x.nbytes > LARGE:
        return np.stack([to_host(part) for part in x])
    return multihost_utils.process_allgather(x, tiled=True)


def put_batch(batch, mesh: Mesh):
    """A host's slice [micro-steps, pairs of this host, ...] becomes part of the global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
