"""What the run is computed on: devices, types, precision, the attention kernel, and what must divide what."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.load import cache_directory
from sparsepo_jax.models.spec import DecoderSpec
from sparsepo_jax.ops.attention import AttentionKernel
from sparsepo_jax.sharding.mesh import (
    pair_shards,
    platform_of,
    put_batch,
)
from sparsepo_jax.sharding.processes import join_processes


def compute_dtype(config: Config, mesh: Mesh) -> jnp.dtype:
    return _dtype_on(config, platform_of(mesh))


def _dtype_on(config: Config, platform: str) -> jnp.dtype:
    if config.compute.dtype == "auto":
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.compute.dtype)


def set_precision(config: Config, platform: str) -> None:
    """Sets how JAX multiplies float32 arrays: GPUs and TPUs round them first unless they are told not to.

    Args:
        platform: cpu, gpu or tpu, for which programs will be compiled.
    """
    asked = config.compute.precision
    if asked == "auto" and _dtype_on(config, platform) == jnp.float32:
        asked = "float32"
    chosen = {"auto": None, "float32": "highest", "tf32": "tensorfloat32"}[asked]
    jax.config.update("jax_default_matmul_precision", chosen)


def describe_computing(config: Config, mesh: Mesh) -> str:
    """The devices, the type of activations and how float32 arrays are multiplied, for a person."""
    machine = machine_facts(config, mesh)
    return f"{machine['devices']}, activations {machine['activations']}, products of float32 arrays: {machine['products']}"


def machine_facts(config: Config, mesh: Mesh) -> dict[str, Any]:
    """What the run is computed on and how exactly, as the report's table has it."""
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
    """Before any device is touched. Compiled programs are kept on disk, so that a second start is quick."""
    join_processes(config.compute.distributed)
    set_precision(config, jax.default_backend())
    # On CPU a program that is read back has lost the order of its collectives (jaxlib 0.10.2), and processes take one for another.
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
    capped, narrow = (
        any(spec.attn_softcap is not None for spec in specs),
        compute_dtype(config, mesh) == jnp.bfloat16,
    )
    if asked == "auto":
        return {"cpu": "blocks", "tpu": "splash"}.get(platform, "xla")
    if asked == "cudnn" and (capped or not narrow):
        why = "caps its scores" if capped else "computes in float32"
        raise UserError(
            f"compute.attention: cudnn does not fit a model that {why}; take auto or xla"
            + ("" if capped else ", or compute.dtype=bfloat16")
        )
    if asked == "cudnn" and platform != "gpu":
        raise UserError(f"compute.attention: cudnn runs on GPU, and these devices are {platform}; take auto")
    if asked == "splash" and platform != "tpu":
        raise UserError(f"compute.attention: splash runs on TPU, and these devices are {platform}; take auto")
    return asked


def put_on(mesh: Mesh):
    return lambda batch: put_batch(batch, mesh)


def check_batch(name: str, batch_size: int, micro_steps: int, mesh: Mesh) -> None:
    """UserError unless a micro-step's pairs can be cut evenly over the mesh."""
    shards = pair_shards(mesh)
    if batch_size % (micro_steps * shards):
        raise UserError(
            f"{name}: {batch_size} rows in {micro_steps} micro-step(s) cannot be cut over {shards} shards (data x fsdp); "
            f"take a multiple of {micro_steps * shards}"
        )
