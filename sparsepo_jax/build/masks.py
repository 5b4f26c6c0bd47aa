"""The weights of the mask nets: new ones, and those stored with a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.masks.official_names import masks_from_tensors
from sparsepo_jax.masks.source import MaskSource
from sparsepo_jax.models.stored_tensors import SafeTensors, find_checkpoint, is_mask_tensor
from sparsepo_jax.sharding.mesh import (
    lay,
    replicated,
)
from sparsepo_jax.train.readings import split_baseline


def mask_tensors(path: str | None) -> dict[str, Any]:
    """The mask nets stored with a checkpoint; {} if there are none.

    Ours lie in masks.safetensors, those of the official code among the model's tensors.
    """
    if path is None:
        return {}
    directory = find_checkpoint(path)
    separate = directory / "masks.safetensors"
    if separate.exists():
        from safetensors.numpy import load_file

        return load_file(separate)
    tensors = SafeTensors(directory)
    masks = tensors.read([name for name in tensors.shapes() if is_mask_tensor(name)])
    return {name: x.astype(np.float32) for name, x in masks}


def policy_mask_tensors(config: Config) -> dict[str, Any]:
    """The mask nets beside policy.adapter, else those of policy.path."""
    if config.policy.adapter is not None:
        beside = find_checkpoint(config.policy.adapter) / "masks.safetensors"
        if beside.exists():
            from safetensors.numpy import load_file

            return load_file(beside)
    return mask_tensors(config.policy.path)


def initial_masks(config: Config, source: MaskSource, mesh: Mesh) -> Weights:
    """The mask weights that po starts from; {} for masks that are not trained.

    They come from policy.adapter or policy.path if there are any, else they are new.
    """
    fresh = source.init(nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), 1)))
    if fresh and (tensors := policy_mask_tensors(config)):
        fresh = _fitting(config, tensors, fresh)
    return {path: lay(value, replicated(mesh)) for path, value in fresh.items()}


def stored_masks(config: Config, source: MaskSource, mesh: Mesh) -> Weights:
    """Mask weights from policy.path; UserError if there are none to be had."""
    shapes = source.init(nnx.Rngs(0))
    if not shapes:
        return {}
    tensors = policy_mask_tensors(config)
    (nets, baseline), (stored_nets, stored_baseline) = split_baseline(shapes), split_baseline(tensors)
    path = config.policy.path
    held = f"policy.path: {path} holds no" if path else "po has not run here: there are no"
    if baseline and not stored_baseline:
        raise UserError(
            f"{held} weights of a baseline, which objective {config.objective.kind} reads; run the stage po "
            "first, or give a policy.path that has them"
        )
    if nets and not stored_nets:
        raise UserError(
            f"{held} mask nets; run the stage po first, give a policy.path that has them "
            "(masks.safetensors, or common_mask.* / rw_mask.* / kl_mask.* beside the model's tensors), or "
            "choose another objective.mask.kind"
        )
    return {path: lay(value, replicated(mesh)) for path, value in _fitting(config, tensors, shapes).items()}


def _fitting(config: Config, tensors: dict[str, Any], like: Weights) -> Weights:
    """The stored weights; those of `like` where none are stored of the mask nets, or of the baseline."""
    nets, baseline = split_baseline(like)
    stored_nets, stored_baseline = split_baseline(tensors)
    for path, value in baseline.items():
        found = stored_baseline.get(path, value)
        if found.size != value.size:  # a file may hold a number as an array of one
            raise UserError(
                f"policy.path: the stored {path} has shape {list(found.shape)}, expected {list(value.shape)}"
            )
        baseline[path] = jnp.asarray(found).reshape(value.shape)
    return (_fitting_nets(config, stored_nets, nets) if nets and stored_nets else nets) | baseline


def _fitting_nets(config: Config, tensors: dict[str, Any], like: Weights) -> Weights:
    try:
        return masks_from_tensors(
            config.objective.mask.net, tensors, {path: value.shape for path, value in like.items()}
        )
    except ValueError as error:
        raise UserError(
            f"policy.path: the stored masks do not fit objective.mask (net {config.objective.mask.net}, "
            f"sharing {config.objective.mask.sharing}, on {config.objective.mask.on}): {error}"
        ) from error
