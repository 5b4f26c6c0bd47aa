"""Masks that are not trained: ones, random, positional, by confidence, given with the data.

Each is one weight per token, zero outside the response. Any mask, trained or not, may then be scaled to mean
1 (`normalise`), and is put on log-ratios, KL or both (`place`).
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from sparsepo_jax.core.tokens import inside, response_mean, token_number, token_uniforms, unsure_tokens
from sparsepo_jax.core.types import TokenMasks

MaskedTerms = Literal["both", "reward", "kl", "reward_only"]


def ones_mask(valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """1 on every response token. On reward and KL it gives TDPO-1.

    Args:
        valid_BPT: True on response tokens.
    """
    return valid_BPT.astype(jnp.float32)


def random_mask(key_B: Key[Array, "B"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """Uniform draws from [0, 1), the paper's random baseline.

    A pair's draws depend on its key alone, not on padding or on the rest of the batch.

    Args:
        key_B: one random key per pair.
        valid_BPT: True on response tokens.
    """
    return inside(token_uniforms(key_B, valid_BPT), valid_BPT)


def positional_mask(valid_BPT: Bool[Array, "B P T"], *, decay: float) -> Float[Array, "B P T"]:
    """decay**t for response token t = 1, 2, ..., so that early tokens count more.

    Args:
        valid_BPT: True on response tokens.
        decay: in (0, 1]; 1 gives `ones_mask`.

    References:
        Shao et al. (D2PO), arXiv 2502.14340, 2025.
    """
    return inside(jnp.float32(decay) ** token_number(valid_BPT), valid_BPT)


def confidence_mask(
    logp_BPT: Float[Array, "B P T"], valid_BPT: Bool[Array, "B P T"]
) -> Float[Array, "B P T"]:
    """1 where the token's probability is at most the mean of its response, else 0; without gradient.

    Args:
        logp_BPT: log-probability of each token under the model whose confidence counts, in nats.
        valid_BPT: True on response tokens.

    References:
        Yoon et al. (ConfPO), arXiv 2506.08712, 2025.
    """
    return unsure_tokens(logp_BPT, valid_BPT).astype(jnp.float32)


def given_mask(weights_BPT: Float[Array, "B P T"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """The token weights that came with the data.

    Args:
        weights_BPT: any real numbers; whatever stands on padding is ignored.
        valid_BPT: True on response tokens.
    """
    return inside(weights_BPT, valid_BPT)


def normalise(mask_BPT: Float[Array, "B P T"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "B P T"]:
    """Each response's mask scaled to mean 1 over its tokens.

    Sparsity does not shrink the effective beta then. A mask of zeros stays zero. A mask with negative weights
    (a net without activation) is scaled by the mean of |m|, because dividing by a mean near or below zero
    would blow it up or turn its sign.

    Args:
        mask_BPT: any real weights.
        valid_BPT: True on response tokens.
    """
    mask_BPT = inside(mask_BPT, valid_BPT)
    size_BP = response_mean(jnp.abs(mask_BPT), valid_BPT)
    # A mask below this limit is zero for all purposes, and the square in the quotient's derivative would
    # underflow.
    scale_BP = jnp.where(size_BP > 1e-12, size_BP, 1.0)
    return mask_BPT / scale_BP[..., None]


def place(
    mask_BPT: Float[Array, "B P T"],
    valid_BPT: Bool[Array, "B P T"],
    on: MaskedTerms,
) -> TokenMasks:
    """The masks of log-ratios and KL when there is one mask.

    Args:
        mask_BPT: any real weights.
        valid_BPT: True on response tokens.
        on: what the mask weighs: `both`; `reward` or `kl` alone, with ones on the other; or `reward_only`,
            log-ratios with no KL at all, which is DPO where the mask is ones.
    """
    mask_BPT = inside(mask_BPT, valid_BPT)
    if on == "reward_only":
        return TokenMasks(mask_BPT, jnp.zeros_like(mask_BPT))
    return TokenMasks(
        reward_BPT=ones_mask(valid_BPT) if on == "kl" else mask_BPT,
        kl_BPT=ones_mask(valid_BPT) if on == "reward" else mask_BPT,
    )
