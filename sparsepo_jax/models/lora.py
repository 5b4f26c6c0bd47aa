"""LoRA: a frozen projection x W gets a trained s (x A) B beside it. W may be held in fewer bits.

An adapted decoder's weights are those of the base and of the adapters together, {**base, **adapters}:
policy and reference share the base's arrays.

    blocks.up.kernel [L, D, F]        blocks.up.lora.lora_a [L, D, R]        blocks.up.lora.lora_b [L, R, F]

References:
    Hu et al., LoRA, arXiv 2106.09685, 2021. Kalajdzievski, rsLoRA (the scale s = alpha / sqrt(rank)), arXiv
    2312.03732, 2023. Dettmers et al., QLoRA (nf4, and a scale for each 64 weights), arXiv 2305.14314, 2023.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.models.peft_modules import adapted_kernels

TILE = 64  # weights that share a scale in nf4, as in QLoRA
BaseType = Literal["float32", "bfloat16", "int8", "nf4"]
HeldWeights = dict[str, Any]  # by path: arrays, or what qwix makes of them in int8 and nf4


class Lora(NamedTuple):
    """Settings of the adapters.

    Attributes:
        targets: names of the projections that have one (see `DecoderSpec.projections`).
        rank: inner size R of A [in, R] and B [R, out].
        alpha: numerator of the scale s.
        dropout: share of an adapter's inputs that training sets to zero, 0 to 1.
        rslora: whether s is alpha / sqrt(rank) instead of alpha / rank.
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        """s, the factor of x A B."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def init_a(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Initial A, as PEFT draws it: uniform within 1 / sqrt(inputs). B starts at zero, and so does s A B.

    Args:
        key: of the draw.
        shape: (inputs, rank).
        dtype: type of A.
    """
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def is_matrix(path: str) -> bool:
    """Whether a weight is a matrix (or a stack of them) of the model itself; those of adapters are not.

    Args:
        path: the weight's.
    """
    return path.endswith((".kernel", ".embedding"))


def is_trained_matrix(path: str) -> bool:
    """Whether a weight is a matrix, of the model or of adapters.

    Args:
        path: the weight's.
    """
    return is_matrix(path) or ".lora." in path


def is_block_matrix(path: str) -> bool:
    """Whether a weight is a stack of matrices, one of each block.

    Args:
        path: the weight's.
    """
    return path.startswith("blocks.") and is_matrix(path)


def split_adapters(weights: HeldWeights) -> tuple[HeldWeights, Weights]:
    """Splits the weights of an adapted decoder.

    Args:
        weights: by path; without adapters all of them are the base's.

    Returns:
        The weights of the base, and those of the adapters.
    """
    adapters = {path: x for path, x in weights.items() if ".lora." in path}
    return {path: x for path, x in weights.items() if path not in adapters}, adapters


def merge_adapters(base: Weights, adapters: Weights, scale: float) -> Weights:
    """The base's weights with s A B added, float32: the same model, without adapters.

    Args:
        base: weights of the base, float32.
        adapters: weights of the adapters.
        scale: s.
    """
    merged = {
        path: base[path] + scale * jnp.matmul(a, b, precision="highest")  # [L, D, R] [L, R, F]
        for path, (a, b) in adapted_kernels(adapters).items()
    }
    return {**base, **merged}


def hold_base(base: Weights, held: BaseType) -> HeldWeights:
    """The frozen base as it is kept in memory.

    Args:
        base: its weights, float32 or, of matrices, bfloat16.
        held: float32 keeps all numbers; bfloat16 rounds all matrices; int8 (with a scale for each output) and
            nf4 (with one for each TILE inputs of an output) hold the projections of blocks alone, and leave
            embeddings, heads, norms and biases as they are.

    Raises:
        UserError: int8 or nf4 without the package qwix.
    """
    if held == "float32":
        return {path: _in_type(x, jnp.float32) for path, x in base.items()}
    if held == "bfloat16":
        return {path: _in_type(x, jnp.bfloat16) if is_matrix(path) else x for path, x in base.items()}
    quantize = _quantizer(held)

    def held_weight(path: str, x: Array) -> Any:  # one after the other: only one is there in float32, too
        if path.startswith("blocks.") and path.endswith(".kernel"):
            return quantize(x)
        return _in_type(x, jnp.float32)

    return {path: held_weight(path, x) for path, x in base.items()}


def _in_type(x: Array, dtype: DTypeLike) -> Array:
    return x if x.dtype == dtype else x.astype(dtype)  # the array itself, not a copy


@functools.cache
def _quantizer(held: Literal["int8", "nf4"]) -> Callable[[Array], Any]:
    try:
        import qwix
    except ImportError:
        raise UserError(
            f"lora.base: {held} needs qwix: pip install 'sparsepo_jax[quant]', or take float32 or bfloat16"
        ) from None

    def quantize(x: Array) -> Any:  # [L, in, out], of experts [L, E, in, out]
        summed = x.ndim - 2
        tiled = held == "nf4" and x.shape[summed] % TILE == 0
        return qwix.quantize(
            x.astype(jnp.float32),
            "nf4" if held == "nf4" else jnp.int8,
            channelwise_axes=tuple(axis for axis in range(x.ndim) if axis != summed),
            tiled_axes={summed: TILE} if tiled else {},
        )

    return jax.jit(quantize)


def dequantized(weights: Any) -> Any:
    """The weights as numbers that can be computed with.

    Args:
        weights: a tree of arrays and of what `hold_base` quantised.
    """
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(weights, is_leaf=_is_quantized)):
        return weights
    import qwix

    return jax.tree.map(
        lambda x: qwix.dequantize(x) if _is_quantized(x) else x, weights, is_leaf=_is_quantized
    )


def _is_quantized(x: Any) -> bool:
    return hasattr(x, "qvalue")
