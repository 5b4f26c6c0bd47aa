"""The device mesh.

Its axes are `data`, which cuts pairs; `fsdp`, which cuts pairs and weights; and `tensor`, which cuts heads,
MLP and vocabulary.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sparsepo_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
PAIRS = PartitionSpec(("data", "fsdp"))
LARGE = 2**30  # bytes
Batch = TypeVar("Batch")


def make_mesh(
    data: int | None,
    fsdp: int | None,
    tensor: int | None,
    slices: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over devices.

    The network between slices is slow. So `data`, whose only traffic is one sum of gradients per step, is cut
    over slices first, `fsdp` over what is left, and `tensor` never.

    Args:
        data: devices along the axis. One of the three may be None: what the others leave.
        fsdp: the same.
        tensor: the same.
        slices: groups of devices with a fast network of their own; None: as many as the devices say.
        devices: None for all.

    Raises:
        UserError: the axes do not fit the devices or their slices.
    """
    devices = jax.devices() if devices is None else devices
    asked = (data, fsdp, tensor)
    count = len(devices)
    sizes = tuple(size or count // math.prod(size for size in asked if size) for size in asked)
    if math.prod(sizes) != count:
        given = {axis: size for axis, size in zip(AXES, asked, strict=True) if size}
        product = " x ".join(f"{axis}={size}" for axis, size in given.items())
        remedy = (
            "set one of them to null, which takes what the others leave"
            if len(given) == len(asked)
            else f"it must divide {count}: set them lower"
        )
        raise UserError(
            f"compute.mesh: {product} makes {math.prod(given.values())}, and there are {count} device(s): "
            f"{remedy}"
        )
    return Mesh(grid_of(sizes, slices, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def grid_of(sizes: tuple[int, ...], slices: int | None, devices: Sequence[Any]) -> np.ndarray:
    """The devices by their places on the three axes; see make_mesh.

    Args:
        sizes: of data, fsdp and tensor.
        slices: as many as the devices say, or None.
        devices: as many as the product of the sizes; jax.Device, or what has its attributes.

    Raises:
        UserError: the sizes do not fit the slices.
    """
    count = len({getattr(device, "slice_index", 0) for device in devices})
    if slices not in (None, count):
        raise UserError(
            f"compute.mesh.slices: {slices}, but these {len(devices)} device(s) are {count} slice(s); "
            "leave it null"
        )
    of_data = math.gcd(count, sizes[0])
    of_fsdp = count // of_data
    if sizes[1] % of_fsdp:
        raise UserError(
            f"compute.mesh: data={sizes[0]} x fsdp={sizes[1]} cannot be cut over {count} slices, "
            f"and tensor must not be; take a multiple of {count} for data"
        )
    if count == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    within = sizes[0] // of_data, sizes[1] // of_fsdp, sizes[2]
    return mesh_utils.create_hybrid_device_mesh(
        within, (of_data, of_fsdp, 1), devices, allow_split_physical_axes=True
    )


def platform_of(mesh: Mesh) -> str:
    """cpu, gpu or tpu.

    Args:
        mesh: of devices that need not be here.
    """
    return mesh.devices.flat[0].platform


def pair_shards(mesh: Mesh) -> int:
    """Into how many parts the pairs of a batch are cut.

    Args:
        mesh: with the axes of AXES.
    """
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full.

    Args:
        mesh: with the axes of AXES.
    """
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [micro-steps, pairs, ...].

    Args:
        mesh: with the axes of AXES.
    """
    return NamedSharding(mesh, PartitionSpec(None, *PAIRS))


@functools.cache  # the same function for the same mesh, so that programs built on it are found again
def make_constrain(mesh: Mesh) -> Callable[[Array], Array]:
    """A function that pins the residual stream [R, S, D] to the cut of the rows.

    Weights travel between devices then, and activations do not.

    Args:
        mesh: with the axes of AXES.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*PAIRS, None, None))

    def constrain(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    return constrain


@functools.cache
def make_spread(mesh: Mesh) -> Callable[..., Array]:
    """spread(function, heads, rows, same) for what XLA cannot cut itself, such as a Pallas call.

    Each device runs function(heads, rows, same) on its own rows [R, ...] and, where all of heads [R, S,
    heads, H] or [heads] can be cut over `tensor`, on its own heads. A single key head is there for all.

    Args:
        mesh: with the axes of AXES.
    """

    def spread(function: Callable[..., Array], heads: tuple[Array, ...], rows: Any, same: Any) -> Array:
        counts = [x.shape[-2] if x.ndim > 1 else len(x) for x in heads]
        cut = all(count == 1 or count % mesh.shape["tensor"] == 0 for count in counts)

        def spec_of(x: Array, count: int) -> PartitionSpec:
            axis = "tensor" if cut and count > 1 else None
            return PartitionSpec(axis) if x.ndim == 1 else PartitionSpec(*PAIRS, None, axis, None)

        specs = tuple(map(spec_of, heads, counts))
        of_rows = jax.tree.map(lambda x: PartitionSpec(*PAIRS), rows)
        # check_vma is off because the result of a Pallas call does not say over which axes it differs.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(specs, of_rows, PartitionSpec()),
            out_specs=specs[0],
            check_vma=False,
        )(heads, rows, same)

    return spread


@functools.cache
def make_place_head(mesh: Mesh) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """(gather, scatter) of heads [E, V, D], or of parts of their vocabulary.

    The width is complete where a part is read, and cut over `fsdp` where it is kept. A dimension that an axis
    does not divide is not cut.

    Args:
        mesh: with the axes of AXES.
    """

    def placed(x_EVD: Array, width: str | None) -> Array:
        axes = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(("tensor", None, width), x_EVD.shape, strict=True)
        ]
        return jax.lax.with_sharding_constraint(x_EVD, NamedSharding(mesh, PartitionSpec(*axes)))

    def gather(x_EVD: Array) -> Array:
        # As it is kept first. Otherwise the head is gathered before the part is taken from it.
        return placed(placed(x_EVD, "fsdp"), None)

    def scatter(x_EVD: Array) -> Array:
        return placed(x_EVD, "fsdp")

    return gather, scatter


def lay(x: np.ndarray | Array, sharding: NamedSharding) -> Array:
    """An array over the devices of all processes; each puts the parts of its own devices.

    Args:
        x: complete, and the same in every process.
        sharding: of the result.
    """
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def to_host(x: Array) -> np.ndarray:
    """The complete array in every process, wherever its parts lie.

    Args:
        x: if it is large, it comes one layer at a time, so that it need not fit one device.
    """
    if x.is_fully_addressable:
        return np.asarray(x)
    if x.ndim > 1 and x.nbytes > LARGE:
        return np.stack([to_host(part) for part in x])
    return multihost_utils.process_allgather(x, tiled=True)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The global batch, of which every host has a slice.

    Args:
        batch: a tree of arrays [micro-steps, pairs of this host, ...].
        mesh: with the axes of AXES.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
