"""SparsePO: a small net turns the reference model's hidden states into a sparse token mask.

    a^l_t = relu(w_l . LN(H^l_t) + b_l)        one LayerNorm for all layers
    m_t   = relu(sum_l c_l a^l_t)              exact zeros are the sparsity; nothing bounds it above

H^l_t is the state after block l at the position that predicts token t (the last one after the final norm), so
the mask of a token sees only what comes before it (SparsePO paper, arXiv 2410.05102, section 3.2).

Departures from the official code: nets other than simple_all can be chosen, while its factory builds only
that one. A gate may take the place of the second relu (masks/gates), and a token's mask may see the token.
The rounding to float16 inside resc and znorm is gone. The initialisation `ones` starts near 1, where the
official start (mean 0.03 to 0.06) shrinks beta twentyfold and may be dead.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.layout import to_pairs
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.masks.activation import map_means, rescale
from sparsepo_jax.masks.gates import GATES, gate

HIDDEN = 200  # width of the two-layer nets, as published
_MOMENTS = "moments"  # of the states: two numbers a token, which the backward pass does not compute again


def activate(
    x_LBPT: Float[Array, "*L B P T"], valid_BPT: Bool[Array, "B P T"], name: str
) -> Float[Array, "*L B P T"]:
    """The net's activation function, zero outside the response except for relu and none.

    Args:
        x_LBPT: what the linear part gives, of each layer or of the mixer.
        valid_BPT: True on response tokens.
        name: `relu`; `none`; `resc`, min-max over the response; or `znorm`, the z-score and then min-max.

    Raises:
        ValueError: another name.
    """
    if name == "relu":
        return jax.nn.relu(x_LBPT)
    if name == "none":
        return x_LBPT
    if name == "resc":
        return rescale(x_LBPT, valid_BPT)
    if name == "znorm":
        return map_means(x_LBPT, valid_BPT, "zn_rescale")
    raise ValueError(f"unknown mask activation {name!r}")


# In float32 whatever the run computes in: a mask's zeros hang on the sign of these numbers.
_product = functools.partial(jnp.einsum, precision="highest")


class NetSettings(NamedTuple):
    """What a net of masks is.

    Attributes:
        net: KIND_READS. Kinds are simple, one linear map per layer; ml, two linear maps without a
            non-linearity between them; and binary, the sign of the relu, which never learns and serves as a
            control. It reads `all` layers, through a LayerNorm and a mixer, or the `last` state as it is.
        num_layers: of the reference model.
        width: of the reference model's states.
        norm_eps: epsilon of the LayerNorm.
        init: `ones` for masks near 1; anything else for the official start.
        layer_activation: of each layer's number; see `activate`.
        mixer_activation: of the mask; see `activate`, and gates.GATES.
        dropout: probability, 0 to 1, after each activation.
        budget: of a gate; see gates.gate.
        temperature: of a gate, where nothing is trained and at the end of training.
        sees: `prefix`, or `token` for the states behind a token; the last token of a response, behind which
            nothing was computed, has the state before it.
    """

    net: str
    num_layers: int
    width: int
    norm_eps: float
    init: str
    layer_activation: str
    mixer_activation: str
    dropout: float
    budget: float = 0.3
    temperature: float = 1.0
    sees: str = "prefix"


class MaskNet(nnx.Module):
    """One net of masks.

    Args:
        settings: what it is.
        rngs: source of the initial weights.
    """

    def __init__(self, settings: NetSettings, *, rngs: nnx.Rngs):
        self.kind, _, self.reads = settings.net.partition("_")
        self.layer_activation = settings.layer_activation
        self.mixer_activation = settings.mixer_activation
        self.budget, self.temperature = settings.budget, settings.temperature
        self.sees = settings.sees
        self.dropout = settings.dropout
        width = settings.width
        L = settings.num_layers if self.reads == "all" else 1
        normal = nnx.initializers.normal(0.02)
        near_one = settings.init == "ones"
        if self.kind == "ml":
            self.weight1 = nnx.Param(normal(rngs.params(), (L, HIDDEN, width)))
            self.bias1 = nnx.Param(jnp.zeros((L, HIDDEN)))
        self.weight = nnx.Param(normal(rngs.params(), (L, HIDDEN if self.kind == "ml" else width)))
        self.bias = nnx.Param(jnp.full(L, 1.0 if near_one else 0.0, jnp.float32))
        if self.reads == "all":
            self.norm = nnx.LayerNorm(width, epsilon=settings.norm_eps, use_fast_variance=False, rngs=rngs)
            self.mixer = nnx.Param(
                jnp.full(L, 1.0 / L, jnp.float32) if near_one else normal(rngs.params(), (L,))
            )

    def __call__(
        self,
        states_LRMD: Float[Array, "L R M D"],
        batch: PairBatch,
        key_B: Array | None = None,
        temperature: Float[Array, ""] | None = None,
    ) -> Float[Array, "B P T"]:
        """The mask of each response token, zero outside the response.

        Args:
            states_LRMD: the reference's states after each block, at the positions that predict the response
                tokens of the batch's rows. They are constants: no gradient reaches them.
            batch: where each response token lies.
            key_B: one random key per pair, which switches dropout on; None for none.
            temperature: of the gate at this step; None: the one it has in the end.
        """
        states_LRMD = jax.lax.stop_gradient(states_LRMD if self.reads == "all" else states_LRMD[-1:])
        # Padding may hold anything, NaN included, so it must not meet the weights.
        states_LRMD = jnp.where(batch.packing.valid_RM[None, ..., None], states_LRMD, 0)

        # One layer after the other, and again in the backward pass: no float32 copy of all states is made.
        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_MOMENTS))
        def of_layer(layer: tuple[Array, Array, Array]) -> Array:
            return self._of_layer(*layer)

        out_LBPT = to_pairs(jax.lax.map(of_layer, (states_LRMD, *self._folded())), batch)
        valid_BPT = batch.valid_BPT
        if self.sees == "token":
            out_LBPT = _behind(out_LBPT, valid_BPT)
        if self.reads == "all":
            a_LBPT = self._drop(activate(out_LBPT, valid_BPT, self.layer_activation), key_B, 0)
            out_BPT = _product("LBPT,L->BPT", a_LBPT, self.mixer[...])
        else:
            out_BPT = out_LBPT[0]
        mask_BPT = self._drop(self._mask_of(out_BPT, valid_BPT, key_B, temperature), key_B, 1)
        if self.kind == "binary":
            mask_BPT = jnp.sign(mask_BPT)
        return jnp.where(valid_BPT, mask_BPT, 0.0)

    def _mask_of(
        self, out_BPT: Array, valid_BPT: Array, key_B: Array | None, temperature: Array | None
    ) -> Array:
        if self.mixer_activation not in GATES:
            return activate(out_BPT, valid_BPT, self.mixer_activation)
        return gate(
            out_BPT,
            valid_BPT,
            self.mixer_activation,
            budget=self.budget,
            temperature=self.temperature if temperature is None else temperature,
            key_B=key_B,
        )

    def _folded(self) -> tuple[Float[Array, "L D"], Float[Array, "L"]]:
        """Each layer's linear maps and the LayerNorm's scale and bias as one weight and one bias, so that
        the states are read once in each pass."""
        weight_LD, bias_L = self.weight[...], self.bias[...]
        if self.kind == "ml":
            bias_L = bias_L + _product("LX,LX->L", weight_LD, self.bias1[...])
            weight_LD = _product("LX,LXD->LD", weight_LD, self.weight1[...])
        if self.reads == "all":
            scale, bias = self.norm.scale, self.norm.bias
            assert scale is not None and bias is not None  # a LayerNorm made without them would have none
            bias_L = bias_L + _product("LD,D->L", weight_LD, bias[...])
            weight_LD = weight_LD * scale[...][None]
        return weight_LD, bias_L

    def _of_layer(self, states_RMD: Array, weight_D: Array, bias: Array) -> Float[Array, "R M"]:
        """The number of each response token before the activation, from one layer's states."""
        x_RMD = states_RMD.astype(jnp.float32)
        if self.reads == "all":
            mean_RM1 = checkpoint_name(x_RMD.mean(axis=-1, keepdims=True), _MOMENTS)
            variance_RM1 = jnp.square(x_RMD - mean_RM1).mean(axis=-1, keepdims=True)
            scale_RM1 = checkpoint_name(jax.lax.rsqrt(variance_RM1 + self.norm.epsilon), _MOMENTS)
            x_RMD = (x_RMD - mean_RM1) * scale_RM1
        return _product("RMD,D->RM", x_RMD, weight_D) + bias

    def _drop(self, x: Array, key_B: Array | None, place: int) -> Array:
        if key_B is None or self.dropout == 0.0:
            return x
        shape_of_pair = (*x.shape[:-3], *x.shape[-2:])

        def draw(key: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.dropout, shape_of_pair)

        keep = jax.vmap(draw, out_axes=-3)(key_B)
        return jnp.where(keep, x / (1 - self.dropout), 0.0)


def _behind(x_LBPT: Array, valid_BPT: Array) -> Array:
    """The next token's number in the place of each, the last token's own in its place."""
    next_LBPT = jnp.roll(x_LBPT, -1, axis=-1)
    has_next_BPT = jnp.roll(valid_BPT, -1, axis=-1).at[..., -1].set(False)
    return jnp.where(has_next_BPT, next_LBPT, x_LBPT)


def is_decayed(path: str) -> bool:
    """Whether weight decay applies to a weight of a mask net.

    As in the official optimizer groups, it applies to matrices, but not to biases and the LayerNorm.

    Args:
        path: of the weight, with the mask's name before it or not.
    """
    return path.rsplit(".", 1)[-1] in ("weight", "weight1", "mixer")
