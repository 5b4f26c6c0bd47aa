"""The waist of the project: what passes between models, masks, losses and data.

Above it (models, ops, the step) things know about layouts and sharding; below it (masks, losses, metrics) they see small float arrays.

Letters of shape suffixes, everywhere: B pairs or rows, P the two responses (0 chosen, 1 rejected), T response tokens, S positions of a row,
V vocabulary, D width, N query heads, K key/value heads, H head dim, F MLP width, L layers, C chunk.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class PairBatch(NamedTuple):
    """Tokenised pairs of one shape. Prompts end at the same column (padding on the left), so the last prompt token predicts both responses.

    ids may hold anything where `valid` is False. `row_B` names the rows (for random draws, scores and error messages); a pair of weight 0 is
    filler that rounds up a batch. `weights_BPT` are token weights given with the data, `ref_logp_BPT` the reference's log-probs where they
    were computed before; or None.
    """

    prompt_BS: Int[Array, "B S"]
    prompt_valid_BS: Bool[Array, "B S"]
    response_BPT: Int[Array, "B P T"]
    valid_BPT: Bool[Array, "B P T"]
    row_B: Int[Array, "B"]
    weight_B: Float[Array, "B"]
    weights_BPT: Float[Array, "B P T"] | None = None
    ref_logp_BPT: Float[Array, "B P T"] | None = None


class TokenStats(NamedTuple):
    """What policy and reference say of each response token; padding is already inert: finite, of zero gradient.

    logp, ref_logp: natural log-probabilities of the token that is there; kl: KL(ref || policy) over the vocabulary, >= 0, nats; zero where
    the reference was not run (sft, cached reference). float32.
    """

    logp_BPT: Float[Array, "B P T"]
    ref_logp_BPT: Float[Array, "B P T"]
    kl_BPT: Float[Array, "B P T"]
    valid_BPT: Bool[Array, "B P T"]


class TokenMasks(NamedTuple):
    """Weights of each token's log-ratio and KL: real, zero outside the response; ones where no mask is asked for."""

    reward_BPT: Float[Array, "B P T"]
    kl_BPT: Float[Array, "B P T"]


class LossOutput(NamedTuple):
    """Unreduced: the caller averages, weighted by pair, over all micro-batches and hosts."""

    loss_B: Float[Array, "B"]
    metrics: dict[str, Float[Array, "B"]]
