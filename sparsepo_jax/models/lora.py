"""LoRA (Hu et al. 2021, 2106.09685): a frozen projection x W gets a trained s (x A) B beside it; W may be held in fewer bits.

The adapted decoder's weights are the base's and the adapters' together, {**base, **adapters}: policy and reference share the base's arrays.

    blocks.up.kernel [L, D, F]        blocks.up.lora.lora_a [L, D, R]        blocks.up.lora.lora_b [L, R, F]
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.models.weights import adapted_kernels

TILE = 64  # weights that share a scale in nf4, as in QLoRA (2305.14314)
BaseType = Literal["float32", "bfloat16", "int8", "nf4"]


class Lora(NamedTuple):
    """targets: names of projections (DecoderSpec.projections). s = alpha / rank, or alpha / sqrt(rank) (rsLoRA, 2312.03732). dropout: on x, in training."""

    targets: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def init_a(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """Uniform within 1 / sqrt(inputs), as PEFT starts A; B starts at zero, so the adapted model is the base."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def split_adapters(weights: Weights) -> tuple[Weights, Weights]:
    """(the base's weights, the adapters') of an adapted decoder."""
    adapters = {path: x for path, x in weights.items() if ".lora." in path}
    return {path: x for path, x in weights.items() if path not in adapters}, adapters


def merge_adapters(base: Weights, adapters: Weights, scale: float) -> Weights:
    """The base's weights with s A B added, float32: a model that needs no adapter."""
    added = {
        path: base[path] + scale * jnp.einsum("LDR,LRF->LDF", a, b, precision="highest")
        for path, (a, b) in adapted_kernels(adapters).items()
    }
    return {**base, **added}


def hold_base(base: Weights, held: BaseType) -> Weights:
    """The base as it is kept in memory. int8: a scale for each output; nf4: one for each TILE inputs of an output (qwix). The projections of
    blocks only: embeddings, heads, norms and biases stay as they are; bfloat16 rounds all matrices."""
    if held == "float32":
        return base
    if held == "bfloat16":
        return {
            path: x.astype(jnp.bfloat16) if path.endswith((".kernel", ".embedding")) else x
            for path, x in base.items()
        }
    quantized = _make_quantized(held)
    return {
        path: quantized(x) if path.startswith("blocks.") and path.endswith(".kernel") else x
        for path, x in base.items()
    }


@functools.cache
def _make_quantized(held: BaseType):
    try:
        import qwix
    except ImportError:
        raise UserError(
            f"lora.base: {held} needs qwix: pip install 'sparsepo_jax[quant]', or take float32 or bfloat16"
        ) from None

    def quantized(x: Array):  # [L, in, out]
        tiles = {1: TILE} if held == "nf4" and x.shape[1] % TILE == 0 else {}
        return qwix.quantize(
            x, "nf4" if held == "nf4" else jnp.int8, channelwise_axes=(0, 2), tiled_axes=tiles
        )

    return jax.jit(quantized)


def dequantized(weights: Any) -> Any:
    """A tree of weights in which those that hold_base quantised are numbers again."""
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(weights, is_leaf=_is_quantized)):
        return weights
    import qwix

    return jax.tree.map(
        lambda x: qwix.dequantize(x) if _is_quantized(x) else x, weights, is_leaf=_is_quantized
    )


def _is_quantized(x: Any) -> bool:
    return hasattr(x, "qvalue")
