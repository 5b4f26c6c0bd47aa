"""Which axis of the mesh cuts which dimension of which weight: one table, every weight exactly one row."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import label_paths

Axes = str | tuple[str, ...] | None  # of one dimension

# Dimensions are [in, out] of a projection, [V, D] of an embedding; weights of blocks carry a leading L, which is never cut. What no product needs
# cut along an axis of its own is cut along both.
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    (r"(embed|head)\.embedding", ("tensor", "fsdp")),
    (r"head_bias", ("tensor",)),
    (r"embed_positions\.embedding", (None, ("fsdp", "tensor"))),
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
    (r"blocks\.(attention\.(query|key|value)|up|gate)\.lora\.lora_a", (None, ("fsdp", "tensor"), None)),
    (r"blocks\.(attention\.(query|key|value)|up|gate)\.lora\.lora_b", (None, None, ("tensor", "fsdp"))),
    (r"blocks\.(attention\.out|down)\.lora\.lora_a", (None, ("tensor", "fsdp"), None)),
    (r"blocks\.(attention\.out|down)\.lora\.lora_b", (None, None, ("fsdp", "tensor"))),
    (r"(common|reward|kl)\..*", ()),  # mask nets: a few thousand weights
)


MOST_REPLICATED = 0.02  # of a model's weights; norms and biases are some 0.1 %

Shapes = Mapping[str, tuple[int, ...]]


def weight_shardings(shapes: Shapes, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each weight by path. A dimension that its axis does not divide stays whole. ValueError: a weight without a rule."""
    labels = label_paths(shapes, RULES)
    return {
        path: NamedSharding(mesh, PartitionSpec(*_dividing(axes, shapes[path], mesh.shape)))
        for path, axes in labels.items()
    }


def _dividing(axes: tuple[Axes, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[Axes, ...]:
    """The axes of each dimension that divide it; of several the first ones."""

    def of_dimension(wanted: Axes, size: int) -> Axes:
        names = (wanted,) if isinstance(wanted, str) else wanted or ()
        while names and size % math.prod(sizes[name] for name in names):
            names = names[:-1]
        return (names[0] if len(names) == 1 else names) or None

    return tuple(of_dimension(wanted, size) for wanted, size in zip(axes, shape, strict=False))


def check_sharded(shapes: Shapes, mesh: Mesh) -> None:
    """UserError if fsdp x tensor, where it is more than 1, leaves more than MOST_REPLICATED of the weights replicated: names the largest, says why,
    and which axes would do. ValueError: a weight without a rule."""
    share = replicated_share(shapes, mesh.shape)
    if share <= MOST_REPLICATED:
        return
    parts = _parts(shapes, mesh.shape)
    whole = mesh.shape["fsdp"] * mesh.shape["tensor"]
    order = sorted(shapes, key=lambda path: -math.prod(shapes[path]) * (1 / parts[path] - 1 / whole))
    named = ", ".join(f"{path} {list(shapes[path])} in {parts[path]} part(s)" for path in order[:3])
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    other = next(
        sizes for sizes in _other_axes(mesh.shape) if replicated_share(shapes, sizes) <= MOST_REPLICATED
    )
    raise UserError(
        f"compute.mesh: {axes} leaves {100 * share:.0f} % of the weights replicated (at most {100 * MOST_REPLICATED:.0f} % may be): {named} instead of "
        f"{whole}, since axes must divide dimensions; take "
        + ", ".join(f"{axis}={size}" for axis, size in other.items())
    )


def replicated_share(shapes: Shapes, sizes: Mapping[str, int]) -> float:
    """The share s of the weights that would lie whole on every device, were the others perfectly cut over fsdp x tensor = N, for a device to hold as much
    as it does: held / all = s + (1 - s) / N. 0 where there is nothing to cut over. ValueError: a weight without a rule."""
    N, total, all_parts = (
        sizes["fsdp"] * sizes["tensor"],
        sum(map(math.prod, shapes.values())),
        _parts(shapes, sizes),
    )
    if N == 1:
        return 0.0
    held = sum(math.prod(shapes[path]) / parts for path, parts in all_parts.items())
    return (held / total - 1 / N) / (1 - 1 / N)


def _parts(shapes: Shapes, sizes: Mapping[str, int]) -> dict[str, int]:
    """Into how many different parts each weight is cut."""
    labels = label_paths(shapes, RULES)
    names = lambda axes: (axes,) if isinstance(axes, str) else axes or ()
    return {
        path: math.prod(sizes[name] for axes in _dividing(rule, shapes[path], sizes) for name in names(axes))
        for path, rule in labels.items()
    }


def _other_axes(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Meshes of as many devices, those that cut weights most first; of these, those with the nearest tensor."""
    count = math.prod(sizes.values())
    divisors = lambda n: [d for d in range(n, 0, -1) if n % d == 0]
    for whole in divisors(count):
        for tensor in sorted(divisors(whole), key=lambda size: abs(size - sizes["tensor"])):
            yield {"data": count // whole, "fsdp": whole // tensor, "tensor": tensor}


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a whole training state, or of a base that is held in fewer bits: a tree whose dictionaries are keyed by weight paths. Moments
    and quantised values lie as their weights do, and so do the scales of blocks of a weight, as far as their dimensions allow.

    Leaves that are no weight or have not its dimensions (step counters, factored moments) are replicated.
    """
    weights: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        if (key := _weight_of(path)) is not None:
            weights.setdefault(
                key, leaf.shape
            )  # the weights come first in a state; what an optimizer keeps of one may be smaller
    labels = label_paths(weights, RULES)

    def one(path, leaf):
        key = _weight_of(path)
        cut = key in labels and len(leaf.shape) == len(weights[key])
        return NamedSharding(
            mesh, PartitionSpec(*_dividing(labels[key], leaf.shape, mesh.shape)) if cut else PartitionSpec()
        )

    return jax.tree_util.tree_map_with_path(one, state)


def _weight_of(path) -> str | None:
    """The weight's own name at the end of a tree path: the last dictionary key with a dot in it."""
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey) and "." in str(entry.key)]
    return keys[-1] if keys else None
