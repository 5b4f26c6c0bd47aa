"""The waist of the project: what passes between models, masks, losses and data.

Modules above the waist (models, ops, the training step) know about layouts and sharding. Those below it
(masks, losses, metrics) see small float arrays.

Names of arrays end in the letters of their axes, as in `logp_BPT`, and annotations and einsum strings use the
same letters; see core/letters.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

Scalar = float | Float[Array, ""]  # a setting: a program that takes it as an argument serves any value


class Packing(NamedTuple):
    """Rows of tokens: each holds a number of sequences without gaps, and padding at its end alone.

    A sequence is `prompt | response 1 | ... | response P`. The prompt runs once, and each response sees it
    and itself: a token sees those of its own sequence, up to its own column, that are of part 0 (the prompt)
    or of its own part. The last token of a response predicts nothing that counts and is not run. Between a
    response's tokens there may be others of its part, of a tool for example, that are run and not predicted.

        pair 0           prompt x1 x2, chosen c1 c2 c3, rejected r1 r2
        pair 1           prompt x3, chosen c4, rejected r3 r4

        ids_RS           x1 x2 c1 c2 r1 x3 r3  0
        sequence_RS       0  0  0  0  0  1  1 -1
        part_RS           0  0  1  1  2  0  2  0
        positions_RS      0  1  2  3  2  0  1  0
        column_RQW        0  1  2  3  4, 5  6  8  8  8     columns of sequence 0 and of sequence 1; 8: none
        at_RM             1  2  3, 1  4, 5, 5  6           the column that predicts each response token
        label_RM         c1 c2 c3,r1 r2,c4,r3 r4           the token that is there
        own_RM            2  3  8, 4  8, 8, 6  8           its own column; 8: it is not run

    Attributes:
        ids_RS: tokens.
        positions_RS: of each token in its own prompt and response, from 0.
        sequence_RS: number of the sequence in its row, -1 for padding.
        part_RS: 0 for the prompt, p for response p.
        column_RQW: the column of each sequence's positions, S where there is none.
        at_RM: the column that predicts each response token.
        label_RM: the response tokens.
        own_RM: the column where each response token itself stands, S where it is not run.
        valid_RM: False where a row has no more response tokens.
    """

    ids_RS: Int[Array, "R S"]
    positions_RS: Int[Array, "R S"]
    sequence_RS: Int[Array, "R S"]
    part_RS: Int[Array, "R S"]
    column_RQW: Int[Array, "R Q W"]
    at_RM: Int[Array, "R M"]
    label_RM: Int[Array, "R M"]
    own_RM: Int[Array, "R M"]
    valid_RM: Bool[Array, "R M"]


class PairBatch(NamedTuple):
    """Pairs of one shape. Pair b lies in row b // (B / R) of the packing.

    Attributes:
        packing: the tokens.
        slot_BPT: which response token of its row a pair's token is, where valid_BPT.
        valid_BPT: True on response tokens.
        row_B: number of the row in the data, for random draws, scores and error messages.
        weight_B: of the pair in every mean, >= 0; 0 for filler that rounds up a batch.
        weights_BPT: token weights given with the data, or None.
        ref_logp_BPT: the reference's log-probabilities in nats where they were computed before, or None.
        label_B: of rows of one response, whether it is desirable; None: these are pairs, or sft rows.
        mismatched: the same rows with responses to other prompts, from which KTO estimates its baseline.
    """

    packing: Packing
    slot_BPT: Int[Array, "B P T"]
    valid_BPT: Bool[Array, "B P T"]
    row_B: Int[Array, "B"]
    weight_B: Float[Array, "B"]
    weights_BPT: Float[Array, "B P T"] | None = None
    ref_logp_BPT: Float[Array, "B P T"] | None = None
    label_B: Bool[Array, "B"] | None = None
    mismatched: "PairBatch | None" = None


class PromptBatch(NamedTuple):
    """Prompts to be answered, padded on the left, so that all end at the same column.

    Attributes:
        prompt_BS: tokens.
        valid_BS: False on padding.
        row_B: number of the row in the data.
        weight_B: 0 for filler.
    """

    prompt_BS: Int[Array, "B S"]
    valid_BS: Bool[Array, "B S"]
    row_B: Int[Array, "B"]
    weight_B: Float[Array, "B"]


class TokenStats(NamedTuple):
    """What policy and reference say of each response token, in float32.

    Padding is already inert: finite, and of zero gradient.

    Attributes:
        logp_BPT: the policy's log-probability of the token that is there, in nats.
        ref_logp_BPT: the reference's.
        kl_BPT: KL(ref || policy) over the vocabulary, in nats, >= 0; zero where the reference was not run
            (sft, cached reference).
        valid_BPT: True on response tokens.
        importance_BPT: how much the policy's prediction of the response's last token depends on the token,
            >= 0, without gradient; None: the objective does not read it (TI-DPO does).
        baseline_BPT: what a head makes of the policy's state that predicts the token, in nats; None: the
            objective has no such head (TBPO-Q has).
        desirable_BP: whether each response is desirable; None: the objective does not read it (KTO does).
        anchor: the log-ratio from which responses are judged, nats, without gradient; None: 0.
        expected_BPT: log of the mean probability of what the policy draws in the token's place, the log of
            the sum of pi^2 over the vocabulary, in nats, without gradient; None: the objective does not read
            it (WPO's aligned weights do).
    """

    logp_BPT: Float[Array, "B P T"]
    ref_logp_BPT: Float[Array, "B P T"]
    kl_BPT: Float[Array, "B P T"]
    valid_BPT: Bool[Array, "B P T"]
    importance_BPT: Float[Array, "B P T"] | None = None
    baseline_BPT: Float[Array, "B P T"] | None = None
    desirable_BP: Bool[Array, "B P"] | None = None
    anchor: Float[Array, ""] | None = None
    expected_BPT: Float[Array, "B P T"] | None = None


class TokenMasks(NamedTuple):
    """Weights of each token's log-ratio and KL: any real numbers, zero outside the response.

    They are ones where no mask is asked for.
    """

    reward_BPT: Float[Array, "B P T"]
    kl_BPT: Float[Array, "B P T"]


class LossOutput(NamedTuple):
    """One loss per pair. The caller averages, weighted by pair, over all micro-batches and hosts."""

    loss_B: Float[Array, "B"]
    metrics: dict[str, Float[Array, "B"]]
