"""From rows of a table to a batch: pairs laid one after the other into rows of tokens, without gaps (core/types.py shows one)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsepo_jax.core.types import Packing, PairBatch
from sparsepo_jax.data.table import TokenTable

FILLER = -1  # in place of a row's number


class Shape(NamedTuple):
    """Of a batch's rows: positions, response tokens, and positions of the longest sequence."""

    positions: int
    tokens: int
    longest: int

    def holds(self, other: "Shape") -> bool:
        return all(ours >= theirs for ours, theirs in zip(self, other))


class Sizes(NamedTuple):
    """What each row of a table takes up. shared: the prompt runs once for all responses of a row; else once for each of them."""

    positions_N: np.ndarray
    tokens_N: np.ndarray
    longest_N: np.ndarray


def sizes_of(prompt_lengths_N: np.ndarray, response_lengths_NP: np.ndarray, *, shared: bool) -> Sizes:
    run_NP = response_lengths_NP - 1  # the last token of a response is not run
    alone_NP = prompt_lengths_N[:, None] + run_NP
    positions_N = prompt_lengths_N + run_NP.sum(axis=1) if shared else alone_NP.sum(axis=1)
    return Sizes(
        positions_N, response_lengths_NP.sum(axis=1), positions_N if shared else alone_NP.max(axis=1)
    )


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
    """The numbered rows of a table (FILLER: none) as a batch of `rows` rows of tokens, each with the same number of pairs, in order.

    response_length: T, at least the longest response. with_weights: fill weights_BPT from the table. ValueError: more than the shape holds.
    """
    B, P, T = len(numbers), table.responses_per_row, response_length
    R, (S, M, W) = rows, shape
    parts, per_row = 1 if shared else P, B // rows
    ids_RS, positions_RS, part_RS = (np.zeros((R, S), np.int32) for _ in range(3))
    sequence_RS = np.full((R, S), -1, np.int32)
    column_RQW = np.full((R, per_row * parts, W), S, np.int32)
    at_RM, label_RM, valid_RM = np.zeros((R, M), np.int32), np.zeros((R, M), np.int32), np.zeros((R, M), bool)
    slot_BPT, valid_BPT = np.zeros((B, P, T), np.int32), np.zeros((B, P, T), bool)
    weights_BPT = np.zeros((B, P, T), np.float32) if with_weights else None
    ref_logp_BPT = None if table.all_ref_logp is None else np.zeros((B, P, T), np.float32)
    row_B, weight_B = np.zeros(B, np.int32), np.zeros(B, np.float32)
    for r in range(R):
        column = slot = 0

        def lay(ids: np.ndarray, sequence: int, part: int, first_position: int) -> None:
            nonlocal column
            here = slice(column, column + len(ids))
            if here.stop > S:
                raise ValueError(f"row {r} takes more than {S} positions")
            ids_RS[r, here], sequence_RS[r, here], part_RS[r, here] = ids, sequence, part
            positions_RS[r, here] = np.arange(first_position, first_position + len(ids))
            column = here.stop

        for b in range(r * per_row, (r + 1) * per_row):
            number = numbers[b]
            if number == FILLER:
                continue
            row_B[b], weight_B[b] = number, 1.0
            prompt = table.prompt(number)
            for p in range(P):
                sequence = (b - r * per_row) * parts + min(p, parts - 1)
                if p == 0 or not shared:
                    begin = column
                    lay(prompt, sequence, 0, 0)
                    last = column - 1
                response = table.response(number, p)
                n = len(response)
                at_RM[r, slot : slot + n] = [last, *range(column, column + n - 1)]
                label_RM[r, slot : slot + n], valid_RM[r, slot : slot + n] = response, True
                slot_BPT[b, p, :n], valid_BPT[b, p, :n] = np.arange(slot, slot + n), True
                lay(response[:-1], sequence, p + 1, len(prompt))
                slot += n
                if weights_BPT is not None:
                    weights_BPT[b, p, :n] = table.weights(number, p)
                if ref_logp_BPT is not None:
                    ref_logp_BPT[b, p, :n] = table.ref_logp(number, p)
                if p == P - 1 or not shared:
                    column_RQW[r, sequence, : column - begin] = np.arange(begin, column)
    packing = Packing(ids_RS, positions_RS, sequence_RS, part_RS, column_RQW, at_RM, label_RM, valid_RM)
    return PairBatch(packing, slot_BPT, valid_BPT, row_B, weight_B, weights_BPT, ref_logp_BPT)
