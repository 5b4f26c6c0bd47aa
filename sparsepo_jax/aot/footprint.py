"""Bytes on each chip of a program compiled for TPUs that are not here."""

import importlib.util
import math
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from sparsepo_jax.aot.hlo import Collective, collectives_in, kernels_in, refused_bytes
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.core.errors import UserError


class Footprint(NamedTuple):
    """What a program takes of each chip.

    Of a program that the compiler refuses for want of memory, `argument_bytes` is our own count,
    `needed_bytes` is the compiler's, and the rest is unknown (None).

    Attributes:
        needed_bytes: arguments, temporaries, and results that are not donated arguments.
        alias_bytes: results that take the place of donated arguments.
        open_loops: whether the number of rounds of some loop is unknown; what is in it counts once.
        kernels: custom calls by target.
    """

    argument_bytes: int
    temp_bytes: int | None
    alias_bytes: int | None
    needed_bytes: int | None
    fits: bool
    collectives: dict[str, Collective] | None
    open_loops: bool
    kernels: dict[str, int] | None


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
    """Devices to compile for. UserError: no libtpu, or a shape that it does not have."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'sparsepo_jax[tpu]'")
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.kind}:{topology.shape}", num_slices=topology.slices
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"libtpu does not know the topology {topology}: {' '.join(str(error).split())[:300]}"
        ) from error


def compile_for_memory(
    lowered: jax.stages.Lowered, arguments: Any, chip_bytes: int
) -> tuple[Footprint, str | None]:
    """(footprint, the compiler's own words if it refuses for want of memory).

    Args:
        arguments: abstract arrays with shardings, of which `lowered` was made.
        chip_bytes: memory of a chip.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in refusal:
            raise
        argument_bytes = sum(map(_chip_bytes, jax.tree.leaves(arguments)))
        temp_bytes, needed_bytes = refused_bytes(refusal)
        if needed_bytes is None and temp_bytes is not None:
            needed_bytes = argument_bytes + temp_bytes
        return Footprint(argument_bytes, temp_bytes, None, needed_bytes, False, None, False, None), refusal
    memory, text = compiled.memory_analysis(), compiled.as_text()
    needed_bytes = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    collectives, open_loops = collectives_in(text)
    footprint = Footprint(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        needed_bytes,
        needed_bytes <= chip_bytes,
        collectives,
        open_loops,
        kernels_in(text),
    )
    return footprint, None


def _chip_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
