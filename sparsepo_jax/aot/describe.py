"""What a compiled step takes of a chip, as JSON and as text for the terminal."""

from typing import Any

import numpy as np

from sparsepo_jax.aot.compile import Compiled
from sparsepo_jax.aot.footprint import Footprint


def as_json(compiled: Compiled) -> dict[str, Any]:
    """What `--aot --json` prints."""
    footprint, packing = compiled.footprint, compiled.batch.packing
    collectives = footprint.collectives
    if collectives is not None:
        collectives = {kind: collective._asdict() for kind, collective in collectives.items()}
    return {
        "topology": str(compiled.topology),
        "chips": compiled.topology.chips,
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
        "hbm_bytes": compiled.topology.chip_bytes,
        "fits": footprint.fits,
        "collectives": collectives,
        "open_loops": footprint.open_loops,
        "kernels": {"attention": compiled.attention, "custom_calls": footprint.kernels},
        "refusal": compiled.refusal,
        "seconds": round(compiled.seconds, 1),
    }


def as_text(compiled: Compiled) -> str:
    """What `--aot` prints: a line a fact."""
    footprint, topology = compiled.footprint, compiled.topology
    axes = " x ".join(f"{axis} {size}" for axis, size in compiled.mesh.shape.items())
    slices = f" in {topology.slices} slices" if topology.slices > 1 else ""
    chips = f"{topology.chips} chips of {topology.chip_bytes / 2**30:.0f} GiB"
    arguments = f"arguments {_gb(footprint.argument_bytes)} (donated {_gb(footprint.alias_bytes)})"
    needed = "unknown"
    if footprint.needed_bytes is not None:
        share = 100 * footprint.needed_bytes / topology.chip_bytes
        needed = f"{_gb(footprint.needed_bytes)}, {share:.0f} % of it"
    lines = [
        ("topology", f"{topology}: {chips}, {axes}{slices}"),
        ("step", f"{compiled.stage} in {compiled.dtype}, compiled in {compiled.seconds:.0f} s"),
        ("batch", _batch_text(compiled)),
        ("a chip", f"{arguments}, temporaries {_gb(footprint.temp_bytes)}"),
        ("fits", f"{'yes' if footprint.fits else 'no'}: it needs {needed}"),
    ]
    if footprint.collectives is not None:
        kernels = ", ".join(f"{name} x {count}" for name, count in footprint.kernels.items())
        lines.append(("collectives", _collectives_text(footprint)))
        lines.append(("kernels", f"attention {compiled.attention}; {kernels or 'no custom calls'}"))
    if compiled.refusal is not None:
        lines.append(("compiler", compiled.refusal[:400]))
    return "\n".join(f"{name:<12}{text}" for name, text in lines)


def _batch_text(compiled: Compiled) -> str:
    micro_steps, rows, positions = compiled.batch.packing.ids_RS.shape
    unit = "row" if compiled.stage == "sft" else "pair"
    return (
        f"{micro_steps} micro-step(s) of {rows} rows of {positions:,} tokens, "
        f"{compiled.batch.row_B.shape[1] // rows} {unit}(s) in each; lengths {compiled.lengths}"
    )


def _collectives_text(footprint: Footprint) -> str:
    parts = [
        f"{kind} {collective.count:,} of {_gb(collective.bytes)}"
        for kind, collective in footprint.collectives.items()
    ]
    note = " (what is in loops of unknown length counts once)" if footprint.open_loops else ""
    return f"{', '.join(parts) or 'none'} a step{note}"


def _gb(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
