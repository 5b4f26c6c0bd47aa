"""How tokens choose experts, how evenly they do, and the loss that asks for evenness."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def choose_experts(logits: Float[Array, "*B E"], each: int) -> Int[Array, "*B K"]:
    """The experts with the largest logits, the largest first; of equal ones the lower number.

    Args:
        logits: of the router, float32.
        each: K, how many experts a token gets.
    """
    # Not lax.top_k, which XLA cannot cut: it would bring all tokens to each device.
    left = jax.lax.stop_gradient(logits)
    chosen = []
    for _ in range(each):
        chosen.append(jnp.argmax(left, axis=-1))
        left = jnp.where(_is_chosen(chosen[-1][..., None], logits.shape[-1])[..., 0, :], -jnp.inf, left)
    return jnp.stack(chosen, axis=-1)


def shares_of(
    logits: Float[Array, "*B E"], choice: Int[Array, "*B K"], *, normalised: bool
) -> Float[Array, "*B K"]:
    """The weights of the chosen experts in a token's sum.

    Args:
        logits: of the router, float32.
        choice: the experts that a token chose.
        normalised: a softmax over the chosen alone, so that the weights sum to 1; otherwise over all experts.
    """
    is_chosen = _is_chosen(choice, logits.shape[-1])
    chosen = jnp.where(is_chosen, jnp.expand_dims(logits, -2), 0.0).sum(axis=-1)
    if normalised:
        return jax.nn.softmax(chosen, axis=-1)
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True))


class RouterSums(NamedTuple):
    """What the routers of a model did, added up over tokens.

    Attributes:
        count_LE: how many tokens were sent to each expert.
        probability_LE: the sums of each expert's probabilities, which have a gradient.
        tokens: how many there were, without padding.
    """

    count_LE: Float[Array, "L E"]
    probability_LE: Float[Array, "L E"]
    tokens: Float[Array, ""]


def choice_counts(
    choice_BSK: Int[Array, "B S K"], experts: int, valid_BS: Bool[Array, "B S"]
) -> Float[Array, " E"]:
    """How many tokens chose each expert.

    Args:
        choice_BSK: the experts that each token chose.
        experts: E.
        valid_BS: False on padding, which does not count.
    """
    counted = _is_chosen(choice_BSK, experts) & valid_BS[..., None, None]
    return counted.sum(axis=(0, 1, 2), dtype=jnp.float32)


def _is_chosen(choice: Int[Array, "*B K"], experts: int) -> Bool[Array, "*B K E"]:
    """Comparisons that are never held: a gather or a count by index would bring all tokens to each device."""
    return choice[..., None] == jnp.arange(experts).reshape((1,) * choice.ndim + (-1,))


def probability_sums(logits_BSE: Float[Array, "B S E"], valid_BS: Bool[Array, "B S"]) -> Float[Array, " E"]:
    """The sum over tokens of each expert's probability.

    Args:
        logits_BSE: of the router, float32.
        valid_BS: False on padding, which does not count.
    """
    return jnp.where(valid_BS[..., None], jax.nn.softmax(logits_BSE, axis=-1), 0.0).sum(axis=(0, 1))


def auxiliary_loss(sums: RouterSums) -> Float[Array, ""]:
    """E x the sum over experts of (tokens sent to it) x (its mean probability), over all layers together.

    It is the number of experts that a token is sent to where all are equally busy, and grows to E times that.

    Args:
        sums: of the tokens that count.

    References:
        Fedus, Zoph, Shazeer, Switch transformers, arXiv 2101.03961, 2021, equations 4 to 6.
    """
    L, E = sums.count_LE.shape
    rows = L * jnp.maximum(sums.tokens, 1.0)
    return E * jnp.sum(sums.count_LE.sum(axis=0) / rows * sums.probability_LE.sum(axis=0) / rows)


def router_metrics(sums: RouterSums) -> dict[str, Float[Array, ""]]:
    """How evenly experts are used.

    Args:
        sums: of the tokens that count.

    Returns:
        Means over layers, by name: `router/busiest`, the share of choices that fall on the busiest expert,
        from 1 / E to 1 / K; `router/evenness`, the entropy of these shares over log E, 0 to 1; and
        `router/auxiliary_loss`, see there.
    """
    total_L1 = jnp.maximum(sums.count_LE.sum(axis=1, keepdims=True), 1.0)
    share_LE = sums.count_LE / total_L1
    entropy_L = -jax.scipy.special.xlogy(share_LE, share_LE).sum(axis=1)
    most = jnp.log(float(max(share_LE.shape[1], 2)))
    return {
        "router/busiest": share_LE.max(axis=1).mean(),
        "router/evenness": (entropy_L / most).mean(),
        "router/auxiliary_loss": auxiliary_loss(sums),
    }
