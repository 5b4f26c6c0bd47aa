"""What the run is computed on: devices, types, precision, the attention kernel, and what must divide what."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sparsepo_jax.config.derive import batch_problem
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.cache import cache_directory
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.ops.attention import AttentionKernel
from sparsepo_jax.sharding.mesh import (
    pair_shards,
    platform_of,
    put_batch,
)
from sparsepo_jax.sharding.processes import join_processes


def compute_dtype(config: Config, mesh: Mesh) -> jnp.dtype:
    """The type of activations: by default float32 on CPUs, bfloat16 elsewhere."""
    return _dtype_on(config, platform_of(mesh))


def _dtype_on(config: Config, platform: str) -> jnp.dtype:
    if config.compute.dtype == "auto":
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.compute.dtype)


def set_precision(config: Config, platform: str) -> None:
    """Sets how JAX multiplies float32 arrays. GPUs and TPUs round them first unless they are told not to.

    Args:
        platform: cpu, gpu or tpu, for which programs will be compiled.
    """
    precision = config.compute.precision
    if precision == "auto" and _dtype_on(config, platform) == jnp.float32:
        precision = "float32"
    jax_name = {"auto": None, "float32": "highest", "tf32": "tensorfloat32"}[precision]
    jax.config.update("jax_default_matmul_precision", jax_name)


def describe_computing(config: Config, mesh: Mesh) -> str:
    """The devices, the type of activations and how float32 arrays are multiplied, for a person."""
    machine = machine_facts(config, mesh)
    return (
        f"{machine['devices']}, activations {machine['activations']}, "
        f"products of float32 arrays: {machine['products']}"
    )


def machine_facts(config: Config, mesh: Mesh) -> dict[str, Any]:
    """What the run is computed on and in which precision, as the report's table shows it."""
    platform, device = platform_of(mesh), mesh.devices.flat[0]
    name = "" if device.device_kind.lower() == platform else f" {device.device_kind}"
    products = {None: "as the device does (rounded)", "highest": "float32", "tensorfloat32": "TF32"}
    return {
        "devices": f"{mesh.devices.size} x {platform}{name}",
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "activations": str(compute_dtype(config, mesh)),
        "products": "float32" if platform == "cpu" else products[jax.config.jax_default_matmul_precision],
    }


def start_jax(config: Config) -> None:
    """Sets JAX up; call it before any device is used.

    Compiled programs are kept on disk, so that a second start is quick.
    """
    join_processes(config.compute.distributed)
    set_precision(config, jax.default_backend())
    # On CPU a program that is read back has lost the order of its collectives (jaxlib 0.10.2), and several
    # processes would mistake one collective for another.
    jax.config.update(
        "jax_enable_compilation_cache", jax.process_count() == 1 or jax.default_backend() != "cpu"
    )
    jax.config.update(
        "jax_compilation_cache_dir", config.compute.compile_cache or str(cache_directory("xla"))
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def choose_attention(config: Config, specs: tuple[DecoderSpec, ...], mesh: Mesh) -> AttentionKernel:
    """The kernel asked for, or the device's own. UserError if it cannot do what is asked of it."""
    asked, platform = config.compute.attention, platform_of(mesh)
    if asked == "auto":
        return {"cpu": "blocks", "tpu": "splash"}.get(platform, "xla")
    if asked == "cudnn" and any(spec.attn_softcap is not None for spec in specs):
        raise UserError(
            "compute.attention: cudnn does not fit a model that caps its scores; take auto or xla"
        )
    if asked == "cudnn" and compute_dtype(config, mesh) != jnp.bfloat16:
        raise UserError(
            "compute.attention: cudnn does not fit a model that computes in float32; take auto or xla, "
            "or compute.dtype=bfloat16"
        )
    if asked == "cudnn" and platform != "gpu":
        raise UserError(f"compute.attention: cudnn runs on GPU, and these devices are {platform}; take auto")
    if asked == "splash" and platform != "tpu":
        raise UserError(f"compute.attention: splash runs on TPU, and these devices are {platform}; take auto")
    return asked


def put_on(mesh: Mesh) -> Callable[[Any], Any]:
    """put(batch): the batch on the mesh's devices, from this process's part of it."""
    return functools.partial(put_batch, mesh=mesh)


def check_batch(name: str, batch_size: int, micro_steps: int, mesh: Mesh) -> None:
    """UserError unless the rows of a micro-step can be cut evenly over the mesh.

    Args:
        name: the setting to blame.
        batch_size: rows, over all micro-steps and devices.
    """
    problem = batch_problem(name, batch_size, micro_steps, pair_shards(mesh))
    if problem is not None:
        raise UserError(problem)
