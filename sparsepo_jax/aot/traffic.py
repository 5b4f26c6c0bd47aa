"""Bytes that the kernels of a compiled program move through a device's memory.

A kernel reads its operands and writes its results, once each. Of an array that it only takes slices of, or
updates in place, the slices count. Caches are not considered: what a kernel reads is taken to come from
memory, what it passes on inside is not counted.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sparsepo_jax.aot.hlo import ENTRY, HloProgram, Instruction, array_sizes, target_of

KINDS = ("fusion", "product", "attention", "copy", "other")


class Traffic(NamedTuple):
    """What the kernels of one kind move in a step.

    Attributes:
        count: kernels.
        bytes: read and written.
    """

    count: int
    bytes: int


_COPIES = frozenset(
    (
        "copy",
        "copy-start",
        "transpose",
        "convert",
        "concatenate",
        "dynamic-slice",
        "dynamic-update-slice",
        "broadcast",
        "gather",
        "scatter",
        "reduce",
        "select",
        "slice",
        "pad",
        "sort",
    )
)
_RUN_INSIDE = frozenset(("while", "call", "conditional", "async-start"))
_PRODUCTS = frozenset(("dot", "convolution", "ragged-dot"))
_OPERATION = re.compile(r'op_name="([^"]*)"')


def traffic_in(program: HloProgram) -> dict[str, Traffic]:
    """What a run moves, by kind of kernel. Loops whose rounds are unknown count once.

    fusion: loops and reductions that XLA made. product: of matrices. attention: its kernels. copy: single
    operations without products. other: further custom calls.
    """
    moved: dict[str, Traffic] = {}
    for times, kind, size in _kernels(program, ENTRY, 1):
        before = moved.get(kind, Traffic(0, 0))
        moved[kind] = Traffic(before.count + times, before.bytes + times * size)
    return {kind: moved[kind] for kind in KINDS if kind in moved}


def _kernels(program: HloProgram, computation: str, times: int) -> Iterator[tuple[int, str, int]]:
    """(how often it runs, kind, bytes) of each kernel of a computation and of those that it calls."""
    instructions = program.computations.get(computation, [])
    types = {instruction.name: instruction.type for instruction in instructions}
    for instruction in instructions:
        if instruction.op in _RUN_INSIDE:
            rounds = program.rounds(instruction) or 1
            for name in program.called(instruction):
                yield from _kernels(program, name, times * rounds)
        elif instruction.op == "fusion":
            [name] = program.called(instruction)
            inside = program.computations[name]
            yield times, _fusion_kind(instruction, inside), _fusion_bytes(inside)
        elif (kind := _kind(instruction)) is not None:
            yield times, kind, _bytes(instruction, types)


def _kind(instruction: Instruction) -> str | None:
    """The kind of a kernel that is no fusion; None for what moves nothing."""
    if (target := target_of(instruction)) is not None:
        if target == "AllocateBuffer":
            return None
        operation = _OPERATION.search(instruction.rest)
        if "cublas" in target or "gemm" in target:
            return "product"
        # Of our own kernels in Triton there are those of attention alone.
        if any(word in target for word in ("fmha", "triton")) or "attention" in (operation or [""])[0]:
            return "attention"
        return "other"
    if instruction.op in _PRODUCTS:
        return "product"
    return "copy" if instruction.op in _COPIES else None


def _fusion_kind(fusion: Instruction, inside: list[Instruction]) -> str:
    has_product = "gemm" in fusion.rest or any(x.op in _PRODUCTS for x in inside)
    return "product" if has_product else "fusion"


def _bytes(instruction: Instruction, types: Mapping[str, str]) -> int:
    """Bytes that a kernel of a single instruction moves."""
    written = _size(instruction.type)
    if instruction.op in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if instruction.op == "dynamic-update-slice":
        return 2 * _size(types.get(instruction.operands[1], ""))
    read = sum(_size(types.get(name, "")) for name in instruction.operands)
    if instruction.op == "copy-start":  # its type lists the result, the operand and a counter
        return read + _size(instruction.type[1:].split(" ")[0])
    return read + written


def _size(type_text: str) -> int:
    return sum(array_sizes(type_text))


# ---------------------------------------------------------------- fusions


def _fusion_bytes(inside: list[Instruction]) -> int:
    """Bytes that a fusion reads and writes."""
    by_name = {x.name: x for x in inside}
    uses: dict[str, list[tuple[Instruction, int]]] = {}
    for user in inside:
        for place, name in enumerate(user.operands):
            uses.setdefault(name, []).append((user, place))
    read = sum(_read(x, uses) for x in inside if x.op == "parameter")
    return read + sum(_written(x, by_name) for x in inside if x.is_root)


def _read(parameter: Instruction, uses: Mapping[str, list[tuple[Instruction, int]]]) -> int:
    """Bytes that a fusion reads of one of its parameters: all of it, or the slices that it takes."""
    complete, taken = _size(parameter.type), 0
    waiting = list(uses.get(parameter.name, ()))
    while waiting:
        user, place = waiting.pop()
        if user.op == "bitcast":
            waiting += uses.get(user.name, ())
        elif place == 0 and user.op in ("dynamic-slice", "slice", "gather"):
            taken += _size(user.type)
        elif not (place == 0 and user.op == "dynamic-update-slice"):
            return complete
    return min(taken, complete)


def _written(result: Instruction, by_name: Mapping[str, Instruction]) -> int:
    """Bytes that a fusion writes for a result: all of it, or what an update in place changes."""
    operands = [by_name[name] for name in result.operands if name in by_name]
    if result.op == "tuple":
        return sum(_written(x, by_name) for x in operands)
    if result.op == "bitcast" and operands:
        return _written(operands[0], by_name)
    if result.op == "dynamic-update-slice":
        return _size(operands[1].type)
    return _size(result.type)
