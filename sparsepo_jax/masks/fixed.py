"""Masks that nobody trains: ones, random, positional, by confidence, given with the data.

Each is one weight a token, zero outside the response. After any mask, trained or not: `normalise` scales it to mean 1, `place`
says whether it weighs log-ratios, KL or both.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from sparsepo_jax.core.tokens import inside, response_mean, token_number, token_uniforms, unsure_tokens
from sparsepo_jax.core.types import TokenMasks


def ones_mask(valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """1 on every response token; on reward and KL it gives TDPO-1."""
    return valid_BPT.astype(jnp.float32)


def random_mask(key_B: Key[Array, "B"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """Uniform(0, 1) of each token, the paper's random baseline; the same for a pair whatever its padding or batch."""
    return inside(token_uniforms(key_B, valid_BPT), valid_BPT)


def positional_mask(valid_BPT: Bool[Array, "B P T"], *, decay: float) -> Float[Array, "B P T"]:
    """decay**t of response token t = 1, 2, ...: early tokens count more (D2PO, arXiv 2502.14340). `decay` in (0, 1]."""
    return inside(jnp.float32(decay) ** token_number(valid_BPT), valid_BPT)


def confidence_mask(
    logp_BPT: Float[Array, "B P T"], valid_BPT: Bool[Array, "B P T"]
) -> Float[Array, "B P T"]:
    """1 where the token's probability is at most the response's mean, else 0; no gradient (ConfPO, arXiv 2506.08712)."""
    return unsure_tokens(logp_BPT, valid_BPT).astype(jnp.float32)


def given_mask(weights_BPT: Float[Array, "B P T"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """The token weights that came with the data."""
    return inside(weights_BPT, valid_BPT)


def normalise(mask_BPT: Float[Array, "B P T"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """Each response's mask scaled to mean 1 over its tokens, so that sparsity does not shrink the effective beta.

    A mask of zeros stays zero. A mask with negative weights (a net without activation) is scaled by its mean size |m|: dividing
    by a mean near or below zero would blow it up or turn its sign.
    """
    mask_BPT = inside(mask_BPT, valid_BPT)
    size_BP = response_mean(jnp.abs(mask_BPT), valid_BPT)
    # Below the limit a mask is zero for all purposes, and the square in the quotient's derivative would underflow.
    scale_BP = jnp.where(size_BP > 1e-12, size_BP, 1.0)
    return mask_BPT / scale_BP[..., None]


def place(
    mask_BPT: Float[Array, "B P T"],
    valid_BPT: Bool[Array, "B P T"],
    on: Literal["both", "reward", "kl", "reward_only"],
) -> TokenMasks:
    """The mask on log-ratios, KL or both; ones on the other. reward_only: on log-ratios, and no KL at all (with a mask of ones, DPO)."""
    mask_BPT = inside(mask_BPT, valid_BPT)
    if on == "reward_only":
        return TokenMasks(mask_BPT, jnp.zeros_like(mask_BPT))
    return TokenMasks(
        reward_BPT=ones_mask(valid_BPT) if on == "kl" else mask_BPT,
        kl_BPT=ones_mask(valid_BPT) if on == "reward" else mask_BPT,
    )
