"""The waist of the project: what passes between models, masks, losses and data.

Above it (models, ops, the step) things know about layouts and sharding; below it (masks, losses, metrics) they see small float arrays.

Letters of shape suffixes, everywhere: B pairs, P the two responses (0 chosen, 1 rejected), T response tokens, R rows of tokens, S positions of a
row, M response tokens of a row, Q sequences of a row, W positions of a sequence, V vocabulary, D width, N query heads, K key/value heads,
H head dim, F MLP width, L layers, C chunk.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

Scalar = float | Float[Array, ""]  # a setting: a program that takes it as an argument serves any value


class Packing(NamedTuple):
    """Rows of tokens without gaps, each a number of sequences one after the other; padding at a row's end alone.

    A sequence is `prompt | response 1 | ... | response P`: the prompt runs once, and each response sees it and itself. What a token sees: its own
    sequence, up to its own column, of part 0 (the prompt) or of its own part. The last token of a response predicts nothing that counts and is
    not run.

        pair             prompt x1 x2, chosen c1 c2 c3, rejected r1 r2                    another: prompt x3, chosen c4, rejected r3 r4
        ids_RS           x1 x2 c1 c2 r1 x3 r3  0                   W: columns of sequence 0: 0 1 2 3 4, of sequence 1: 5 6 8 8 8 (8: none)
        sequence_RS       0  0  0  0  0  1  1 -1
        part_RS           0  0  1  1  2  0  2  0
        positions_RS      0  1  2  3  2  0  1  0
        at_RM             1 2 3, 1 4, 5, 5 6                       the column that predicts each response token, in order
        label_RM          c1 c2 c3, r1 r2, c4, r3 r4               the token that is there
    """

    ids_RS: Int[Array, "R S"]
    positions_RS: Int[Array, "R S"]
    sequence_RS: Int[Array, "R S"]
    part_RS: Int[Array, "R S"]
    column_RQW: Int[Array, "R Q W"]
    at_RM: Int[Array, "R M"]
    label_RM: Int[Array, "R M"]
    valid_RM: Bool[Array, "R M"]


class PairBatch(NamedTuple):
    """Pairs of one shape. Pair b lies in row b // (B / R).

    slot_BPT says which response token of its row a pair's token is, where valid_BPT. `row_B` names the rows of the data (for random draws, scores and
    error messages); a pair of weight 0 is filler that rounds up a batch. `weights_BPT` are token weights given with the data, `ref_logp_BPT` the
    reference's log-probs where they were computed before; or None.
    """

    packing: Packing
    slot_BPT: Int[Array, "B P T"]
    valid_BPT: Bool[Array, "B P T"]
    row_B: Int[Array, "B"]
    weight_B: Float[Array, "B"]
    weights_BPT: Float[Array, "B P T"] | None = None
    ref_logp_BPT: Float[Array, "B P T"] | None = None


class PromptBatch(NamedTuple):
    """Prompts to be answered, padded on the left, so that all end at the same column. weight 0: filler."""

    prompt_BS: Int[Array, "B S"]
    valid_BS: Bool[Array, "B S"]
    row_B: Int[Array, "B"]
    weight_B: Float[Array, "B"]


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
