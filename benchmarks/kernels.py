"""Device time by kind of kernel, from a trace of jax.profiler."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

# The first kind whose pattern is found in a kernel's name or in the name of its HLO instruction. Fusions are
# named after their root, so that a fusion which reduces and then divides may count as another loop.
KINDS = (
    ("attention", r"sdpa|fmha|flash|splash|attention|mha_"),
    ("products", r"gemm|nvjet|cutlass|cublas|xmma|splitk|\bdot|_dot|conv[0-9]"),
    ("copies", r"memcpy|memset|copy|slice|transpose|concatenate|\bpad|gather|scatter|broadcast"),
    ("conversions", r"convert"),
    ("reductions", r"reduce|softmax|norm"),
    ("other loops", r""),
)


def kind_of(name: str) -> str:
    return next(kind for kind, pattern in KINDS if re.search(pattern, name.lower()))


def kernel_seconds(directory: Path, steps: int) -> dict[str, Any]:
    """What a step's kernels take: {"seconds": {kind: s}, "count": kernels, "longest": [[name, s], ...]}.

    Args:
        directory: where the trace was written.
        steps: how many were traced.
    """
    seconds: dict[str, float] = {}
    by_name: dict[str, float] = {}
    count = 0
    for name, duration_s in _kernels(directory):
        kind = kind_of(name)
        seconds[kind] = seconds.get(kind, 0.0) + duration_s / steps
        by_name[name] = by_name.get(name, 0.0) + duration_s / steps
        count += 1
    longest = sorted(by_name.items(), key=lambda item: -item[1])[:12]
    return {
        "seconds": dict(sorted(seconds.items(), key=lambda item: -item[1])),
        "count": count / steps,
        "longest": [[name[:100], duration_s] for name, duration_s in longest],
    }


def _kernels(directory: Path) -> Iterator[tuple[str, float]]:
    """(name, seconds) of each kernel: on GPUs what ran on a stream, on CPU the program's instructions."""
    for path in sorted(directory.rglob("*.xplane.pb")):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        on_device = [plane for plane in planes if plane.name.startswith("/device:GPU")]
        for plane in on_device or planes:
            for line in plane.lines:
                if on_device and not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    instruction = next((value for name, value in event.stats if name == "hlo_op"), None)
                    if on_device or instruction is not None:
                        yield _name(event.name, instruction), event.duration_ns / 1e9


def _name(kernel: str, instruction: Any) -> str:
    """The kernel, and its instruction where that has another name; without numbers at the end."""
    unnamed = (None, kernel, "command_buffer")  # the last: part of a graph of kernels
    names = [kernel] if instruction in unnamed else [kernel, str(instruction)]
    return " ".join(re.sub(r"[._]\d+$", "", name) for name in dict.fromkeys(names))
