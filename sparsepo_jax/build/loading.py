"""Weights of a checkpoint, streamed onto the mesh: a host holds a layer of a few of them at a time."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsepo_jax.build.models import weight_shapes
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.lora import is_matrix
from sparsepo_jax.models.stored_tensors import SafeTensors, find_checkpoint
from sparsepo_jax.models.weights import TensorPart, stream_hf
from sparsepo_jax.sharding.mesh import lay
from sparsepo_jax.sharding.rules import Shapes, weight_shardings


def load_weights(
    path: str, spec: DecoderSpec, mesh: Mesh, held: Literal["float32", "bfloat16"] = "float32"
) -> Weights:
    """The weights of a Hugging Face checkpoint, on the mesh, each device's part on that device.

    They are read tensor by tensor and cast once, so that no host ever holds the complete model. The experts
    of a layer, which may be a tensor each, are put together first.

    Args:
        held: type of the matrices. All else is float32.
    """
    shapes = weight_shapes(spec)
    shardings = weight_shardings(shapes, mesh)
    weights: Weights = {}
    parts = stream_hf(spec, SafeTensors(find_checkpoint(path)), shapes, path)
    for name, layer, value in _whole_layers(parts, shapes, held):
        if layer is None:
            weights[name] = lay(value, shardings[name])
            continue
        sharding = shardings[name]
        if name not in weights:
            weights[name] = jnp.zeros(shapes[name], value.dtype, device=sharding)
        part = lay(value, NamedSharding(mesh, PartitionSpec(*sharding.spec[1:])))
        # Wait: tensors that are read faster than they are stored would pile up.
        weights[name] = _put_into(sharding)(weights[name], part, layer).block_until_ready()
        del value, part
    return weights


def _whole_layers(
    parts: Iterable[TensorPart], shapes: Shapes, held: Literal["float32", "bfloat16"]
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """(path, layer, value in the type in which it is held), experts of a layer as one."""
    waiting: dict[tuple[str, int], tuple[np.ndarray, set[int]]] = {}
    for path, place, value in parts:
        dtype = np.dtype(ml_dtypes.bfloat16 if held == "bfloat16" and is_matrix(path) else np.float32)
        if not isinstance(place, tuple):
            yield path, place, np.asarray(value, dtype)
            continue
        layer, expert = place
        if (path, layer) not in waiting:
            waiting[path, layer] = np.empty(shapes[path][1:], dtype), set()
        stack, there = waiting[path, layer]
        stack[expert] = value
        there.add(expert)
        if len(there) == len(stack):
            del waiting[path, layer]
            yield path, layer, stack
        del stack, value


@functools.cache
def _put_into(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """put(stacked, part, layer): the part takes the place of a layer, on each device by itself."""

    def put(stacked: jax.Array, part: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stacked, part, layer, 0)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)
