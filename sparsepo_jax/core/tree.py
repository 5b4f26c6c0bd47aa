"""Weights as flat dictionaries, `path -> array`, and rules that give every path exactly one label."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

Label = TypeVar("Label")
Weights = dict[str, jax.Array]  # e.g. "blocks.attention.query.kernel" -> array


def split_module(module: nnx.Module) -> tuple[nnx.GraphDef, Weights]:
    """A module's structure and its weights by path."""
    graph, state = nnx.split(module, nnx.Param)
    return graph, {
        ".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)
    }


def merge_module(graph: nnx.GraphDef, weights: Mapping[str, Any]) -> Any:
    """The module again; the inverse of split_module."""
    return nnx.merge(
        graph,
        nnx.from_flat_state([(tuple(path.split(".")), nnx.Param(value)) for path, value in weights.items()]),
    )


def label_paths(paths: Iterable[str], rules: Sequence[tuple[str, Label]]) -> dict[str, Label]:
    """The label of the rule whose regular expression matches the whole path. Every path must match exactly one rule: else ValueError."""
    labels, faults = {}, []
    for path in paths:
        found = [label for pattern, label in rules if re.fullmatch(pattern, path)]
        if len(found) != 1:
            faults.append(f"{path} matches {len(found)} rules")
        else:
            labels[path] = found[0]
    if faults:
        raise ValueError("every weight needs exactly one rule: " + "; ".join(faults))
    return labels
