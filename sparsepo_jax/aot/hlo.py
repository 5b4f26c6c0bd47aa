"""Compiling for TPUs that are not here, and what the compiled program says.

Bytes on a chip, what chips send each other, kernels.
"""

import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.core.errors import UserError


class Collective(NamedTuple):
    """count: how often a step runs it; bytes.

    Of the whole arrays that a group of chips gathers, sums or exchanges thereby, as one chip sees them.
    """

    count: int
    bytes: int


class Footprint(NamedTuple):
    """Bytes on each chip.

    needed: arguments + temporaries + results that are not donated arguments (alias). Of a program that the
    compiler refuses for want of memory only `argument_bytes` is our own count, `needed_bytes` is the
    compiler's, and the rest is unknown (None).

    open_loops: whether there are loops whose number of rounds is only known when they run; what is in them
    counts once.
    """

    argument_bytes: int
    temp_bytes: int | None
    alias_bytes: int | None
    needed_bytes: int | None
    fits: bool
    collectives: dict[str, Collective] | None
    open_loops: bool
    kernels: dict[str, int] | None


# There is no TPU here to ask, to lock, or to warn of.
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

    arguments: abstract, with shardings, as `lowered` was made of them.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        own = sum(map(_chip_bytes, jax.tree.leaves(arguments)))
        temporaries, needed = refused_bytes(said)
        return Footprint(
            own, temporaries, None, needed or (temporaries and own + temporaries), False, None, False, None
        ), said
    memory, text = compiled.memory_analysis(), compiled.as_text()
    alias = memory.alias_size_in_bytes
    needed = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - alias
        + memory.generated_code_size_in_bytes
    )
    collectives, open_loops = collectives_in(text)
    return Footprint(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        alias,
        needed,
        needed <= chip_bytes,
        collectives,
        open_loops,
        kernels_in(text),
    ), None


def _chip_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BYTES = r"(\d+(?:\.\d+)?)([KMGT]?)"


def refused_bytes(refusal: str) -> tuple[int | None, int | None]:
    """(bytes of temporaries, bytes of all) as far as the compiler says them.

    'HLO temporaries (48.06G) exceeds available HBM (15.75G)', or 'Used 25.3G of 15.75G hbm'.
    """
    found = [
        re.search(pattern, refusal)
        for pattern in (rf"HLO temporaries \({_BYTES}i?B?\)", rf"Used {_BYTES}i?B? of ")
    ]
    temporaries, whole = (match and round(float(match[1]) * _UNITS[match[2]]) for match in found)
    return temporaries, whole


# ---------------------------------------------------------------- reading compiled programs (HLO text)

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_CHAIN = re.compile(r'channel_id=\d+|chain_id="\d+"')
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_LIMIT = re.compile(r" constant\((\d+)\)")
_GROUP = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]+)\}|mesh\[(?P<axes>[^\]]*)\] \{(?P<over>[^}]*)\})"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


def collectives_in(text: str) -> tuple[dict[str, Collective], bool]:
    """Collectives of one run of a program by kind, and whether there are loops with an unknown number of rounds."""
    found: dict[str, Collective] = {}
    times, open_loops = _times_run(text)
    seen = set()
    for computation, line in _instructions(text):
        match = _COLLECTIVE.search(line)
        if match is None or not times.get(computation):
            continue
        chain = tuple(_CHAIN.findall(line))
        if len(chain) == 2 and chain in seen:  # the further steps of one that runs beside the products
            continue
        seen.add(chain)
        arrays = _ARRAY.findall(match["type"])
        # What is started gives its operands, its results and maybe numbers of its own: one of the first two
        # is the whole.
        sizes = [_array_bytes(*array) for array in arrays if not match["start"] or array != ("u32", "")]
        size = (
            max(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :]))
            if match["start"] and len(sizes) > 1
            else sum(sizes)
        )
        kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else match["kind"]
        if match["kind"] == "reduce-scatter" and not match["start"]:
            size *= _group_size(line)
        old = found.get(kind, Collective(0, 0))
        found[kind] = Collective(old.count + times[computation], old.bytes + times[computation] * size)
    return dict(sorted(found.items())), open_loops


def kernels_in(text: str) -> dict[str, int]:
    """Custom calls by target, and in how many places of the program they stand; tpu_custom_call is Pallas."""
    return dict(sorted(Counter(_TARGET.findall(text)).items()))


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of each instruction; the computation that a program begins with is called ENTRY."""
    computation = None
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY ")):
            words = line.split()
            computation = "ENTRY" if words[0] == "ENTRY" else words[0].lstrip("%")
        elif computation is not None and " = " in line:
            yield computation, line


def _times_run(text: str) -> tuple[Mapping[str, int], bool]:
    """How often each computation is run, and whether there are loops with an unknown number of rounds."""
    lines: dict[str, list[str]] = {}
    for computation, line in _instructions(text):
        lines.setdefault(computation, []).append(line)
    times: dict[str, int] = {}
    open_loops = False

    def run(computation: str, count: int) -> None:
        nonlocal open_loops
        times[computation] = times.get(computation, 0) + count
        for line in lines.get(computation, ()):
            rounds = 1
            if loop := _WHILE.search(line):
                known = _rounds(lines.get(loop[1], []))
                rounds, open_loops = known or 1, open_loops or known is None
            for one, several in _CALLED.findall(line):
                for name in [one] if one else several.replace("%", "").split(", "):
                    run(name, count * rounds)

    run("ENTRY", 1)
    return times, open_loops


def _rounds(condition: list[str]) -> int | None:
    """Of a loop that counts from 0 up to a constant, as JAX's scans do; else None."""
    limits = [int(limit) for line in condition for limit in _LIMIT.findall(line)]
    counts_up = any(
        line.lstrip().startswith("ROOT") and " compare(" in line and "direction=LT" in line
        for line in condition
    )
    return limits[0] if counts_up and len(limits) == 1 else None


def _array_bytes(kind: str, dims: str) -> int:
    bits = 8 if kind == "pred" else int(re.match(r"[a-z]+(\d+)", kind)[1])
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8


def _group_size(line: str) -> int:
    """Chips of a group."""
    found = _GROUP.search(line)
    if found is None:
        raise ValueError(f"no replica_groups that are known in: {line[:300]}")
    if found["axes"]:
        sizes = dict(axis.split("=") for axis in found["axes"].split(","))
        return math.prod(int(sizes[axis]) for axis in found["over"].split(","))
    return int(found["size"]) if found["size"] else found["first"].count(",") + 1
