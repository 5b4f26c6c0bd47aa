"""SparsePO: a small net turns the reference model's hidden states into a sparse token mask (2410.05102, section 3.2).

    a^l_t = relu(w_l . LN(H^l_t) + b_l)        one LayerNorm for all layers
    m_t   = relu(sum_l c_l a^l_t)              exact zeros are the sparsity; nothing bounds it above

H^l_t is the state after block l at the position that predicts token t (the last one after the final norm), so the mask of a token sees only
what comes before it. Departures from the official code: nets other than simple_all can be chosen (its factory builds only that one), the
rounding to float16 inside resc and znorm is gone, and `ones` initialises near 1, where the official start (mean 0.03 to 0.06) shrinks beta
twentyfold and may be dead.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.layout import to_pairs
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.masks.activation import map_means, rescale

HIDDEN = 200  # width of the two-layer nets, as published


def activate(
    x_BPT: Float[Array, "... B P T"], valid_BPT: Bool[Array, "B P T"], name: str
) -> Float[Array, "... B P T"]:
    """relu, none, resc (min-max over the response) or znorm (z-score, then min-max); zero outside the response except for relu and none."""
    if name == "relu":
        return jax.nn.relu(x_BPT)
    if name == "none":
        return x_BPT
    if name == "resc":
        return rescale(x_BPT, valid_BPT)
    if name == "znorm":
        return map_means(x_BPT, valid_BPT, "zn_rescale")
    raise ValueError(f"unknown mask activation {name!r}")


class MaskNet(nnx.Module):
    """net: simple (one linear a layer), ml (two linears, no non-linearity between) or binary (sign of the relu: never learns, a control);
    _all reads every layer through a LayerNorm and a mixer, _last the last state as it is."""

    def __init__(
        self,
        net: str,
        *,
        num_layers: int,
        width: int,
        norm_eps: float,
        init: str,
        layer_activation: str,
        mixer_activation: str,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.kind, _, self.reads = net.partition("_")
        self.layer_activation, self.mixer_activation, self.dropout = (
            layer_activation,
            mixer_activation,
            dropout,
        )
        L, normal = (num_layers if self.reads == "all" else 1), nnx.initializers.normal(0.02)
        near_one = init == "ones"
        if self.kind == "ml":
            self.weight1 = nnx.Param(normal(rngs.params(), (L, HIDDEN, width)))
            self.bias1 = nnx.Param(jnp.zeros((L, HIDDEN)))
        self.weight = nnx.Param(normal(rngs.params(), (L, HIDDEN if self.kind == "ml" else width)))
        self.bias = nnx.Param(jnp.full(L, 1.0 if near_one else 0.0))
        if self.reads == "all":
            self.norm = nnx.LayerNorm(width, epsilon=norm_eps, use_fast_variance=False, rngs=rngs)
            self.mixer = nnx.Param(jnp.full(L, 1.0 / L) if near_one else normal(rngs.params(), (L,)))

    def __call__(
        self, states_LRMD: Float[Array, "L R M D"], batch: PairBatch, key_B: Array | None = None
    ) -> Float[Array, "B P T"]:
        """The mask, zero outside the response, from the states at the positions that predict each response token of the batch's rows. States are
        constants; key_B (one key a pair) switches dropout on."""
        states_LRMD = jax.lax.stop_gradient(states_LRMD if self.reads == "all" else states_LRMD[-1:])
        # Layer by layer, and again in the backward pass: no float32 copy of all states.
        weights = (
            self.weight[...],
            self.bias[...],
            (self.weight1[...], self.bias1[...]) if self.kind == "ml" else None,
        )
        of_layer = jax.checkpoint(lambda inputs: self._of_layer(*inputs, batch.packing.valid_RM))
        out_LBPT = to_pairs(jax.lax.map(of_layer, (states_LRMD, *weights)), batch)
        valid_BPT = batch.valid_BPT
        if self.reads == "all":
            a_LBPT = self._drop(activate(out_LBPT, valid_BPT, self.layer_activation), key_B, 0)
            out_BPT = jnp.einsum("LBPT,L->BPT", a_LBPT, self.mixer[...])
        else:
            out_BPT = out_LBPT[0]
        mask_BPT = self._drop(activate(out_BPT, valid_BPT, self.mixer_activation), key_B, 1)
        if self.kind == "binary":
            mask_BPT = jnp.sign(mask_BPT)
        return jnp.where(valid_BPT, mask_BPT, 0.0)

    def _of_layer(
        self,
        states_RMD: Array,
        weight_X: Array,
        bias: Array,
        first: tuple[Array, Array] | None,
        valid_RM: Array,
    ) -> Float[Array, "R M"]:
        # Padding may hold anything, NaN included: it must not meet the weights.
        x_RMX = jnp.where(valid_RM[..., None], states_RMD.astype(jnp.float32), 0.0)
        if self.reads == "all":
            x_RMX = self.norm(x_RMX)
        if first is not None:
            x_RMX = jnp.einsum("RMD,HD->RMH", x_RMX, first[0]) + first[1]
        return jnp.einsum("RMX,X->RM", x_RMX, weight_X) + bias

    def _drop(self, x: Array, key_B: Array | None, place: int) -> Array:
        if key_B is None or self.dropout == 0.0:
            return x
        shape = (*x.shape[:-3], *x.shape[-2:])  # of one pair
        keep = jax.vmap(
            lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.dropout, shape),
            out_axes=-3,
        )(key_B)
        return jnp.where(keep, x / (1 - self.dropout), 0.0)


def is_decayed(path: str) -> bool:
    """Whether weight decay applies to a mask weight: on matrices, not on biases and LayerNorm, as in the official optimizer groups."""
    return path.rsplit(".", 1)[-1] in ("weight", "weight1", "mixer")


# ---------------------------------------------------------------- the official names, in which masks are stored


def _tensor_rules(net: str, num_layers: int) -> list[tuple[str, str, int | None, tuple[int, ...] | None]]:
    """(official name, our path, layer or None, shape of the official tensor where it has an axis of 1 more)."""
    kind, _, reads = net.partition("_")
    rules: list[tuple[str, str, int | None, tuple[int, ...] | None]] = []
    for layer in range(num_layers if reads == "all" else 1):
        prefix = f"w_per_layer.{layer}." if reads == "all" else ""
        first, last = ("ff1", "ff2") if kind == "ml" else (None, "w")
        if first:
            rules += [
                (f"{prefix}{first}.weight", "weight1", layer, None),
                (f"{prefix}{first}.bias", "bias1", layer, None),
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


def masks_to_tensors(net: str, weights: dict[str, Array]) -> dict[str, Array]:
    """Official tensor names -> arrays, from our weights `common.*` or `reward.*` / `kl.*`."""
    tensors = {}
    for role in sorted({path.split(".", 1)[0] for path in weights}):
        for theirs, ours, layer, shape in _tensor_rules(net, len(weights[f"{role}.weight"])):
            value = weights[f"{role}.{ours}"]
            value = value if layer is None else value[layer]
            tensors[f"{_OFFICIAL_PREFIX[role]}.{theirs}"] = value if shape is None else value.reshape(shape)
    return tensors


def masks_from_tensors(
    net: str, tensors: dict[str, Array], expected: dict[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Our weights from official tensors. Raises ValueError that lists every missing, left-over and wrongly shaped tensor."""
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
