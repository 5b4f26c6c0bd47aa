"""What the backward pass of a block computes again instead of keeping it.

| remat | kept of each block | computed again |
|---|---|---|
| nothing | all that the gradient reads | nothing |
| norms | products, rotated queries and keys, attention | norms, activation functions, biases |
| all_but_products | products | attention as well |
| everything | the block's input | the block |
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Remat = Literal["nothing", "norms", "all_but_products", "everything"]
_PRODUCT, _ROTATED, ATTENTION = "product", "rotated", "attention"
_CUDNN = "dot_product_attention_fwd_wrapper"  # a primitive of JAX, whose outputs cannot be named
_KEPT: dict[Remat, tuple[str, ...]] = {
    "norms": (_PRODUCT, _ROTATED, ATTENTION),
    "all_but_products": (_PRODUCT,),
    "everything": (),
}


def product(x: Array) -> Array:
    """Marks the result of a product with weights.

    Args:
        x: the result.
    """
    return checkpoint_name(x, _PRODUCT)


def rotated(x: Array) -> Array:
    """Marks rotated queries or keys.

    Args:
        x: queries or keys.
    """
    return checkpoint_name(x, _ROTATED)


def attended(x: Array) -> Array:
    """Marks what attention keeps for its gradient: its output and the logsumexp of scores.

    Args:
        x: one of them.
    """
    return checkpoint_name(x, ATTENTION)


def with_remat(block: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The same function, with a backward pass that computes again what `remat` says.

    Args:
        block: a function of arrays.
        remat: see the table above.
    """
    if remat == "nothing":
        return block
    kept = _KEPT[remat]
    by_name = jax.checkpoint_policies.save_only_these_names(*kept)

    def is_kept(primitive: Any, *arguments: Any, **settings: Any) -> Any:
        if primitive.name == _CUDNN:
            return ATTENTION in kept
        return by_name(primitive, *arguments, **settings)

    return jax.checkpoint(block, policy=is_kept)
