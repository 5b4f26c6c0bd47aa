"""The few operations on response tokens that losses, masks and metrics share.

All act on the last axis T. All select by `valid` before they multiply, so that nothing on padding, NaN
included, reaches a value or a gradient. Rows without a valid token give zeros.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.types import TokenStats


def inside(x_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Float[Array, "*R T"]:
    """x on response tokens, 0 elsewhere.

    Args:
        x_RT: any numbers.
        valid_RT: True on response tokens.
    """
    return jnp.where(valid_RT, x_RT, 0.0)


def response_sum(x_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Float[Array, "*R"]:
    """Sum over the response's tokens.

    Args:
        x_RT: any numbers.
        valid_RT: True on response tokens.
    """
    return inside(x_RT, valid_RT).sum(-1)


def response_mean(x_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Float[Array, "*R"]:
    """Mean over the response's tokens.

    Args:
        x_RT: any numbers.
        valid_RT: True on response tokens.
    """
    return response_sum(x_RT, valid_RT) / jnp.maximum(valid_RT.sum(-1), 1)


def weighted_sum(
    x_RT: Float[Array, "*R T"], weight_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]
) -> Float[Array, "*R"]:
    """Sum over the response's tokens, each times its weight.

    Args:
        x_RT: any numbers.
        weight_RT: any real weights.
        valid_RT: True on response tokens.
    """
    # Padding is cleared from both factors before the product: 0 * NaN is NaN, in the gradient too.
    return (inside(weight_RT, valid_RT) * inside(x_RT, valid_RT)).sum(-1)


def weighted_mean(
    x_RT: Float[Array, "*R T"], weight_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]
) -> Float[Array, "*R"]:
    """Mean over the response's tokens, each counted by its weight: the weighted sum over the sum of |weight|.

    A response whose weights are all zero gives 0.

    Args:
        x_RT: any numbers.
        weight_RT: any real weights.
        valid_RT: True on response tokens.
    """
    total_R = size(inside(weight_RT, valid_RT)).sum(-1)
    # Weights below this limit are zero for all purposes, and the square in the quotient's derivative would
    # underflow.
    return weighted_sum(x_RT, weight_RT, valid_RT) / jnp.where(total_R > 1e-12, total_R, 1.0)


def size(weight_RT: Float[Array, "*R T"]) -> Float[Array, "*R T"]:
    """|w| with gradient 0 at 0, as in torch: jnp.abs has 1 there, and exact zeros are what masks are for.

    Args:
        weight_RT: any real numbers.
    """
    return weight_RT * jax.lax.stop_gradient(jnp.sign(weight_RT))


def log_ratio(stats: TokenStats) -> Float[Array, "B P T"]:
    """r_t = log pi(y_t) - log pi_ref(y_t) on response tokens, in nats; 0 elsewhere.

    Args:
        stats: only the two log-probabilities are read.
    """
    return inside(stats.logp_BPT, stats.valid_BPT) - inside(stats.ref_logp_BPT, stats.valid_BPT)


def token_number(valid_RT: Bool[Array, "*R T"]) -> Int[Array, "*R T"]:
    """1 for the response's first token, 2 for the next, and so on; without meaning on padding.

    Args:
        valid_RT: True on response tokens.
    """
    return jnp.cumsum(valid_RT, axis=-1)


def in_both(valid_BPT: Bool[Array, "B P T"]) -> Bool[Array, "B P T"]:
    """True where both responses have a token of this number.

    Args:
        valid_BPT: True on response tokens.
    """
    return jnp.broadcast_to(valid_BPT.all(axis=1, keepdims=True), valid_BPT.shape)


def unsure_tokens(logp_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Bool[Array, "*R T"]:
    """Response tokens whose probability is at most the mean over their response; without gradient.

    Args:
        logp_RT: log-probabilities in nats.
        valid_RT: True on response tokens.

    References:
        Yoon et al. (ConfPO), arXiv 2506.08712, 2025.
    """
    prob_RT = jnp.exp(inside(jax.lax.stop_gradient(logp_RT), valid_RT))
    least_R = jnp.min(jnp.where(valid_RT, prob_RT, 1.0), axis=-1)
    # The mean is never below the least in exact arithmetic. Rounded, the mean of equal probabilities may be,
    # and would leave no token.
    limit_R = jnp.maximum(response_mean(prob_RT, valid_RT), least_R)
    return valid_RT & (prob_RT <= limit_R[..., None])


def token_uniforms(key_B: Key[Array, "B"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """Uniform draws from [0, 1), one for each token.

    A draw is keyed by (pair, response, number of the token): it depends neither on padding nor on the rest of
    the batch.

    Args:
        key_B: one random key per pair.
        valid_BPT: True on response tokens.
    """

    def draw(key: Array, response: Array, number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, response), number))

    over_tokens = jax.vmap(draw, (None, None, 0))
    over_responses = jax.vmap(over_tokens, (None, 0, 0))
    over_pairs = jax.vmap(over_responses, (0, None, 0))
    return over_pairs(key_B, jnp.arange(valid_BPT.shape[1]), token_number(valid_BPT))
