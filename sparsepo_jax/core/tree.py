"""Weights as flat dictionaries, `path -> array`, and rules that give every path exactly one label."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flax import nnx

Label = TypeVar("Label")
# By path, such as "blocks.attention.query.kernel": an array; or what stands for one, abstract
# (jax.ShapeDtypeStruct) or quantised (models/lora).
Weights = dict[str, Any]
Kept = dict[str, Any]
"""What is kept of a model's activations, by their names: arrays, or trees of arrays."""


def split_module(module: nnx.Module) -> tuple[nnx.GraphDef, Weights]:
    """A module's structure and its weights by path.

    Args:
        module: of which only nnx.Param variables are taken.
    """
    graph, state = nnx.split(module, nnx.Param)
    return graph, {
        ".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)
    }


def merge_module(graph: nnx.GraphDef, weights: Mapping[str, Any]) -> Any:
    """The module again; the inverse of split_module.

    Args:
        graph: the structure.
        weights: all of them, by path; arrays, or whatever shall stand in their places.
    """
    return nnx.merge(
        graph,
        nnx.from_flat_state([(tuple(path.split(".")), nnx.Param(value)) for path, value in weights.items()]),
    )


def label_paths(paths: Iterable[str], rules: Sequence[tuple[str, Label]]) -> dict[str, Label]:
    """The label of each path.

    Args:
        paths: of weights.
        rules: (regular expression, label); the expression must match the full path.

    Raises:
        ValueError: a path matches no rule, or more than one; lists all of them.
    """
    labels: dict[str, Label] = {}
    faults = []
    for path in paths:
        matching = [label for pattern, label in rules if re.fullmatch(pattern, path)]
        if len(matching) != 1:
            faults.append(f"{path} matches {len(matching)} rules")
        else:
            labels[path] = matching[0]
    if faults:
        raise ValueError("every weight needs exactly one rule: " + "; ".join(faults))
    return labels
