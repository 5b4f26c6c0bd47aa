"""From rows of a table to a batch: pairs laid one after the other into rows of tokens, without gaps.

`core.types.Packing` shows an example.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsepo_jax.core.types import Packing, PairBatch
from sparsepo_jax.data.table import TokenTable

FILLER = -1  # in place of a row's number


class Shape(NamedTuple):
    """What a row of tokens of a batch has room for."""

    positions: int
    """Tokens that the model runs."""
    tokens: int
    """Response tokens, whose log-probs are computed."""
    longest: int
    """Positions of the longest sequence."""

    def holds(self, other: "Shape") -> bool:
        """Whether a row of this shape holds whatever a row of the other shape holds.

        Args:
            other: the other shape.
        """
        return all(room >= need for room, need in zip(self, other, strict=True))


class Sizes(NamedTuple):
    """What each row of a table takes up, in the terms of `Shape`, and how long it is."""

    positions_N: np.ndarray
    tokens_N: np.ndarray
    longest_N: np.ndarray
    length_N: np.ndarray
    """Positions if the prompt runs once: the same in both layouts, so that the same rows meet in a batch."""


def sizes_of(
    prompt_lengths_N: np.ndarray,
    response_lengths_NP: np.ndarray,
    *,
    shared: bool,
    laid_lengths_NP: np.ndarray | None = None,
) -> Sizes:
    """What each row of a table takes up.

    Args:
        prompt_lengths_N: tokens of each prompt.
        response_lengths_NP: tokens of each response.
        laid_lengths_NP: the same with the tokens that stand between them. None: there are no such tokens.
        shared: whether the prompt runs once for all responses of a row; else it runs once for each of them.
    """
    laid_NP = response_lengths_NP if laid_lengths_NP is None else laid_lengths_NP
    run_NP = laid_NP - 1  # the last token of a response is not run
    tokens_N = response_lengths_NP.sum(axis=1)
    length_N = prompt_lengths_N + run_NP.sum(axis=1)
    if shared:
        return Sizes(length_N, tokens_N, longest_N=length_N, length_N=length_N)
    alone_NP = prompt_lengths_N[:, None] + run_NP
    return Sizes(alone_NP.sum(axis=1), tokens_N, longest_N=alone_NP.max(axis=1), length_N=length_N)


def pack(
    table: TokenTable,
    numbers: Sequence[int] | np.ndarray,
    shape: Shape,
    response_length: int,
    *,
    rows: int,
    shared: bool,
    with_weights: bool = False,
) -> PairBatch:
    """Some rows of a table as a batch: rows of tokens that each hold the same number of pairs, in order.

    Args:
        table: where the pairs come from (or sft rows, which have one response).
        numbers: of the table's rows, B of them; FILLER for none.
        shape: of the rows of tokens.
        response_length: T, tokens; at least that of the longest response.
        rows: R, rows of tokens; divides B.
        shared: whether the prompt runs once for all responses of a pair.
        with_weights: whether weights_BPT is filled from the table.

    Returns:
        numpy arrays. ref_logp_BPT is there if the table has the reference's log-probs, and so are labels and
        mismatched responses.

    Raises:
        ValueError: a row of tokens takes more than the shape holds, or the table has no weights.
    """
    B, P, T = len(numbers), table.responses_per_row, response_length
    per_row = B // rows
    sequences_per_pair = 1 if shared else P
    batch = PairBatch(
        _empty_packing(rows, shape, sequences=per_row * sequences_per_pair),
        slot_BPT=np.zeros((B, P, T), np.int32),
        valid_BPT=np.zeros((B, P, T), bool),
        row_B=np.zeros(B, np.int32),
        weight_B=np.zeros(B, np.float32),
        weights_BPT=np.zeros((B, P, T), np.float32) if with_weights else None,
        ref_logp_BPT=None if table.all_ref_logp is None else np.zeros((B, P, T), np.float32),
        label_B=None if table.label_N is None else np.zeros(B, bool),
    )
    for r in range(rows):
        row = _RowOfTokens(batch.packing, r)
        for b in range(r * per_row, (r + 1) * per_row):
            if numbers[b] == FILLER:
                row.sequence += sequences_per_pair
            else:
                _lay_pair(table, int(numbers[b]), batch, b, row, shared)
    if table.mismatched is None:
        return batch
    others = pack(
        table.mismatched,
        numbers,
        shape,
        response_length,
        rows=rows,
        shared=shared,
        with_weights=with_weights,
    )
    return batch._replace(mismatched=others)


def _empty_packing(rows: int, shape: Shape, sequences: int) -> Packing:
    """Rows of tokens that are padding alone; sequences: of each row."""
    R, Q = rows, sequences
    S, M, W = shape
    return Packing(
        ids_RS=np.zeros((R, S), np.int32),
        positions_RS=np.zeros((R, S), np.int32),
        sequence_RS=np.full((R, S), -1, np.int32),
        part_RS=np.zeros((R, S), np.int32),
        column_RQW=np.full((R, Q, W), S, np.int32),
        at_RM=np.zeros((R, M), np.int32),
        label_RM=np.zeros((R, M), np.int32),
        own_RM=np.full((R, M), S, np.int32),
        valid_RM=np.zeros((R, M), bool),
    )


class _RowOfTokens:
    """A row of tokens that is being filled from the left."""

    def __init__(self, packing: Packing, r: int):
        self._packing = packing
        self._r = r
        self.column = 0  # the next free one
        self.slot = 0  # the next free one of response tokens
        self.sequence = 0  # the number of the one that is being laid

    def lay(self, ids: np.ndarray, part: int, first_position: int) -> None:
        """Lays tokens of the present sequence."""
        packing, r = self._packing, self._r
        here = slice(self.column, self.column + len(ids))
        if here.stop > packing.ids_RS.shape[1]:
            raise ValueError(f"row {r} takes more than {packing.ids_RS.shape[1]} positions")
        packing.ids_RS[r, here] = ids
        packing.sequence_RS[r, here] = self.sequence
        packing.part_RS[r, here] = part
        packing.positions_RS[r, here] = np.arange(first_position, first_position + len(ids))
        self.column = here.stop

    def predict(self, response: np.ndarray, places: np.ndarray, prompt_end: int) -> np.ndarray:
        """Notes where each token of the response that is laid next is predicted and stands; their slots.

        The prompt's last column predicts the first token laid, and each token predicts the one after it.
        places: of the response's tokens among those that are laid.
        """
        packing, r, n = self._packing, self._r, len(response)
        slots = slice(self.slot, self.slot + n)
        packing.at_RM[r, slots] = np.where(places == 0, prompt_end, self.column + places - 1)
        packing.label_RM[r, slots] = response
        # The last token is not run.
        packing.own_RM[r, slots][:-1] = self.column + places[:-1]
        packing.valid_RM[r, slots] = True
        self.slot = slots.stop
        return np.arange(slots.start, slots.stop)

    def end_sequence(self, first_column: int) -> None:
        """Notes the columns of the present sequence, from its first one on, and begins the next."""
        columns = np.arange(first_column, self.column)
        self._packing.column_RQW[self._r, self.sequence, : len(columns)] = columns
        self.sequence += 1


def _lay_pair(
    table: TokenTable, number: int, batch: PairBatch, b: int, row: _RowOfTokens, shared: bool
) -> None:
    """Lays row `number` of the table as pair b of the batch."""
    P = table.responses_per_row
    batch.row_B[b] = number
    if batch.label_B is not None:
        batch.label_B[b] = table.label_N[number]
    batch.weight_B[b] = 1.0 if table.pair_weight_N is None else table.pair_weight_N[number]
    prompt = table.prompt(number)
    for p in range(P):
        if p == 0 or not shared:
            first_column = row.column
            row.lay(prompt, 0, 0)
            prompt_end = row.column - 1
        response, (laid, places) = table.response(number, p), table.laid(number, p)
        n = len(response)
        batch.slot_BPT[b, p, :n] = row.predict(response, places, prompt_end)
        batch.valid_BPT[b, p, :n] = True
        row.lay(laid[:-1], p + 1, len(prompt))
        if batch.weights_BPT is not None:
            batch.weights_BPT[b, p, :n] = table.weights(number, p)
        if batch.ref_logp_BPT is not None:
            batch.ref_logp_BPT[b, p, :n] = table.ref_logp(number, p)
        if p == P - 1 or not shared:
            row.end_sequence(first_column)
