"""What the run is computed on: devices, types, precision, the attention kernel, and what must divide what."""

import functools
import os
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sparsepo_jax.config.derive import batch_problem, layout_matters
from sparsepo_jax.config.schema.compute import ExpertsChoice
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.heap import keep_freed_blocks
from sparsepo_jax.core.host_memory import HOST
from sparsepo_jax.data.cache import cache_directory
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.ops.attention import AttentionKernel
from sparsepo_jax.run import choices
from sparsepo_jax.sharding.mesh import (
    pair_shards,
    platform_of,
    put_batch,
)
from sparsepo_jax.sharding.processes import as_the_first, join_processes, lost_process


def compute_dtype(config: Config, mesh: Mesh) -> jnp.dtype:
    """The type of activations: by default float32 on CPUs, bfloat16 elsewhere."""
    return jnp.dtype(choices.dtype_on(config, platform_of(mesh)))


def device_of(mesh: Mesh, device_bytes: int | None = None) -> choices.StepDevice:
    """What decides how programs are compiled for a mesh.

    Args:
        mesh: of devices that need not be here.
        device_bytes: memory of a device; None: the devices tell, as far as they can.
    """
    platform = platform_of(mesh)
    if platform == "cpu" or platform != jax.default_backend():
        return choices.StepDevice(platform, device_bytes)
    here = next(x for x in mesh.devices.flat if x.process_index == jax.process_index())
    major, _, minor = getattr(here, "compute_capability", "").partition(".")
    capability = (int(major), int(minor)) if minor.isdigit() else None
    return choices.StepDevice(platform, device_bytes or _memory_of(here), capability)


@functools.cache
def _memory_of(device: jax.Device) -> int | None:
    """Bytes that programs can have of a device, the same in all processes, which must choose alike; None: it
    does not tell."""
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    mib = int(as_the_first(np.array(limit // 2**20, np.int32)))
    return mib * 2**20 or None


def reference_type(config: Config, mesh: Mesh) -> Literal["float32", "bfloat16"]:
    """The type of the reference's matrices, where it is a model of its own."""
    chosen = config.reference.dtype
    if chosen != "auto":
        return chosen
    is_bfloat16 = config.compute.weights == "bfloat16" or compute_dtype(config, mesh) == jnp.bfloat16
    return "bfloat16" if is_bfloat16 else "float32"


def set_precision(config: Config, platform: str) -> None:
    """Sets how JAX multiplies float32 arrays. GPUs and TPUs round them first unless they are told not to.

    Args:
        platform: cpu, gpu or tpu, for which programs will be compiled.
    """
    jax_name = {"auto": None, "float32": "highest", "tf32": "tensorfloat32"}[_precision_on(config, platform)]
    jax.config.update("jax_default_matmul_precision", jax_name)


def _precision_on(config: Config, platform: str) -> Literal["auto", "float32", "tf32"]:
    """compute.precision; auto: as the device does."""
    precision = config.compute.precision
    is_float32 = choices.dtype_on(config, platform) == "float32"
    return "float32" if precision == "auto" and is_float32 else precision


def deciding_settings(config: Config, stage: str, mesh: Mesh) -> dict[str, str]:
    """The settings of compute that change what a stage computes by more than rounding, as they are here.

    What auto means depends on the devices. compute.weights has no auto: it is compared as it is set.

    Args:
        stage: sft, po or pairs.
    """
    deciding = {
        "compute.dtype": str(compute_dtype(config, mesh)),
        "compute.precision": _precision_on(config, platform_of(mesh)),
    }
    if layout_matters(config, stage):
        deciding["compute.layout"] = config.compute.layout
    return deciding


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


def take_memory() -> None:
    """Lets JAX have choices.GPU_SHARE of a GPU's memory, unless the user's environment says how much.

    By default it would leave a quarter of the card to others. Call it before any device is used.
    """
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(choices.GPU_SHARE)


def start_jax(config: Config) -> None:
    """Sets JAX up; call it before any device is used.

    Compiled programs are kept on disk, so that a second start is quick.
    """
    _check_environment()
    take_memory()
    join_processes(config.compute.distributed)
    _check_platforms()
    set_precision(config, jax.default_backend())
    if jax.default_backend() == "cpu":  # elsewhere a step's temporaries do not lie in this memory
        keep_freed_blocks()
    # On CPU a program that is read back has lost the order of its collectives (jaxlib 0.10.2): some devices
    # wait in one collective and the rest in another, until XLA ends the process.
    is_safe = jax.default_backend() != "cpu" or jax.device_count() == 1
    jax.config.update("jax_enable_compilation_cache", is_safe)
    jax.config.update(
        "jax_compilation_cache_dir", config.compute.compile_cache or str(cache_directory("xla"))
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _check_environment() -> None:
    """UserError if JAX was told to compute in a way in which no run here is itself."""
    refused = {
        "jax_enable_x64": "arrays would have 64 bits, and checkpoints of 32 bits would be taken for damaged",
        "jax_disable_jit": "programs are compiled before they run, and that would be switched off",
    }
    for name, reason in refused.items():
        if getattr(jax.config, name):
            raise UserError(f"{name.upper()} is set in the environment: {reason}; unset it")


def _check_platforms() -> None:
    """UserError if the devices that JAX_PLATFORMS asks for are not to be had."""
    asked = jax.config.jax_platforms
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # it asserts where a plug-in of cuda is not installed
        if not asked or lost_process(error):
            raise
        reason = " ".join(str(error).partition("(set JAX_PLATFORMS")[0].split())[:300]
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no such devices here{reason and f' ({reason})'}; unset it to "
            "take what there is, or install what they need (the extras cuda and tpu)"
        ) from error


def choose_attention(config: Config, specs: tuple[DecoderSpec, ...], mesh: Mesh) -> AttentionKernel:
    """The kernel asked for, or the one that suits the devices. UserError if it cannot do what is asked."""
    asked, device = config.compute.attention, device_of(mesh)
    if asked == "cudnn":
        problem = choices.cudnn_problem(specs, str(compute_dtype(config, mesh)), device)
        if problem is not None:
            mend = ", or compute.dtype=bfloat16" if "computes in" in problem else ""
            raise UserError(f"compute.attention: cudnn does not fit {problem}; take auto or xla{mend}")
    if asked == "triton":
        problem = choices.triton_problem(specs, device)
        if problem is not None:
            raise UserError(f"compute.attention: triton does not fit {problem}; take auto or xla")
    runs_on = {"cudnn": "gpu", "triton": "gpu", "splash": "tpu"}.get(asked, device.platform)
    if device.platform != runs_on:
        raise UserError(
            f"compute.attention: {asked} runs on {runs_on.upper()}, and these devices are "
            f"{device.platform}; take auto"
        )
    return cast(AttentionKernel, choices.choose_attention(config, specs, device).value)


def choose_experts(config: Config, mesh: Mesh) -> ExpertsChoice:
    """What computes the products of experts. UserError if these devices cannot run it."""
    asked, device = config.compute.experts, device_of(mesh)
    if asked == "triton" and device.platform != "gpu":
        raise UserError(
            f"compute.experts: triton runs on GPU, and these devices are {device.platform}; "
            "take auto or blocks"
        )
    problem = choices.old_gpu_problem(device)
    if asked == "triton" and problem is not None:
        raise UserError(f"compute.experts: triton does not fit {problem}; take auto or blocks")
    return "blocks" if asked == "auto" and problem is not None else asked


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """What XLA is told when it compiles a training step."""
    if platform_of(mesh) != "gpu":
        return {}
    # The loop over layers collects what the backward pass reads; XLA would fill those arrays with zeros.
    return {"xla_gpu_enable_dus_accumulator_zero_init_elimination": True}


def check_offload(config: Config, mesh: Mesh) -> None:
    """UserError if the devices cannot use the host's memory."""
    device = mesh.devices.flat[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if config.compute.offload != "nothing" and HOST not in kinds:
        raise UserError(
            f"compute.offload: {config.compute.offload} needs devices that reach the host's memory "
            f"({HOST}), and {device.device_kind} has {', '.join(kinds)}: take nothing"
        )


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
