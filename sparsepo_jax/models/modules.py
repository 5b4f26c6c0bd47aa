"""Projections, norms and tables: the modules that a block and a decoder are made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sparsepo_jax.models.lora import Lora, init_a
from sparsepo_jax.ops.norms import layer_norm, rms_norm
from sparsepo_jax.ops.remat import product
from sparsepo_jax.ops.token_sums import add_bias, look_up


class Linear(nnx.Linear):
    """A projection x W + b. Its product can be kept for the backward pass (see ops/remat)."""

    def __call__(self, x: Float[Array, "*B X"]) -> Float[Array, "*B Y"]:  # type: ignore[override]
        """The projection, of the type of the activations.

        Args:
            x: inputs.
        """
        kernel_XY = self.kernel[...].astype(self.dtype)
        out = jnp.dot(x.astype(self.dtype), kernel_XY)
        # With its bias, which the product's kernel can add: what is kept is then written and read once.
        return product(out if self.bias is None else add_bias(out, self.bias[...]))


class LayerNorm(nnx.LayerNorm):
    """A layer norm, see ops/norms."""

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:  # type: ignore[override]
        """The norm over the last axis.

        Args:
            x: inputs.
        """
        assert self.scale is not None
        scale_D = self.scale[...]
        bias_D = jnp.zeros_like(scale_D) if self.bias is None else self.bias[...]
        return layer_norm(x.astype(self.dtype), scale_D, bias_D, self.epsilon)


class RMSNorm(nnx.RMSNorm):
    """An RMS norm, see ops/norms."""

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:  # type: ignore[override]
        """The norm over the last axis.

        Args:
            x: inputs.
        """
        assert self.scale is not None
        return rms_norm(x.astype(self.dtype), self.scale[...], self.epsilon)


class HeadNorms(nnx.Module):
    """A layer norm over each head's dims, without a bias, whose factors are each head's own."""

    def __init__(self, heads: int, head_dim: int, epsilon: float):
        """Factors of 1.

        Args:
            heads: N.
            head_dim: H.
            epsilon: what is added to the variance, > 0.
        """
        self.scale = nnx.Param(jnp.ones((heads, head_dim)))
        self.epsilon = epsilon

    def __call__(self, x_BSNH: Float[Array, "B S N H"]) -> Float[Array, "B S N H"]:
        """The norms, of the type of x.

        Args:
            x_BSNH: queries or keys.
        """
        H = x_BSNH.shape[-1]
        normed_BSNH = layer_norm(x_BSNH.astype(jnp.float32), jnp.ones(H), jnp.zeros(H), self.epsilon)
        return (normed_BSNH * self.scale[...][None, None]).astype(x_BSNH.dtype)


class LayerScalar(nnx.Module):
    """A factor that a checkpoint holds and that is not trained, as transformers' buffers are not."""

    def __init__(self) -> None:
        """A factor of 1."""
        self.scale = nnx.Param(jnp.ones(1))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """x times the factor, of the type of x.

        Args:
            x: inputs.
        """
        return x * jax.lax.stop_gradient(self.scale[...])[0].astype(x.dtype)


class Embed(nnx.Embed):
    """A table with a row for each token or position."""

    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:  # type: ignore[override]
        """The rows, of the type of the activations.

        Args:
            ids: of the rows.
        """
        return look_up(self.embedding[...], ids).astype(self.dtype)


class AdaptedLinear(Linear):
    """A projection x W with an adapter beside it: x W + s (x A) B, s = `lora_scale` (see models/lora)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        adapter: Lora,
        *,
        use_bias: bool,
        dtype: DTypeLike,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        """A projection with random weights and an adapter that adds nothing yet.

        Args:
            inputs: features that it reads.
            outputs: features that it writes.
            adapter: rank and scale of the adapter.
            use_bias: whether the frozen part has a bias.
            dtype: type of the activations.
            kernel_init: initial values of W.
            rngs: source of the initial weights.
        """
        super().__init__(inputs, outputs, use_bias=use_bias, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
        self.lora = nnx.LoRA(
            inputs,
            adapter.rank,
            outputs,
            dtype=dtype,
            a_initializer=init_a,
            lora_param_type=nnx.Param,
            rngs=rngs,
        )
        self.lora_scale = adapter.scale
