"""The MLP of a block as a mixture of experts: a router, and a gated MLP for each expert.

    logits   = router(x)                              float32, whatever the activations are
    chosen   = the K largest logits
    out      = sum over chosen e of share_e * down_e(act(gate_e(x)) * up_e(x))

Weights of experts are stacks [E, in, out], in a decoder [L, E, in, out]:

    blocks.experts.router.weight    blocks.experts.(gate|up|down).kernel    ... .lora.(lora_a|lora_b)
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.models.decoder_spec import Activation
from sparsepo_jax.models.lora import Lora, init_a
from sparsepo_jax.models.mixture import Mixture
from sparsepo_jax.ops.activations import clamped_swiglu, gated
from sparsepo_jax.ops.grouped import (
    HERE,
    Dispatch,
    GroupedKernel,
    Groups,
    add_expert_bias,
    from_rows,
    group_by_expert,
    grouped_product,
    of_rows,
    to_rows,
)
from sparsepo_jax.ops.remat import product
from sparsepo_jax.ops.routing import choose_experts, shares_of

ExpertKernel = GroupedKernel | Literal["auto"]
ExpertArrays = dict[str, Array]  # kernel [E, X, Y], and where they are: bias [E, Y], a [E, X, R], b [E, R, Y]
RoutedTokens = tuple[Array, Array, Array]  # states [B, S, D], shares and choices [B, S, K]


class Routing(NamedTuple):
    """How the tokens of a layer are sent to experts.

    Attributes:
        dispatch: where and by what experts are computed.
        valid_BS: False on padding, which is sent to none; None: there is no padding, or it is not known.
        choice_BSK: the experts that are taken whatever the router says; None: those that it chooses.
    """

    dispatch: Dispatch = HERE
    valid_BS: Bool[Array, "B S"] | None = None
    choice_BSK: Int[Array, "B S K"] | None = None


def dispatch_on(platform: str, spread: Callable[..., Array], kernel: ExpertKernel = "auto") -> Dispatch:
    """Where and by what experts are computed.

    Args:
        platform: cpu, gpu or tpu.
        spread: over the devices, see sharding/experts.
        kernel: auto: the one that suits the platform.
    """
    if kernel == "auto":
        suiting: dict[str, GroupedKernel] = {"gpu": "triton", "tpu": "ragged"}
        kernel = suiting.get(platform, "blocks")
    return Dispatch(kernel, spread)


class ExpertLora(nnx.Module):
    """An adapter for the projection of each expert: x A_e B_e."""

    def __init__(self, experts: int, inputs: int, rank: int, outputs: int, rngs: nnx.Rngs):
        """Adapters that add nothing yet.

        Args:
            experts: E.
            inputs: features that the projection reads.
            rank: inner size R.
            outputs: features that it writes.
            rngs: source of the initial A.
        """
        draw = jax.vmap(lambda key: init_a(key, (inputs, rank), jnp.float32))
        self.lora_a = nnx.Param(draw(jax.random.split(rngs.params(), experts)))
        self.lora_b = nnx.Param(jnp.zeros((experts, rank, outputs)))


class ExpertLinear(nnx.Module):
    """The projection of each expert, x W_e + b_e, with an adapter if one is asked for."""

    def __init__(
        self,
        experts: int,
        size: tuple[int, int],
        *,
        bias: bool,
        std: float,
        adapter: Lora | None,
        rngs: nnx.Rngs,
    ):
        """Projections with random weights.

        Args:
            experts: E.
            size: features that they read and write.
            bias: whether they have biases.
            std: standard deviation of the initial weights.
            adapter: rank and scale of the adapter; None: there is none.
            rngs: source of the initial weights.
        """
        inputs, outputs = size
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (experts, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((experts, outputs))) if bias else None
        self.lora = None if adapter is None else ExpertLora(experts, inputs, adapter.rank, outputs, rngs)

    def stack(self, dtype: DTypeLike) -> ExpertArrays:
        """The arrays by name, matrices in the type of the activations.

        Args:
            dtype: that type.
        """
        arrays = {"kernel": self.kernel[...].astype(dtype)}
        if self.bias is not None:
            arrays["bias"] = self.bias[...]
        if self.lora is not None:
            arrays |= {"a": self.lora.lora_a[...].astype(dtype), "b": self.lora.lora_b[...].astype(dtype)}
        return arrays


class Router(nnx.Module):
    """The logits of the experts, float32 whatever the activations are."""

    def __init__(self, width: int, experts: int, *, bias: bool, std: float, rngs: nnx.Rngs):
        """A router with random weights.

        Args:
            width: of the residual stream.
            experts: E.
            bias: whether it has a bias.
            std: standard deviation of the initial weights.
            rngs: source of the initial weights.
        """
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (width, experts)))
        self.bias = nnx.Param(jnp.zeros(experts)) if bias else None

    def __call__(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S E"]:
        """The logits.

        Args:
            x_BSD: inputs, of any type.
        """
        logits_BSE = jnp.dot(x_BSD.astype(jnp.float32), self.weight[...], precision="highest")
        return logits_BSE if self.bias is None else logits_BSE + self.bias[...].reshape(1, 1, -1)


class Mlp(NamedTuple):
    """How a device computes the MLPs of its experts.

    Attributes:
        mixture: their shape.
        activation: of the gate.
        scale: of the adapters.
        kernel: what computes the products.
    """

    mixture: Mixture
    activation: Activation
    scale: float
    kernel: GroupedKernel

    def __call__(
        self, stacks: dict[str, ExpertArrays], tokens: RoutedTokens, first: Array | int
    ) -> Float[Array, "B S D"]:
        """The part of the mixture's output that the experts of this device add.

        Args:
            stacks: their weights, by projection.
            tokens: states, shares and choices of all tokens that may have chosen them.
            first: number of the first of these experts.
        """
        x_BSD, share_BSK, choice_BSK = tokens
        K = choice_BSK.shape[-1]
        x_TD, share_TK, choice_TK = (
            x_BSD.reshape(-1, x_BSD.shape[-1]),
            share_BSK.reshape(-1, K),
            choice_BSK.reshape(-1, K),
        )
        run = self._dense if self.kernel == "dense" else self._grouped
        return run(stacks, x_TD, share_TK, choice_TK, first).reshape(x_BSD.shape)

    def _grouped(
        self,
        stacks: dict[str, ExpertArrays],
        x_TD: Array,
        share_TK: Array,
        choice_TK: Array,
        first: Array | int,
    ) -> Array:
        experts = stacks["up"]["kernel"].shape[0]
        groups = group_by_expert(choice_TK, experts, first)
        x_YD = to_rows(x_TD, groups)
        gate_YF = product(self._project(stacks["gate"], x_YD, groups))
        up_YF = product(self._project(stacks["up"], x_YD, groups))
        # The share is taken in before the last product: its gradient then needs no row of the output.
        share_Y = of_rows(share_TK, groups)
        act_YF = self._weighted(gate_YF, up_YF, share_Y[:, None])
        out_YD = self._project(stacks["down"], act_YF, groups, share_Y)
        return from_rows(out_YD, groups)

    def _project(
        self, stack: ExpertArrays, x_YX: Array, groups: Groups, share_Y: Array | None = None
    ) -> Array:
        """x W_e, its adapter's part, and its bias, times the share if x is."""
        out = grouped_product(self.kernel, x_YX, stack["kernel"], groups)
        if "a" in stack:
            inner = grouped_product(self.kernel, x_YX, stack["a"], groups)
            more = grouped_product(self.kernel, inner, stack["b"], groups)
            out = out + jnp.asarray(self.scale, out.dtype) * more
        return out if "bias" not in stack else add_expert_bias(out, stack["bias"], groups, share_Y)

    def _weighted(self, gate: Array, up: Array, share: Array) -> Array:
        if self.mixture.swiglu is not None:
            act = clamped_swiglu(gate, up, *self.mixture.swiglu)
        else:
            act = gated(self.activation, gate, up)
        return (act.astype(jnp.float32) * share).astype(act.dtype)

    def _dense(
        self,
        stacks: dict[str, ExpertArrays],
        x_TD: Array,
        share_TK: Array,
        choice_TK: Array,
        first: Array | int,
    ) -> Array:
        """Every expert on every token, one expert after the other."""

        def add(out_TD: Array, expert: tuple[dict[str, ExpertArrays], Array]) -> tuple[Array, None]:
            stack, number = expert
            share_T1 = jnp.where(choice_TK - first == number, share_TK, 0.0).sum(1, keepdims=True)

            def project(name: str, x: Array, share_T1: Array | float = 1.0) -> Array:
                arrays = stack[name]
                out = x @ arrays["kernel"]
                if "a" in arrays:
                    out = out + jnp.asarray(self.scale, x.dtype) * (x @ arrays["a"] @ arrays["b"])
                if "bias" in arrays:
                    out = (out + share_T1 * arrays["bias"][None]).astype(x.dtype)
                return out

            act_TF = self._weighted(project("gate", x_TD), project("up", x_TD), share_T1)
            return out_TD + project("down", act_TF, share_T1).astype(jnp.float32), None

        zeros = jnp.zeros(x_TD.shape, jnp.float32)
        experts = jnp.arange(stacks["up"]["kernel"].shape[0])
        return jax.lax.scan(add, zeros, (stacks, experts))[0].astype(x_TD.dtype)


class Experts(nnx.Module):
    """The mixture of experts of a block."""

    def __init__(
        self,
        mixture: Mixture,
        activation: Activation,
        width: int,
        *,
        dtype: DTypeLike,
        lora: Lora | None,
        stds: tuple[float, float],
        rngs: nnx.Rngs,
    ):
        """Experts with random weights.

        Args:
            mixture: their shape.
            activation: of the gate.
            width: of the residual stream.
            dtype: type of the activations.
            lora: which projections get adapters; None: none does.
            stds: standard deviation of the initial weights, and of those that write to the residual stream.
            rngs: source of the initial weights.
        """
        self.mixture = mixture
        self.activation = activation
        self.dtype = dtype
        self.lora_scale = 0.0 if lora is None else lora.scale
        sizes = mixture.projections(width)

        def linear(name: str, std: float) -> ExpertLinear:
            adapter = lora if lora is not None and name in lora.targets else None
            return ExpertLinear(
                mixture.experts, sizes[name], bias=mixture.bias, std=std, adapter=adapter, rngs=rngs
            )

        self.router = Router(width, mixture.experts, bias=mixture.bias, std=stds[0], rngs=rngs)
        self.gate = linear("experts.gate", stds[0])
        self.up = linear("experts.up", stds[0])
        self.down = linear("experts.down", stds[1])

    def __call__(
        self, x_BSD: Float[Array, "B S D"], routing: Routing, keep: Callable[[str, Array], None]
    ) -> Float[Array, "B S D"]:
        """The weighted sum of the chosen experts' outputs.

        Args:
            x_BSD: the MLP's input.
            routing: how tokens are sent to experts.
            keep: is told of the router's logits [B, S, E] and of the choices [B, S, K].
        """
        logits_BSE = self.router(x_BSD)
        choice_BSK = routing.choice_BSK
        if choice_BSK is None:
            choice_BSK = choose_experts(logits_BSE, self.mixture.chosen)
        keep("router_logits", logits_BSE)
        keep("router_choice", choice_BSK)
        share_BSK = shares_of(logits_BSE, choice_BSK, normalised=self.mixture.normalised)
        if routing.valid_BS is not None:  # padding goes to no expert
            choice_BSK = jnp.where(routing.valid_BS[..., None], choice_BSK, self.mixture.experts)
        mlp = Mlp(self.mixture, self.activation, self.lora_scale, routing.dispatch.kernel)
        stacks = {name: getattr(self, name).stack(self.dtype) for name in ("gate", "up", "down")}
        return routing.dispatch.spread(mlp, stacks, (x_BSD, share_BSK, choice_BSK))
