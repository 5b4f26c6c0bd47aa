"""Bytes on each device of a program compiled for devices that are not here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sparsepo_jax.aot.hlo import Collective, HloProgram, collectives_in, kernels_in, refused_bytes
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.aot.traffic import Traffic, traffic_in


class Footprint(NamedTuple):
    """What a program takes of each device.

    Of a program that the compiler refuses for want of memory, `argument_bytes` is our own count,
    `needed_bytes` is the compiler's, and the rest is unknown (None).

    Attributes:
        needed_bytes: arguments, temporaries, and results that are not donated arguments.
        alias_bytes: results that take the place of donated arguments.
        open_loops: whether the number of rounds of some loop is unknown; what is in it counts once.
        kernels: custom calls by target.
        traffic: what kernels move, by kind; None on TPU, whose compiler does not show it.
    """

    argument_bytes: int
    temp_bytes: int | None
    alias_bytes: int | None
    needed_bytes: int | None
    fits: bool
    collectives: dict[str, Collective] | None
    open_loops: bool
    kernels: dict[str, int] | None
    traffic: dict[str, Traffic] | None = None

    @property
    def traffic_bytes(self) -> int | None:
        """Bytes that fusions move in a step; None where they are not known."""
        return None if self.traffic is None else self.traffic.get("fusion", Traffic(0, 0)).bytes


def compile_for_memory(
    lowered: jax.stages.Lowered,
    arguments: Any,
    topology: Topology,
    options: Mapping[str, str | bool],
    hosts: Sequence[int],
) -> tuple[Footprint, str | None]:
    """(footprint, the compiler's own words if it refuses for want of memory).

    Args:
        arguments: abstract arrays with shardings, of which `lowered` was made.
        options: XLA's.
        hosts: the host or slice of each device.
    """
    try:
        compiled = lowered.compile(compiler_options=dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        refusal = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in refusal:
            raise
        argument_bytes = held_bytes(arguments)
        temp_bytes, needed_bytes = refused_bytes(refusal)
        if needed_bytes is None and temp_bytes is not None:
            needed_bytes = argument_bytes + temp_bytes
        return Footprint(argument_bytes, temp_bytes, None, needed_bytes, False, None, False, None), refusal
    memory = compiled.memory_analysis()
    needed_bytes = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    program = HloProgram(compiled.as_text())
    footprint = Footprint(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        needed_bytes,
        needed_bytes <= topology.usable_bytes,
        collectives_in(program, hosts),
        program.open_loops,
        kernels_in(program),
        traffic_in(program) if topology.platform == "gpu" else None,
    )
    return footprint, None


def held_bytes(arguments: Any) -> int:
    """Bytes of abstract arrays on each device."""
    return sum(map(_device_bytes, jax.tree.leaves(arguments)))


def _device_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
