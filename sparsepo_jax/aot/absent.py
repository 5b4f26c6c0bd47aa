"""Devices that are not here, for XLA to compile for."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax
from jax.experimental import topologies

from sparsepo_jax.aot.devices import CARDS, Card
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.core.errors import UserError

# There is no TPU here to ask, to lock, or to warn about.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def absent_devices(topology: Topology) -> list[jax.Device]:
    """Devices to compile for. A TPU's slice is its `slice_index`, a GPU's host its `process_index`.

    Raises:
        UserError: what compiles for them is not installed, or does not know such a topology.
    """
    return _tpus(topology) if topology.platform == "tpu" else _gpus(topology)


def _tpus(topology: Topology) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'sparsepo_jax[tpu]'")
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.kind}:{topology.shape}", num_slices=topology.groups
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"libtpu does not know the topology {topology}: {_one_line(error)}") from error


def _gpus(topology: Topology) -> list[jax.Device]:
    _check_plugin()
    card = CARDS[topology.kind]
    try:
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=topology.kind,
            target_config=target_config(card, cudnn_version()),
            topology=f"1x{topology.groups}x{topology.shape}",
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"the CUDA plugin cannot compile for {topology}: {_one_line(error)}") from error


_INSTALL = "pip install 'sparsepo_jax[aot-gpu]'"


def _check_plugin() -> None:
    """UserError unless the CUDA plugin of this jaxlib is here."""
    jaxlib = importlib.metadata.version("jaxlib")
    for name in ("jax-cuda12-plugin", "jax-cuda12-pjrt"):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"compiling for a GPU needs {name}, which is not installed: {_INSTALL}") from None
        if installed.split(".")[:3] != jaxlib.split(".")[:3]:
            raise UserError(
                f"compiling for a GPU needs {name} {jaxlib} beside jaxlib {jaxlib}, but {installed} is "
                f"installed: {_INSTALL}"
            )
    if toolkit_directory() is None:
        raise UserError(f"compiling for a GPU needs ptxas, of nvidia-cuda-nvcc-cu12: {_INSTALL}")


def toolkit_directory() -> Path | None:
    """Where ptxas and libdevice are; None if they are not installed."""
    spec = importlib.util.find_spec("nvidia")
    for parent in spec.submodule_search_locations or () if spec else ():
        directory = Path(parent) / "cuda_nvcc"
        if (directory / "bin" / "ptxas").exists():
            return directory
    return None


def cudnn_version() -> tuple[int, int, int] | None:
    """The installed cuDNN; None without one."""
    try:
        major, minor, patch, *_ = importlib.metadata.version("nvidia-cudnn-cu12").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor), int(patch)


def options_for(topology: Topology) -> dict[str, str | bool]:
    """What XLA must be told beside what a run tells it, to compile for devices that are not here."""
    if topology.platform == "tpu":
        return {}
    return {
        "xla_gpu_cuda_data_dir": str(toolkit_directory()),
        # Nothing can be timed here. Without Triton's products, temporaries are those of a real run.
        "xla_gpu_autotune_level": "0",
        "xla_gpu_enable_triton_gemm": False,
    }


def target_config(card: Card, cudnn: tuple[int, int, int] | None) -> str:
    """The text proto by which XLA knows a GPU (GpuTargetConfigProto); an unknown field would be refused.

    Args:
        cudnn: version of cuDNN to compile for; None: none is here.
    """
    major, minor = card.capability
    data_center = (major, minor) in ((8, 0), (9, 0), (10, 0))
    shared_bytes = _SHARED_KIB[card.capability] * 1024
    dnn = cudnn or (9, 10, 0)
    extension = "ACCELERATED_FEATURES" if major >= 9 and data_center else "NONE"
    return f"""\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_bytes}
  shared_memory_per_block_optin: {shared_bytes - 1024}
  threads_per_core_limit: {2048 if data_center else 1536}
  core_count: {card.multiprocessors}
  fpus_per_core: {64 if card.capability == (8, 0) else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {int(card.bandwidth)}
  l2_cache_size: {card.l2_bytes}
  clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  pcie_bandwidth: {int(card.pcie)}
  device_address_bits: 64
  device_vendor: "NVIDIA Corporation"
  name: "{card.name}"
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "{".".join(map(str, dnn))}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {dnn[0]} minor: {dnn[1]} patch: {dnn[2]} }}
device_description_str: "{card.name}"
"""


# Shared memory of a multiprocessor by compute capability, KiB (CUDA programming guide).
_SHARED_KIB = {(8, 0): 164, (8, 6): 100, (8, 9): 100, (9, 0): 228, (10, 0): 228, (12, 0): 100}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
