"""How tokens choose experts, how evenly they do, and the loss that asks for evenness."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def choose_experts(logits: Float[Array, "*B E"], each: int) -> Int[Array, "*B K"]:
    """The experts with the largest logits, the largest first; of equal ones the lower number.

    Args:
        logits: of the router, float32.
        each: K, how many experts a token gets.
    """
    return jax.lax.top_k(jax.lax.stop_gradient(logits), each)[1]


def shares_of(
    logits: Float[Array, "*B E"], choice: Int[Array, "*B K"], *, normalised: bool
) -> Float[Array, "*B K"]:
    """The weights of the chosen experts in a token's sum.

    Args:
        logits: of the router, float32.
        choice: the experts that a token chose.
        normalised: a softmax over the chosen alone, so that the weights sum to 1; otherwise over all experts.
    """
    chosen = jnp.take_along_axis(logits, choice, axis=-1)
    if normalised:
        return jax.nn.softmax(chosen, axis=-1)
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True))


def routing_sums(
    logits_BSE: Float[Array, "B S E"], choice_BSK: Int[Array, "B S K"], valid_BS: Bool[Array, "B S"]
) -> tuple[Float[Array, " E"], Float[Array, " E"]]:
    """What load and auxiliary loss need of a layer, added up over tokens.

    Args:
        logits_BSE: of the router, float32.
        choice_BSK: the experts that each token chose.
        valid_BS: False on padding, which does not count.

    Returns:
        How many tokens chose each expert, and the sum of its probabilities, which has a gradient.
    """
    probability_BSE = jax.nn.softmax(logits_BSE, axis=-1)
    chosen_BSK = jnp.where(valid_BS[..., None], choice_BSK, logits_BSE.shape[-1])
    count_E = jnp.bincount(chosen_BSK.reshape(-1), length=logits_BSE.shape[-1] + 1)[:-1]
    sum_E = jnp.where(valid_BS[..., None], probability_BSE, 0.0).sum(axis=(0, 1))
    return count_E.astype(jnp.float32), sum_E
