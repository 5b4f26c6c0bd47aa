"""Weights on the mesh.

Loaded, drawn at random, merged, and the shapes and shardings of what is not made yet.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sparsepo_jax.build.compute import reference_type
from sparsepo_jax.build.lora import make_lora, make_reference_lora
from sparsepo_jax.build.models import weight_shapes
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights, split_module
from sparsepo_jax.masks.source import MaskSource
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.lora import BaseType, Lora, hold_base, is_block_matrix
from sparsepo_jax.sharding.mesh import (
    lay,
)
from sparsepo_jax.sharding.rules import (
    check_sharded,
    in_host_memory,
    state_shardings,
    weight_shardings,
)
from sparsepo_jax.train.problem import Problem


@functools.cache
def _put_into(sharding: NamedSharding, added: bool) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """put(stacked, part, place): the part takes the place of a layer, or of (layer, expert), or is added to
    what is there."""

    def put(stacked: jax.Array, part: jax.Array, place: int | tuple[int, int]) -> jax.Array:
        axes = place if isinstance(place, tuple) else (place,)
        begin = (*axes, *(0 for _ in part.shape))
        part = part.reshape(*(1 for _ in axes), *part.shape)
        if added:
            part = part + jax.lax.dynamic_slice(stacked, begin, part.shape)
        return jax.lax.dynamic_update_slice(stacked, part, begin)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def random_weights(spec: DecoderSpec, seed: int, mesh: Mesh) -> Weights:
    """New weights, drawn as the model family initialises them."""
    return _draw_weights(spec, mesh)(seed)


@functools.cache
def _draw_weights(spec: DecoderSpec, mesh: Mesh) -> Callable[[int], Weights]:
    def make(seed: int) -> Weights:
        return split_module(Decoder(spec, rngs=nnx.Rngs(jax.random.key(seed))))[1]

    return jax.jit(make, out_shardings=weight_shardings(weight_shapes(spec), mesh))


def add_adapter(weights: Weights, adapter: Adapter, mesh: Mesh) -> Weights:
    """The weights with an adapter merged into them, tensor by tensor. Takes the memory of `weights`."""
    shardings = weight_shardings({path: x.shape for path, x in weights.items()}, mesh)
    for (path, place, value), added in adapter.merge_parts():
        weight = weights[path]
        leading = 0 if place is None else len(place) if isinstance(place, tuple) else 1
        expected = weight.shape[leading:]
        if value.shape != expected:
            raise UserError(
                f"{adapter.where}: {adapter.path}: a tensor of {path} has shape {list(value.shape)}, "
                "expected "
                f"{list(expected)}"
            )
        if place is not None:
            weights[path] = _put_into(shardings[path], added)(weight, value, place).block_until_ready()
        elif added:
            weights[path] = weight + lay(value, shardings[path])
        else:
            weights[path] = lay(value, shardings[path])
    return weights


def adapter_weights(adapter: Adapter, mesh: Mesh) -> Weights:
    """An adapter as weights of its own, float32."""
    arrays = adapter.weights()
    shardings = weight_shardings({path: x.shape for path, x in arrays.items()}, mesh)
    return {path: lay(x, shardings[path]) for path, x in arrays.items()}


def initial_adapters(spec: DecoderSpec, lora: Lora, seed: int, mesh: Mesh) -> Weights:
    """New adapters: A is drawn, B is zero, so that the adapted policy equals its base."""
    return _draw_adapters(spec, lora, mesh)(seed)


@functools.cache
def _draw_adapters(spec: DecoderSpec, lora: Lora, mesh: Mesh) -> Callable[[int], Weights]:
    return jax.jit(
        lambda seed: _adapters(spec, lora, seed),
        out_shardings=weight_shardings(adapter_shapes(spec, lora), mesh),
    )


def adapter_shapes(spec: DecoderSpec, lora: Lora) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in jax.eval_shape(lambda: _adapters(spec, lora, 0)).items()}


def _adapters(spec: DecoderSpec, lora: Lora, seed: int) -> Weights:
    _, weights = split_module(
        Decoder(spec, lora=lora, rngs=nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 2)))
    )
    return {path: x for path, x in weights.items() if ".lora." in path}


def held_base(policy: Weights, held: BaseType, mesh: Mesh) -> Weights:
    """Weights in the type in which they are held, sharded as they were.

    Adapters among them keep their type.

    Args:
        held: of a base of adapters po.lora.base or sft.lora.base, of a policy compute.weights, of a reference
            what reference_type gives.
    """
    base = hold_base(policy, held)
    return jax.device_put(base, state_shardings(base, mesh))


def abstract(
    policy: dict[str, tuple[int, ...]],
    masks: MaskSource | None,
    mesh: Mesh,
    make: Callable[[Any], Any] = lambda weights: weights,
    *,
    held: BaseType = "float32",
) -> Any:
    """Shapes and shardings of what `make` makes of {"policy", "masks"}; allocates nothing.

    Args:
        policy: shapes by path.
        held: how the policy is held.
    """

    def make_all() -> Any:
        weights = hold_base({path: jnp.zeros(shape) for path, shape in policy.items()}, held)
        mask_weights = {} if masks is None else masks.init(nnx.Rngs(0))
        return make({"policy": weights, "masks": mask_weights})

    def with_sharding(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(make_all)
    return jax.tree.map(with_sharding, shapes, state_shardings(shapes, mesh))


def start_shapes(spec: DecoderSpec, lora: Lora | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the policy as po begins. lora: the adapters that it begins with, None for none."""
    return weight_shapes(spec) | ({} if lora is None else adapter_shapes(spec, lora))


def trained_shapes(spec: DecoderSpec, lora: Lora | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the policy's weights that are trained: all of them, or the adapters."""
    return weight_shapes(spec) if lora is None else adapter_shapes(spec, lora)


def check_sharding(
    config: Config, stage: str, policy: DecoderSpec, reference: DecoderSpec, mesh: Mesh
) -> None:
    """UserError if the mesh leaves too much of policy or reference replicated."""
    lora = make_lora(getattr(config, stage), stage, policy)
    check_sharded(weight_shapes(policy) | trained_shapes(policy, lora), mesh)
    if reference != policy:
        check_sharded(weight_shapes(reference), mesh)


def abstract_frozen(
    config: Config,
    stage: str,
    problem: Problem,
    policy: DecoderSpec,
    reference: DecoderSpec,
    mesh: Mesh,
) -> Any | None:
    """Shapes and shardings of what a stage's step reads beside its state.

    That is the reference, or the base of adapters; None if it reads nothing.
    """
    training = getattr(config, stage)
    lora = training.lora
    if lora is not None:
        reference_lora = None
        if stage == "po":
            reference_lora = make_reference_lora(config, policy, make_lora(training, stage, policy))
        return abstract(
            start_shapes(policy, reference_lora),
            None,
            mesh,
            _policy_of,
            held=lora.base,
        )
    if stage == "sft" or problem.cached:
        return None
    held = reference_type(config, mesh)
    shapes = abstract(weight_shapes(reference), None, mesh, _policy_of, held=held)
    return in_host_memory(shapes, is_block_matrix) if offloads_reference(config) else shapes


def offloads_reference(config: Config) -> bool:
    """Whether the reference's blocks lie in the host's memory."""
    return config.compute.offload in ("reference", "both")


def offloaded(config: Config, reference: Weights) -> Weights:
    """The reference where it lies between its uses."""
    if not offloads_reference(config):
        return reference
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), reference)
    placed = in_host_memory(shapes, is_block_matrix)
    return jax.device_put(reference, jax.tree.map(lambda x: x.sharding, placed))


def _policy_of(weights: dict[str, Weights]) -> Weights:
    return weights["policy"]
