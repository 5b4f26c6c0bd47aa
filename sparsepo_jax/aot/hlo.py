"""Reads the text of compiled programs (HLO).

What chips send each other, which kernels run, why XLA refuses.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Collective(NamedTuple):
    """A kind of exchange between chips.

    Attributes:
        count: how often a step runs it.
        bytes: of the arrays that a group of chips gathers, sums or exchanges, as one chip sees them complete.
    """

    count: int
    bytes: int


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BYTES = r"(\d+(?:\.\d+)?)([KMGT]?)"


def refused_bytes(refusal: str) -> tuple[int | None, int | None]:
    """(bytes of temporaries, bytes in total), each None if the compiler does not say it.

    It says 'HLO temporaries (48.06G) exceeds available HBM (15.75G)', or 'Used 25.3G of 15.75G hbm'.
    """
    temporaries = re.search(rf"HLO temporaries \({_BYTES}i?B?\)", refusal)
    total = re.search(rf"Used {_BYTES}i?B? of ", refusal)
    return _bytes_of(temporaries), _bytes_of(total)


def _bytes_of(match: re.Match[str] | None) -> int | None:
    return None if match is None else round(float(match[1]) * _UNITS[match[2]])


_KINDS = (
    "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    "|collective-broadcast"
)
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_CHAIN = re.compile(r'channel_id=\d+|chain_id="\d+"')
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_LIMIT = re.compile(r" constant\((\d+)\)")
_GROUP = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]+)\}"
    r"|mesh\[(?P<axes>[^\]]*)\] \{(?P<over>[^}]*)\})"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


def collectives_in(text: str) -> tuple[dict[str, Collective], bool]:
    """(collectives of one run of a program, by kind.

    Whether the number of rounds of some loop is unknown).
    """
    collectives: dict[str, Collective] = {}
    times, open_loops = _times_run(text)
    seen = set()
    for computation, line in _instructions(text):
        match = _COLLECTIVE.search(line)
        if match is None or not times.get(computation):
            continue
        chain = tuple(_CHAIN.findall(line))
        if len(chain) == 2 and chain in seen:  # a further step of a collective that overlaps with products
            continue
        seen.add(chain)
        kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else match["kind"]
        size = _complete_bytes(match, line)
        before = collectives.get(kind, Collective(0, 0))
        count = times[computation]
        collectives[kind] = Collective(before.count + count, before.bytes + count * size)
    return dict(sorted(collectives.items())), open_loops


def _complete_bytes(match: re.Match[str], line: str) -> int:
    """Bytes of the complete arrays of a collective."""
    arrays = _ARRAY.findall(match["type"])
    if match["start"]:
        # The type lists operands, results and maybe counters (u32[]). Operands or results are complete.
        sizes = [_array_bytes(*array) for array in arrays if array != ("u32", "")]
        half = len(sizes) // 2
        return max(sum(sizes[:half]), sum(sizes[half:])) if len(sizes) > 1 else sum(sizes)
    size = sum(_array_bytes(*array) for array in arrays)
    return size * _group_size(line) if match["kind"] == "reduce-scatter" else size


def kernels_in(text: str) -> dict[str, int]:
    """{target of a custom call: in how many places of the program it stands}; tpu_custom_call is Pallas."""
    return dict(sorted(Counter(_TARGET.findall(text)).items()))


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of each instruction; the computation that a program begins with is "ENTRY"."""
    computation = None
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY ")):
            words = line.split()
            computation = "ENTRY" if words[0] == "ENTRY" else words[0].lstrip("%")
        elif computation is not None and " = " in line:
            yield computation, line


def _times_run(text: str) -> tuple[Mapping[str, int], bool]:
    """(how often each computation is run, whether the number of rounds of some loop is unknown)."""
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
                known_rounds = _rounds(lines.get(loop[1], []))
                if known_rounds is None:
                    open_loops = True
                else:
                    rounds = known_rounds or 1
            for callee, branches in _CALLED.findall(line):
                for name in [callee] if callee else branches.replace("%", "").split(", "):
                    run(name, count * rounds)

    run("ENTRY", 1)
    return times, open_loops


def _rounds(condition: list[str]) -> int | None:
    """Rounds of a loop that counts from 0 up to a constant, as JAX's scans do; None for another loop."""
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
    """Number of chips that exchange."""
    group = _GROUP.search(line)
    if group is None:
        raise ValueError(f"unknown form of replica_groups in: {line[:300]}")
    if group["axes"]:
        sizes = dict(axis.split("=") for axis in group["axes"].split(","))
        return math.prod(int(sizes[axis]) for axis in group["over"].split(","))
    return int(group["size"]) if group["size"] else group["first"].count(",") + 1
