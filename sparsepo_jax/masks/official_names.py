"""The names that the official code gives the tensors of mask nets. Exports have them, too."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def _tensor_rules(net: str, num_layers: int) -> list[tuple[str, str, int | None, tuple[int, ...] | None]]:
    """(official name, our path, layer or None, shape of the official tensor if it has one more axis of 1)."""
    kind, _, reads = net.partition("_")
    last = "ff2" if kind == "ml" else "w"
    rules: list[tuple[str, str, int | None, tuple[int, ...] | None]] = []
    for layer in range(num_layers if reads == "all" else 1):
        prefix = f"w_per_layer.{layer}." if reads == "all" else ""
        if kind == "ml":
            rules += [
                (f"{prefix}ff1.weight", "weight1", layer, None),
                (f"{prefix}ff1.bias", "bias1", layer, None),
            ]
        rules += [
            (f"{prefix}{last}.weight", "weight", layer, (1, -1)),
            (f"{prefix}{last}.bias", "bias", layer, (1,)),
        ]
    if reads == "all":
        rules += [
            ("mixer.weight", "mixer", None, (1, -1)),
            ("layer_norm.weight", "norm.scale", None, None),
            ("layer_norm.bias", "norm.bias", None, None),
        ]
    return rules


_OFFICIAL_PREFIX = {"common": "common_mask", "reward": "rw_mask", "kl": "kl_mask"}


def masks_to_tensors(net: str, weights: dict[str, Array | np.ndarray]) -> dict[str, Array | np.ndarray]:
    """The masks' weights under their official tensor names.

    Args:
        net: the kind of net; see `MaskNet`.
        weights: ours by path, `common.*`, or `reward.*` and `kl.*`.
    """
    tensors = {}
    for role in sorted({path.split(".", 1)[0] for path in weights}):
        for theirs, ours, layer, shape in _tensor_rules(net, len(weights[f"{role}.weight"])):
            value = weights[f"{role}.{ours}"]
            value = value if layer is None else value[layer]
            tensors[f"{_OFFICIAL_PREFIX[role]}.{theirs}"] = value if shape is None else value.reshape(shape)
    return tensors


def masks_from_tensors(
    net: str, tensors: dict[str, Array | np.ndarray], expected: dict[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The masks' weights by our paths; the inverse of `masks_to_tensors`.

    Args:
        net: the kind of net; see `MaskNet`.
        tensors: by official name.
        expected: the shape of each of our weights.

    Raises:
        ValueError: lists every missing, left-over and wrongly shaped tensor.
    """
    weights = {path: jnp.zeros(shape) for path, shape in expected.items()}
    faults, used = [], set()
    for role in sorted({path.split(".", 1)[0] for path in expected}):
        for theirs, ours, layer, _ in _tensor_rules(net, expected[f"{role}.weight"][0]):
            name, path = f"{_OFFICIAL_PREFIX[role]}.{theirs}", f"{role}.{ours}"
            target = expected[path] if layer is None else expected[path][1:]
            if name not in tensors:
                faults.append(f"{name} is missing")
            elif tensors[name].size != int(jnp.prod(jnp.array(target, int))):
                faults.append(f"{name} has shape {list(tensors[name].shape)}, expected {list(target)}")
            else:
                value = jnp.asarray(tensors[name], jnp.float32).reshape(target)
                weights[path] = value if layer is None else weights[path].at[layer].set(value)
            used.add(name)
    faults += [f"{name} is left over" for name in sorted(set(tensors) - used)]
    if faults:
        raise ValueError("; ".join(faults))
    return weights
