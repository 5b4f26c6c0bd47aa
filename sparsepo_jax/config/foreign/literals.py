"""Values that a Python script writes out: literals, names that are set once, sums of these, dict(...)."""

import ast
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

Constants = Mapping[str, ast.expr]

_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_DTYPES = {"bfloat16", "float16", "float32", "half"}  # of torch


def parse_quietly(text: str) -> ast.Module:
    """A script's tree, without Python's warnings of what its author wrote ("\\d" without an r).

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def find_constants(tree: ast.AST) -> dict[str, ast.expr]:
    """What each name is set to that gets its value in one place of the script."""
    nodes = list(ast.walk(tree))
    places = Counter(
        node.arg if isinstance(node, ast.arg) else node.id
        for node in nodes
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    )
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and places[target.id] == 1
    }


def value_of(node: ast.expr, constants: Constants) -> Any:
    """What an expression is, without running anything.

    Raises:
        ValueError: it is computed by more than sums of what is written out.
    """
    match node:
        case ast.Name(id=name) if name in constants:
            rest = {other: value for other, value in constants.items() if other != name}
            return value_of(constants[name], rest)  # without the name, which may be part of its own value
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return [value_of(entry, constants) for entry in entries]
        case ast.Dict() | ast.Call(func=ast.Name(id="dict"), args=[]):
            return _mapping(node, constants)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SUMS:
            return _sum(_SUMS[type(op)], value_of(left, constants), value_of(right, constants))
        case ast.JoinedStr(values=parts):
            return "".join(str(_part(part, constants)) for part in parts)
        case ast.Attribute(value=ast.Name(id="torch"), attr=dtype) if dtype in _DTYPES:
            return dtype
    return ast.literal_eval(node)


def _mapping(node: ast.Dict | ast.Call, constants: Constants) -> dict[Any, Any]:
    """{"a": 1, **b} and dict(a=1, **b)."""
    if isinstance(node, ast.Dict):
        pairs = [
            (None if key is None else value_of(key, constants), value)
            for key, value in zip(node.keys, node.values, strict=True)
        ]
    else:
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    mapping: dict[Any, Any] = {}
    for key, value in pairs:
        if key is not None:
            mapping[key] = value_of(value, constants)
        elif isinstance(more := value_of(value, constants), dict):
            mapping |= more
        else:
            raise ValueError("what is unpacked is no mapping")
    return mapping


def _sum(combine: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Of two numbers, or two texts put together."""
    are_texts = isinstance(left, str) and isinstance(right, str) and combine is operator.add
    are_numbers = all(isinstance(value, int | float) for value in (left, right))
    if not (are_texts or are_numbers):
        raise ValueError("no sum of two numbers or two texts")
    try:
        return combine(left, right)
    except ArithmeticError as error:
        raise ValueError(str(error)) from None


def _part(part: ast.expr, constants: Constants) -> Any:
    """A part of an f-string; one that is formatted in a way of its own is computed."""
    if isinstance(part, ast.FormattedValue):
        if part.format_spec is not None or part.conversion != -1:
            raise ValueError("formatted")
        return value_of(part.value, constants)
    return value_of(part, constants)
