"""Which axis of the mesh cuts which dimension of which weight: one table, every weight exactly one row."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsepo_jax.core.tree import label_paths

# Dimensions are [in, out] of a projection, [V, D] of an embedding; weights of blocks carry a leading L, which is never cut.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embed|head)\.embedding", ("tensor", "fsdp")),
    (r"head_bias", ("tensor",)),
    (r"embed_positions\.embedding", (None, "fsdp")),
    (r"blocks\.attention\.(query|key|value)\.kernel", (None, "fsdp", "tensor")),
    (r"blocks\.attention\.(query|key|value)\.bias", (None, "tensor")),
    (r"blocks\.attention\.out\.kernel", (None, "tensor", "fsdp")),
    (r"blocks\.attention\.out\.bias", (None, None)),
    (r"blocks\.(up|gate)\.kernel", (None, "fsdp", "tensor")),
    (r"blocks\.(up|gate)\.bias", (None, "tensor")),
    (r"blocks\.down\.kernel", (None, "tensor", "fsdp")),
    (r"blocks\.down\.bias", (None, None)),
    (r"blocks\.attention\.(query|key)_norm\.scale", ()),
    (r"(blocks\.(attn|mlp)(_post)?_norm|final_norm)\.(scale|bias)", ()),
    (r"blocks\.(attention\.(query|key|value)|up|gate)\.lora\.lora_a", (None, "fsdp", None)),
    (r"blocks\.(attention\.(query|key|value)|up|gate)\.lora\.lora_b", (None, None, "tensor")),
    (r"blocks\.(attention\.out|down)\.lora\.lora_a", (None, "tensor", None)),
    (r"blocks\.(attention\.out|down)\.lora\.lora_b", (None, None, "fsdp")),
    (r"(common|reward|kl)\..*", ()),  # mask nets: a few thousand weights
)


def weight_shardings(shapes: Mapping[str, tuple[int, ...]], mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each weight by path. A dimension that its axis does not divide stays whole. ValueError: a weight without a rule."""
    labels = label_paths(shapes, RULES)
    return {path: NamedSharding(mesh, PartitionSpec(*_dividing(axes, shapes[path], mesh))) for path, axes in labels.items()}


def _dividing(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> tuple[str | None, ...]:
    return tuple(axis if axis is not None and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=False))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a whole training state, a tree whose dictionaries are keyed by weight paths: moments lie as their weights do.

    Leaves that are no weight or have not its shape (step counters, factored moments) are replicated.
    """
    weights: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        if (key := _weight_of(path)) is not None:
            weights.setdefault(key, leaf.shape)  # the weights come first in a state; what an optimizer keeps of one may be smaller
    shardings = weight_shardings(weights, mesh)

    def one(path, leaf):
        key = _weight_of(path)
        return shardings[key] if key in shardings and leaf.shape == weights[key] else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, state)


def _weight_of(path) -> str | None:
    """The weight's own name at the end of a tree path: the last dictionary key with a dot in it."""
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey) and "." in str(entry.key)]
    return keys[-1] if keys else None
