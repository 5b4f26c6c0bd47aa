"""What a compiled step takes of a device, as JSON and as text for the terminal."""

from typing import Any

import numpy as np

from sparsepo_jax.aot.compile import Compiled
from sparsepo_jax.aot.footprint import Footprint
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.run.choices import GPU_SHARE

UNITS = {"tpu": "chip", "gpu": "card"}
GROUPS = {"tpu": "slices", "gpu": "hosts"}
MOST_SHARE = 0.97  # of a GPU's memory that a run can be given, where nothing else needs the card


def as_json(compiled: Compiled) -> dict[str, Any]:
    """What `--aot --json` prints."""
    footprint, packing, bound = compiled.footprint, compiled.batch.packing, compiled.bound
    return {
        "topology": str(compiled.topology),
        "chips": compiled.topology.devices,
        "mesh": dict(compiled.mesh.shape),
        "stage": compiled.stage,
        "dtype": compiled.dtype,
        "batch": {
            "rows": int(np.prod(compiled.batch.row_B.shape)),
            "micro_steps": packing.ids_RS.shape[0],
            "rows_of_tokens": packing.ids_RS.shape[1],
            "positions": packing.ids_RS.shape[2],
            "lengths": compiled.lengths,
        },
        "argument_bytes": footprint.argument_bytes,
        "temp_bytes": footprint.temp_bytes,
        "alias_bytes": footprint.alias_bytes,
        "needed_bytes": footprint.needed_bytes,
        "hbm_bytes": compiled.topology.device.memory_bytes,
        "usable_bytes": compiled.topology.usable_bytes,
        "fits": footprint.fits,
        "collectives": _as_dicts(footprint.collectives),
        "open_loops": footprint.open_loops,
        "choices": compiled.choices.words(),
        "kernels": {"attention": compiled.attention, "custom_calls": footprint.kernels},
        "traffic_bytes": footprint.traffic_bytes,
        "traffic": _as_dicts(footprint.traffic),
        "lower_bound_s": None if bound is None else bound.seconds,
        "lower_bound": None if bound is None else bound._asdict(),
        "refusal": compiled.refusal,
        "seconds": round(compiled.seconds, 1),
    }


def _as_dicts(tuples: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if tuples is None else {name: value._asdict() for name, value in tuples.items()}


def as_text(compiled: Compiled) -> str:
    """What `--aot` prints: a line a fact."""
    footprint, topology = compiled.footprint, compiled.topology
    unit = UNITS[topology.platform]
    arguments = f"arguments {gb(footprint.argument_bytes)} (donated {gb(footprint.alias_bytes)})"
    lines = [
        ("topology", f"{topology_text(topology)}; {mesh_text(compiled)}"),
        ("step", f"{compiled.stage} in {compiled.dtype}, compiled in {compiled.seconds:.0f} s"),
        ("batch", _batch_text(compiled)),
        *(("chosen", f"{name} {words}") for name, words in compiled.choices.words().items()),
        (f"a {unit}", f"{arguments}, temporaries {gb(footprint.temp_bytes)}"),
        ("fits", _fits_text(footprint, topology)),
    ]
    if footprint.collectives is not None:
        kernels = ", ".join(f"{name} x {count}" for name, count in footprint.kernels.items())
        lines.append(("collectives", _collectives_text(footprint)))
        lines.append(("kernels", kernels or "no custom calls"))
    if footprint.traffic is not None:
        parts = [f"{kind} {gb(moved.bytes)} x {moved.count:,}" for kind, moved in footprint.traffic.items()]
        lines.append(("traffic", f"{', '.join(parts)} a step{_open_loops(footprint)}"))
    if compiled.bound is not None:
        lines.append(("at least", bound_text(compiled)))
    if compiled.refusal is not None:
        lines.append(("compiler", compiled.refusal[:400]))
    return "\n".join(f"{name:<12}{text}" for name, text in lines)


def topology_text(topology: Topology) -> str:
    """Name, number and memory of its devices."""
    groups = f" in {topology.groups} {GROUPS[topology.platform]}" if topology.groups > 1 else ""
    plural = "s" if topology.devices > 1 else ""
    memory = f"{topology.device.memory_bytes / 2**30:.0f} GiB"
    return f"{topology}: {topology.devices} {UNITS[topology.platform]}{plural} of {memory}{groups}"


def mesh_text(compiled: Compiled) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in compiled.mesh.shape.items())


def _fits_text(footprint: Footprint, topology: Topology) -> str:
    if footprint.needed_bytes is None:
        return f"{'yes' if footprint.fits else 'no'}: it needs unknown"
    memory = topology.device.memory_bytes
    share = footprint.needed_bytes / memory
    answer = "yes" if footprint.fits else "no"
    text = f"{answer}: it needs {gb(footprint.needed_bytes)}, {100 * share:.0f} % of it"
    if topology.platform == "gpu":
        text += f"; a run takes {100 * GPU_SHARE:.0f} %, CUDA needs some of the rest"
        if GPU_SHARE < share <= MOST_SHARE:
            text += f" (it might fit with the environment's XLA_CLIENT_MEM_FRACTION={MOST_SHARE})"
    return text


def bound_text(compiled: Compiled) -> str:
    """The lower bound of the step's time and its parts."""
    bound, device = compiled.bound, compiled.topology.device
    tera = bound.operations / compiled.topology.devices / 1e12
    products = (
        f"products {bound.products_s:.3f} ({tera:,.1f} TFLOP at {device.matrix_rate / 1e12:,.0f} a second)"
    )
    memory = "memory unknown"
    if bound.memory_s is not None:
        memory = f"memory {bound.memory_s:.3f} ({device.bandwidth / 1e12:.2f} TB/s)"
    exchange = f"; collectives {bound.exchange_s:.3f} meanwhile" if compiled.topology.devices > 1 else ""
    return f"{bound.seconds:.3f} s a step: {products} + {memory}{exchange}"


def _batch_text(compiled: Compiled) -> str:
    micro_steps, rows, positions = compiled.batch.packing.ids_RS.shape
    unit = "pair" if compiled.batch.valid_BPT.shape[-2] == 2 else "response"
    return (
        f"{micro_steps} micro-step(s) of {rows} rows of {positions:,} tokens, "
        f"{compiled.batch.row_B.shape[1] // rows} {unit}(s) in each; lengths {compiled.lengths}"
    )


def _collectives_text(footprint: Footprint) -> str:
    parts = [
        f"{kind} {collective.count:,} of {gb(collective.bytes)}"
        for kind, collective in footprint.collectives.items()
    ]
    return f"{', '.join(parts)} a step{_open_loops(footprint)}" if parts else "none"


def _open_loops(footprint: Footprint) -> str:
    return " (what is in loops of unknown length counts once)" if footprint.open_loops else ""


def gb(size: int | None) -> str:
    """Bytes, for a person."""
    if size is None:
        return "unknown"
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
