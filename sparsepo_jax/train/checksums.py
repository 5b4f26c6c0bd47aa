"""Checksums of arrays, computed where they are, and the same however they are cut over devices."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsepo_jax.core.host_memory import is_on_host, on_device


@jax.jit
def _sums(state: Any) -> list[jax.Array]:
    """A checksum of each array, uint32."""
    return [_sum(x) for x in jax.tree.leaves(on_device(state))]


def _sum(x: jax.Array) -> jax.Array:
    """The sum of all elements' bits, each times an odd number made of its place, modulo 2^32.

    Sums of integers do not depend on how an array is cut over devices.
    """
    if x.dtype in (bool, jnp.int4, jnp.uint4):
        bits = x
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    factor = place * jnp.uint32(2654435761) * 2 + 1
    return jnp.sum(bits.astype(jnp.uint32) * factor, dtype=jnp.uint32)


# Elements. Of arrays up to here, on a CPU, NumPy takes the sum sooner than a program for it is compiled.
SMALL = 1 << 20


def _is_small_on_cpu(x: jax.Array) -> bool:
    on_cpu = all(device.platform == "cpu" for device in x.devices())
    return on_cpu and x.size <= SMALL and x.is_fully_addressable and x.dtype not in (jnp.int4, jnp.uint4)


def _sum_by_numpy(x: jax.Array) -> int:
    """_sum without compiling anything."""
    flat = np.asarray(x).ravel()
    bits = flat if flat.dtype == bool else flat.view(f"uint{8 * flat.dtype.itemsize}")
    factor = np.arange(flat.size, dtype=np.uint32) * np.uint32(2654435761) * np.uint32(2) + np.uint32(1)
    return int(np.sum(bits.astype(np.uint32) * factor, dtype=np.uint32))


def checksums(state: Any) -> dict[str, int]:
    """A checksum of each array, by its path (jax.tree_util.keystr).

    Args:
        state: a tree of arrays, computed on where they are.
    """
    paths, leaves = zip(*jax.tree.leaves_with_path(state), strict=True)
    small = {n for n, x in enumerate(leaves) if _is_small_on_cpu(x)}
    together = [n for n, x in enumerate(leaves) if n not in small and not is_on_host(x)]
    sums = dict(zip(together, _sums([leaves[n] for n in together]), strict=True)) if together else {}
    for n, x in enumerate(leaves):
        if n in small:
            sums[n] = _sum_by_numpy(x)
        elif n not in sums:  # one after the other: the device need not hold all that lies on the host
            [sums[n]] = _sums([x])
    numbers = jax.device_get([sums[n] for n in range(len(leaves))])
    return {jax.tree_util.keystr(path): int(number) for path, number in zip(paths, numbers, strict=True)}


def weights_digest(weights: Any) -> str:
    """16 hex digits that change when any weight does, computed on the devices. The same on all meshes.

    Args:
        weights: a tree of arrays.
    """
    return hashlib.sha256(json.dumps(checksums(weights), sort_keys=True).encode()).hexdigest()[:16]
