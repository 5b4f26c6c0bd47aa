"""Which axis of the mesh cuts which dimension of which weight: one table, every weight exactly one row."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.host_memory import HOST
from sparsepo_jax.core.tree import label_paths

Axes = str | tuple[str, ...] | None  # of one dimension

EXPERTS = ("fsdp", "tensor")
_BLOCKS = r"blocks\.(?:layers_\d+\.)?"  # of the only stack, or of one of several

# Projections that read the residual stream, and those that write to it.
_READS = (
    r"attention\.(query|key|value|gate)|delta\.(query|key|value|gate|rate|decay)|up|gate"
    r"|shared\.(up|gate|share)"
)
_WRITES = r"attention\.out|delta\.out|down|shared\.down"

# Dimensions are [in, out] of a projection and [V, D] of an embedding. Weights of blocks carry a leading L,
# which is never cut. A dimension that no product needs cut along one axis is cut along both.
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    (r"(embed|head)\.embedding", ("tensor", "fsdp")),
    (r"head_bias", ("tensor",)),
    (r"embed_positions\.embedding", (None, ("fsdp", "tensor"))),
    (rf"{_BLOCKS}attention\.(query|key|value|gate)\.kernel", (None, "fsdp", "tensor")),
    (rf"{_BLOCKS}attention\.(query|key|value|gate)\.bias", (None, "tensor")),
    (rf"{_BLOCKS}attention\.out\.kernel", (None, "tensor", "fsdp")),
    (rf"{_BLOCKS}attention\.out\.bias", (None, None)),
    (rf"{_BLOCKS}attention\.sinks", (None, "tensor")),
    (rf"{_BLOCKS}delta\.(query|key|value|gate|rate|decay)\.kernel", (None, "fsdp", "tensor")),
    (rf"{_BLOCKS}delta\.out\.kernel", (None, "tensor", "fsdp")),
    (rf"{_BLOCKS}delta\.(query|key|value)_filter", (None, None, "tensor")),
    (rf"{_BLOCKS}delta\.(log_speed|decay_bias)", (None, "tensor")),
    (rf"{_BLOCKS}(up|gate)\.kernel", (None, "fsdp", "tensor")),
    (rf"{_BLOCKS}(up|gate)\.bias", (None, "tensor")),
    (rf"{_BLOCKS}down\.kernel", (None, "tensor", "fsdp")),
    (rf"{_BLOCKS}down\.bias", (None, None)),
    # Whole experts: tokens travel to them, see sharding/experts.
    (rf"{_BLOCKS}experts\.router\.weight", (None, EXPERTS, None)),
    (rf"{_BLOCKS}experts\.router\.bias", ()),
    (rf"{_BLOCKS}experts\.(up|gate|down)\.(kernel|bias|lora\.lora_[ab])", (None, EXPERTS)),
    (rf"{_BLOCKS}shared\.(up|gate|share)\.kernel", (None, "fsdp", "tensor")),
    (rf"{_BLOCKS}shared\.down\.kernel", (None, "tensor", "fsdp")),
    (rf"{_BLOCKS}(attention\.(query|key)_norm|delta\.norm|output)\.scale", ()),
    (rf"({_BLOCKS}(attn|mlp)(_post)?_norm|final_norm)\.(scale|bias)", ()),
    (rf"{_BLOCKS}({_READS})\.lora\.lora_a", (None, ("fsdp", "tensor"), None)),
    (rf"{_BLOCKS}({_READS})\.lora\.lora_b", (None, None, ("tensor", "fsdp"))),
    (rf"{_BLOCKS}({_WRITES})\.lora\.lora_a", (None, ("tensor", "fsdp"), None)),
    (rf"{_BLOCKS}({_WRITES})\.lora\.lora_b", (None, None, ("fsdp", "tensor"))),
    (r"(common|reward|kl|baseline)\..*", ()),  # mask nets and TBPO-Q's head: a few thousand weights
)


MOST_REPLICATED = 0.02  # of a model's weights; norms and biases are some 0.1 %

Shapes = Mapping[str, tuple[int, ...]]


def weight_shardings(shapes: Shapes, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each weight by path.

    Args:
        shapes: of the weights, by path.
        mesh: its axes cut a dimension only if they divide it.

    Raises:
        ValueError: a weight has no rule.
    """
    labels = label_paths(shapes, RULES)
    return {
        path: NamedSharding(mesh, PartitionSpec(*_dividing(axes, shapes[path], mesh.shape)))
        for path, axes in labels.items()
    }


def _dividing(axes: tuple[Axes, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[Axes, ...]:
    """The axes of each dimension that divide it. Of several axes the last ones are left out first."""

    def of_dimension(wanted: Axes, size: int) -> Axes:
        names = dividing(_names(wanted), size, sizes)
        return (names[0] if len(names) == 1 else names) or None

    return tuple(of_dimension(wanted, size) for wanted, size in zip(axes, shape, strict=False))


def dividing(names: tuple[str, ...], size: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes that together divide a dimension; the last ones are left out first.

    Args:
        names: of axes.
        size: of the dimension.
        sizes: of the mesh's axes, by name.
    """
    while names and size % math.prod(sizes[name] for name in names):
        names = names[:-1]
    return names


def check_sharded(shapes: Shapes, mesh: Mesh) -> None:
    """Refuses a mesh that cuts too few of the weights.

    Args:
        shapes: of the weights, by path.
        mesh: which is not refused if fsdp x tensor is 1.

    Raises:
        UserError: more than MOST_REPLICATED of the weights would be replicated; names the largest, the
            reason, and axes that would do.
        ValueError: a weight has no rule.
    """
    share = replicated_share(shapes, mesh.shape)
    if share <= MOST_REPLICATED:
        return
    parts = _parts(shapes, mesh.shape)
    wanted = mesh.shape["fsdp"] * mesh.shape["tensor"]

    def too_much(path: str) -> float:
        return math.prod(shapes[path]) * (1 / parts[path] - 1 / wanted)

    largest = sorted(shapes, key=too_much, reverse=True)[:3]
    named = ", ".join(f"{path} {list(shapes[path])} in {parts[path]} part(s)" for path in largest)
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    other = next(
        sizes for sizes in _other_axes(mesh.shape) if replicated_share(shapes, sizes) <= MOST_REPLICATED
    )
    raise UserError(
        f"compute.mesh: {axes} leaves {100 * share:.0f} % of the weights replicated "
        f"(at most {100 * MOST_REPLICATED:.0f} % may be): {named} instead of "
        f"{wanted}, since axes must divide dimensions; take "
        + ", ".join(f"{axis}={size}" for axis, size in other.items())
    )


def replicated_share(shapes: Shapes, sizes: Mapping[str, int]) -> float:
    """How much of the weights is replicated, 0 to 1.

    With fsdp x tensor = n, it is the share s that would make a device hold as much as it does, if s were
    replicated and the rest were cut perfectly: held / all = s + (1 - s) / n. It is 0 where there is nothing
    to cut over.

    Args:
        shapes: of the weights, by path.
        sizes: of the mesh's axes, by name.

    Raises:
        ValueError: a weight has no rule.
    """
    parts_of = _parts(shapes, sizes)  # on every mesh, so that a weight without a rule is always refused
    n = sizes["fsdp"] * sizes["tensor"]
    if n == 1:
        return 0.0
    total = sum(map(math.prod, shapes.values()))
    held = sum(math.prod(shapes[path]) / parts for path, parts in parts_of.items())
    return (held / total - 1 / n) / (1 - 1 / n)


def _parts(shapes: Shapes, sizes: Mapping[str, int]) -> dict[str, int]:
    """Into how many different parts each weight is cut."""
    labels = label_paths(shapes, RULES)
    return {
        path: math.prod(sizes[name] for axes in _dividing(rule, shapes[path], sizes) for name in _names(axes))
        for path, rule in labels.items()
    }


def _names(axes: Axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else axes


def _other_axes(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Meshes of as many devices: those that cut weights most first, of these the nearest in tensor."""
    count = math.prod(sizes.values())
    for parts in _divisors(count):
        for tensor in sorted(_divisors(parts), key=lambda size: abs(size - sizes["tensor"])):
            yield {"data": count // parts, "fsdp": parts // tensor, "tensor": tensor}


def _divisors(n: int) -> list[int]:
    """The largest first."""
    return [d for d in range(n, 0, -1) if n % d == 0]


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The shardings of a training state, or of a base that is held in fewer bits.

    Moments and quantised values are sharded as their weights are, and so are the scales of blocks of a
    weight, as far as their dimensions allow. Leaves that are no weight, or have other dimensions (step
    counters, factored moments), are replicated.

    Args:
        state: a tree whose dictionaries are keyed by paths of weights; its leaves need only have shapes.
        mesh: with the axes of mesh.AXES.
    """
    weights: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        if (key := _weight_of(path)) is not None:
            # Weights come first in a state. What an optimizer keeps of a weight may be smaller.
            weights.setdefault(key, leaf.shape)
    labels = label_paths(weights, RULES)

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        key = _weight_of(path)
        if key not in labels or len(leaf.shape) != len(weights[key]):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*_dividing(labels[key], leaf.shape, mesh.shape)))

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def in_host_memory(shapes: Any, is_chosen: Callable[[str], bool]) -> Any:
    """The same shapes and shardings, with the chosen weights, or what is kept of them, on the host.

    Args:
        shapes: a tree of jax.ShapeDtypeStruct with shardings.
        is_chosen: says of a weight's path whether it, or what belongs to it, lies in the host's memory.
    """

    def placed(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        key = _weight_of(path)
        if key is None or not is_chosen(key):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding.with_memory_kind(HOST))

    return jax.tree_util.tree_map_with_path(placed, shapes)


def _weight_of(path: tuple[Any, ...]) -> str | None:
    """The weight's own path, at the end of a path in the tree: the last dictionary key with a dot in it."""
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey) and "." in str(entry.key)]
    return keys[-1] if keys else None
