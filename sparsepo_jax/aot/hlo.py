"""Reads the text of compiled programs (HLO).

What devices send each other, which kernels run and how often, why XLA refuses.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

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


# ---------------------------------------------------------------- instructions


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        type: of its result, with layouts.
        op: what it does.
        operands: names of the instructions whose results it takes.
        rest: what follows the operands.
    """

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


_HEAD = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OP = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_KNOWN_ROUNDS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')
_LIMIT = re.compile(r"^\s*(\d+)\s*$")
ENTRY = "ENTRY"


class HloProgram:
    """A compiled program.

    Args:
        text: its HLO.

    Attributes:
        computations: the instructions of each; the one that the program begins with is ENTRY.
        times: how often each computation runs, those inside of kernels too.
        open_loops: whether the number of rounds of some loop is unknown; what is in it counts once.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        for computation, line in _lines(text):
            if (instruction := _parsed(line)) is not None:
                self.computations.setdefault(computation, []).append(instruction)
        self.times: dict[str, int] = {}
        self.open_loops = False
        self._run(ENTRY, 1)

    def instructions(self) -> Iterator[tuple[int, str, Instruction]]:
        """(how often it runs, its computation, instruction) of all that run."""
        for computation, instructions in self.computations.items():
            if count := self.times.get(computation, 0):
                for instruction in instructions:
                    yield count, computation, instruction

    def called(self, instruction: Instruction) -> list[str]:
        """The computations that an instruction runs, its loop's body among them."""
        names: list[str] = []
        for callee, branches in _CALLED.findall(instruction.rest):
            names += [callee] if callee else branches.replace("%", "").split(", ")
        return names

    def rounds(self, instruction: Instruction) -> int | None:
        """How often an instruction runs what it calls; None for a loop of unknown length."""
        return self._rounds(instruction) if instruction.op == "while" else 1

    def _run(self, computation: str, count: int) -> None:
        self.times[computation] = self.times.get(computation, 0) + count
        for instruction in self.computations.get(computation, ()):
            rounds = self.rounds(instruction)
            self.open_loops |= rounds is None
            for name in self.called(instruction):
                self._run(name, count * (rounds or 1))

    def _rounds(self, loop: Instruction) -> int | None:
        """Rounds of a loop: those that XLA knows, or up to a constant from 0, as JAX's scans count."""
        if known := _KNOWN_ROUNDS.search(loop.rest):
            return int(known[1])
        condition = _CONDITION.search(loop.rest)
        body = self.computations.get(condition[1], []) if condition else []
        limits = [int(limit) for x in body if x.op == "constant" for limit in _LIMIT.findall(x.operands[0])]
        counts_up = any(x.is_root and x.op == "compare" and "direction=LT" in x.rest for x in body)
        return limits[0] if counts_up and len(limits) == 1 else None


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of each instruction."""
    computation = None
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY ")):
            words = line.split()
            computation = ENTRY if words[0] == "ENTRY" else words[0].lstrip("%")
        elif computation is not None and " = " in line:
            yield computation, line


def _parsed(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if head is None:
        return None
    begin = head.end()
    end = _closing(line, begin) if line[begin] == "(" else line.find(" ", begin)
    op = _OP.match(line, end)
    if op is None:
        return None
    close = _closing(line, op.end() - 1)
    inside = line[op.end() : close - 1]
    operands = (inside,) if op[1] in ("constant", "parameter") else tuple(_NAME.findall(inside))
    return Instruction(head[2], line[begin:end], op[1], operands, line[close:], bool(head[1]))


def _closing(line: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` has closed."""
    depth = 0
    for match in _PARENTHESIS.finditer(line, begin):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(line)


_PARENTHESIS = re.compile(r"[()]")

# ---------------------------------------------------------------- arrays

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


def array_sizes(type_text: str) -> list[int]:
    """Bytes of each array of a type that lies in the device's main memory; on TPU S(1) is a faster one."""
    return [
        _array_bytes(kind, dims)
        for kind, dims, layout in _ARRAY.findall(type_text)
        if "S(" not in layout or "S(0)" in layout
    ]


def _array_bytes(kind: str, dims: str) -> int:
    bits = 8 if kind == "pred" else int(re.match(r"[a-z]+(\d+)", kind)[1])
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8


# ---------------------------------------------------------------- kernels and collectives

_TARGET = re.compile(r'custom_call_target="([^"]+)"')


def target_of(instruction: Instruction) -> str | None:
    """The target of a custom call; None for other instructions."""
    match = _TARGET.search(instruction.rest) if instruction.op == "custom-call" else None
    return match[1] if match else None


def kernels_in(program: HloProgram) -> dict[str, int]:
    """{target of a custom call: in how many places of the program it stands}; tpu_custom_call is Pallas."""
    everywhere = (x for instructions in program.computations.values() for x in instructions)
    return dict(sorted(Counter(target for x in everywhere if (target := target_of(x))).items()))


class Collective(NamedTuple):
    """A kind of exchange between devices.

    Attributes:
        count: how often a step runs it.
        bytes: of the arrays that a group of devices gathers, sums or exchanges, as one device sees them
            complete.
        sent_bytes: that each device sends at least, in a ring.
        network_bytes: that each device sends at least to other hosts or slices.
    """

    count: int
    bytes: int
    sent_bytes: int = 0
    network_bytes: int = 0


_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_CHAIN = re.compile(r'channel_id=\d+|chain_id="\d+"')
_GROUPS = re.compile(
    r"replica_groups=(?:\[(?P<count>\d+),(?P<size>\d+)\]<=\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
    r"|\{(?P<listed>\{[\d,]+\}(?:,\{[\d,]+\})*)\}"
    r"|mesh\[(?P<axes>[^\]]*)\](?:, device_ids=\(\[(?P<ids>[\d,]+)\](?:T\((?P<turned>[\d,]+)\))?\))?"
    r" \{(?P<over>[^}]*)\})"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}")


def collectives_in(program: HloProgram, hosts: Sequence[int] = ()) -> dict[str, Collective]:
    """Collectives of one run of a program, by kind.

    Args:
        hosts: number of the host or slice of each device, in the order of the mesh; empty: one for all.
    """
    collectives: dict[str, Collective] = {}
    seen = set()
    for count, computation, instruction in program.instructions():
        kind = instruction.op.removesuffix("-start")
        if kind not in _KINDS:
            continue
        chain = tuple(_CHAIN.findall(instruction.rest))
        if len(chain) == 2 and chain in seen:  # a further step of a collective that overlaps with products
            continue
        seen.add(chain)
        if computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        size, sent, over_network = _exchanged(kind, instruction, hosts)
        before = collectives.get(kind, Collective(0, 0))
        collectives[kind] = Collective(
            before.count + count,
            before.bytes + count * size,
            before.sent_bytes + count * sent,
            before.network_bytes + count * over_network,
        )
    return dict(sorted(collectives.items()))


def _exchanged(kind: str, instruction: Instruction, hosts: Sequence[int]) -> tuple[int, int, int]:
    """(bytes of the complete arrays, bytes that a device sends, and to other hosts)."""
    members, spans = _group(instruction, hosts)
    size = _complete_bytes(instruction, members)
    if kind.startswith("collective-"):
        return size, size, size if spans > 1 else 0
    rounds = 2 if kind == "all-reduce" else 1  # a reduce-scatter and an all-gather
    sent = rounds * size * (members - 1) // members
    of_host = 1 if "all-to-all" in kind else members // spans  # its devices share what the host sends
    return size, sent, rounds * size * (spans - 1) // (spans * of_host)


def _complete_bytes(instruction: Instruction, members: int) -> int:
    """Bytes of the complete arrays of a collective."""
    arrays = [array for array in _ARRAY.findall(instruction.type) if array[:2] != ("u32", "")]
    sizes = [_array_bytes(kind, dims) for kind, dims, _ in arrays]
    if instruction.op.endswith("-start") and len(sizes) > 1 and instruction.type.startswith("("):
        if instruction.op == "all-reduce-start":
            return sum(sizes)
        # The type lists operands, results and maybe counters (u32[]). Operands or results are complete.
        half = len(sizes) // 2
        return max(sum(sizes[:half]), sum(sizes[half:]))
    return sum(sizes) * members if instruction.op == "reduce-scatter" else sum(sizes)


def _group(instruction: Instruction, hosts: Sequence[int]) -> tuple[int, int]:
    """(devices that exchange with each other, hosts or slices that they lie on)."""
    if pairs := _PAIRS.search(instruction.rest):
        ids = np.array([list(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
        return 2, _spans(ids, hosts)
    groups = _GROUPS.search(instruction.rest)
    if groups is None:
        if re.search(r"replica_groups=\{\}", instruction.rest) and hosts:
            return len(hosts), len(set(hosts))
        raise ValueError(f"unknown form of replica_groups in: {instruction.rest[:300]}")
    if groups["axes"]:
        ids = _along_axes(groups)
    elif groups["listed"]:
        listed = re.findall(r"\{([\d,]+)\}", groups["listed"])
        ids = np.array([list(map(int, group.split(","))) for group in listed])
    else:
        ids = _counted(groups["dims"], groups["order"]).reshape(-1, int(groups["size"]))
    return ids.shape[1], _spans(ids, hosts)


def _along_axes(groups: re.Match[str]) -> np.ndarray:
    """Devices of each group along some axes of a mesh: mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}."""
    sizes = {name: int(size) for name, size in (axis.split("=") for axis in groups["axes"].split(","))}
    over = groups["over"].split(",")
    dims = groups["ids"] or ",".join(map(str, sizes.values()))
    ids = _counted(dims, groups["turned"]).reshape(tuple(sizes.values()))
    order = [name for name in sizes if name not in over] + over
    turned = ids.transpose([list(sizes).index(name) for name in order])
    return turned.reshape(-1, math.prod(sizes[name] for name in over))


def _counted(dims: str, order: str | None) -> np.ndarray:
    """Devices 0, 1, ... as an array of these dimensions, its axes in this order."""
    ids = np.arange(math.prod(map(int, dims.split(",")))).reshape([int(dim) for dim in dims.split(",")])
    return ids.transpose([int(axis) for axis in order.split(",")] if order else None)


def _spans(ids: np.ndarray, hosts: Sequence[int]) -> int:
    """Hosts of a group, the most of any."""
    if not len(hosts):
        return 1
    return max(len({hosts[device] for device in group}) for group in ids.tolist())
