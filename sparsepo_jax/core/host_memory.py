"""Arrays that lie in the host's memory, and come to the device where they are used."""

from typing import Any

import jax

HOST = "pinned_host"  # JAX's name of the memory that devices can read and write themselves


def is_on_host(x: Any) -> bool:
    """Whether an array lies in the host's memory; inside a jitted function, too.

    Args:
        x: an array, or what stands for one.
    """
    return isinstance(x, jax.Array) and jax.typeof(x).memory_space == jax.memory.Space.Host


def on_device(tree: Any) -> Any:
    """The tree with its arrays in the device's memory. Nothing happens to those that are there.

    Args:
        tree: of arrays.
    """
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if is_on_host(x) else x, tree)


def on_host(tree: Any) -> Any:
    """The tree with all its arrays in the host's memory.

    Args:
        tree: of arrays.
    """
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host), tree)
