"""One block, for all families: attention or a gated delta net, and an MLP, with norms before or after."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sparsepo_jax.models.delta_net import DeltaNet
from sparsepo_jax.models.layers import Attention, Hooks, LayerFactory
from sparsepo_jax.models.modules import LayerScalar
from sparsepo_jax.models.rotary import LayerTurns
from sparsepo_jax.models.shared_expert import SharedExpert
from sparsepo_jax.ops.activations import activated, gated


class Block(nnx.Module):
    """A decoder layer: attention (or what stands in its place) and MLP, each added to the residual stream.

    They run in sequence or in parallel.
    """

    def __init__(self, make: LayerFactory):
        """A block with random weights.

        Args:
            make: makes its projections and norms, and knows its shape.
        """
        spec = make.spec
        self.spec = spec
        if spec.norms != "after":
            self.attn_norm = make.norm()
        if spec.norms != "after" and not spec.shared_norm:
            self.mlp_norm = make.norm()
        if spec.norms != "before":
            self.attn_post_norm = make.norm()
            self.mlp_post_norm = make.norm()
        if spec.delta is None:
            self.attention = Attention(make)
        else:
            self.delta = DeltaNet(make, spec.delta)
        if spec.scales_blocks:
            self.output = LayerScalar()
        if spec.mixture is not None:
            self.experts = make.experts(spec.mixture)
            if spec.mixture.shared:
                self.shared = SharedExpert(make, spec.mixture.shared)
            return
        self.up = make.linear("up", spec.width, spec.mlp_width, bias=spec.mlp_bias)
        if spec.gated_mlp:
            self.gate = make.linear("gate", spec.width, spec.mlp_width, bias=spec.mlp_bias)
        self.down = make.linear("down", spec.mlp_width, spec.width, bias=spec.mlp_bias, std=make.output_std())

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        positions_BS: Int[Array, "B S"],
        turns: LayerTurns | None,
        hooks: Hooks,
    ) -> Float[Array, "B S D"]:
        """The residual stream after the block.

        Args:
            x_BSD: the residual stream before it.
            positions_BS: position of each token, from 0.
            turns: how queries and keys are rotated; None: they are not.
            hooks: see `Hooks`.
        """
        spec = self.spec
        with jax.named_scope("attention"):
            attn_in_BSD = x_BSD
            if spec.norms != "after":
                attn_in_BSD = self.attn_norm(x_BSD)
                hooks.keep("attn_norm", attn_in_BSD)
            if spec.delta is None:
                attn_BSD = self.attention(attn_in_BSD, positions_BS, turns, hooks)
            else:
                attn_BSD = self.delta(attn_in_BSD, positions_BS, hooks)
            hooks.keep("attn_out", attn_BSD)
            if spec.norms != "before":
                attn_BSD = self.attn_post_norm(attn_BSD)
            resid_BSD = x_BSD + _scaled(attn_BSD, spec.residual_scale)
            if not spec.parallel_residual:
                hooks.keep("attn_resid", resid_BSD)
        with jax.named_scope("mlp"):
            mlp_in_BSD = x_BSD if spec.parallel_residual else resid_BSD
            if spec.shared_norm:
                mlp_in_BSD = attn_in_BSD
            elif spec.norms != "after":
                mlp_in_BSD = self.mlp_norm(mlp_in_BSD)
                hooks.keep("mlp_norm", mlp_in_BSD)
            mlp_BSD = self._mlp(mlp_in_BSD, hooks)
            if spec.norms != "before":
                mlp_BSD = self.mlp_post_norm(mlp_BSD)
            out_BSD = resid_BSD + _scaled(mlp_BSD, spec.residual_scale)
            if spec.scales_blocks:
                out_BSD = self.output(out_BSD)
            hooks.keep("block_out", out_BSD)
        return out_BSD

    def _mlp(self, x_BSD: Array, hooks: Hooks) -> Array:
        if self.spec.mixture is not None:
            mlp_BSD = self.experts(x_BSD, hooks.routing, hooks.keep)
            if self.spec.mixture.shared:
                mlp_BSD = mlp_BSD + self.shared(x_BSD, hooks)
            hooks.keep("mlp_out", mlp_BSD)
            return mlp_BSD
        up_BSF = hooks.project("up", self.up, x_BSD)
        if self.spec.gated_mlp:
            act_BSF = gated(self.spec.activation, hooks.project("gate", self.gate, x_BSD), up_BSF)
        else:
            act_BSF = activated(self.spec.activation, up_BSF)
        hooks.keep("mlp_act", act_BSF)
        mlp_BSD = hooks.project("down", self.down, act_BSF)
        hooks.keep("mlp_out", mlp_BSD)
        return mlp_BSD


def _scaled(x: Array, factor: float) -> Array:
    """x times a factor, which keeps its float32 digits whatever the type of x."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)
