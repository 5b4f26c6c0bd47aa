"""The few steps over response tokens that losses, masks and metrics share.

All act on the last axis T, and all choose by `valid` before they multiply, so that nothing at a padded position, NaN included,
reaches a value or a gradient. Rows without a valid token give zeros.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.types import TokenStats


def inside(x_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Float[Array, "*R T"]:
    """x on response tokens, 0 elsewhere."""
    return jnp.where(valid_RT, x_RT, 0.0)


def response_sum(x_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Float[Array, "*R"]:
    """Sum over the response's tokens."""
    return inside(x_RT, valid_RT).sum(-1)


def response_mean(x_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Float[Array, "*R"]:
    """Mean over the response's tokens."""
    return response_sum(x_RT, valid_RT) / jnp.maximum(valid_RT.sum(-1), 1)


def log_ratio(stats: TokenStats) -> Float[Array, "B P T"]:
    """r_t = log pi(y_t) - log pi_ref(y_t) on response tokens, 0 elsewhere; nats."""
    return inside(stats.logp_BPT, stats.valid_BPT) - inside(stats.ref_logp_BPT, stats.valid_BPT)


def token_number(valid_RT: Bool[Array, "*R T"]) -> Int[Array, "*R T"]:
    """1 for the response's first token, 2 for the next, ...; without meaning on padding."""
    return jnp.cumsum(valid_RT, axis=-1)


def unsure_tokens(logp_RT: Float[Array, "*R T"], valid_RT: Bool[Array, "*R T"]) -> Bool[Array, "*R T"]:
    """Response tokens whose probability is at most the response's mean probability (ConfPO, arXiv 2506.08712); no gradient."""
    prob_RT = jnp.exp(inside(jax.lax.stop_gradient(logp_RT), valid_RT))
    least_R = jnp.min(jnp.where(valid_RT, prob_RT, 1.0), axis=-1)
    # Mathematically least <= mean; rounded, the mean of equal probabilities may fall below all of them and leave no token.
    limit_R = jnp.maximum(response_mean(prob_RT, valid_RT), least_R)
    return valid_RT & (prob_RT <= limit_R[..., None])


def token_uniforms(key_B: Key[Array, "B"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """Uniform draws from [0, 1), one for each token.

    Keyed by (pair, response, number of the token): a token's draw depends neither on padding nor on the rest of the batch.
    """

    def draw(key, response, number):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, response), number))

    over_tokens = jax.vmap(draw, (None, None, 0))
    over_responses = jax.vmap(over_tokens, (None, 0, 0))
    over_pairs = jax.vmap(over_responses, (0, None, 0))
    return over_pairs(key_B, jnp.arange(valid_BPT.shape[1]), token_number(valid_BPT))
