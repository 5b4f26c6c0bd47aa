"""Rows of one response with a label, and the mismatched responses by which KTO estimates its baseline.

    prompt, completion, label                   TRL's form: text or lists of messages; true is desirable
    messages, label                             the last turn of the assistant is the response
    conversations, label                        ShareGPT
    instruction, input, output, label           Alpaca
    prompt_ids, completion_ids, label           token ids

A pair, in any of its forms, becomes two rows: chosen with the label true, and rejected with false.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.example import RESPONSES, Example
from sparsepo_jax.data.formats import parse_apart, parse_row, without_absent
from sparsepo_jax.data.ragged import Ragged
from sparsepo_jax.data.ranked import answers_column
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.table import PER_TOKEN, TokenTable
from sparsepo_jax.data.templates import Render
from sparsepo_jax.data.turns import TrainOn
from sparsepo_jax.data.values import columns_of, elsewhere

_PAIRED = RESPONSES["pairs"]
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}  # cells of a CSV


def parse_unpaired(
    row: dict[str, Any], render: Render, eos: str | None, train_on: TrainOn = "last"
) -> list[Example]:
    """A row of one response, or a pair as two of them.

    Args:
        row: as it was read.
        render: writes messages as text.
        eos: text of EOS, see `parse_row`.
        train_on: which turns of messages are the response, see data.train_on.

    Raises:
        BadRow: says what is wrong.
    """
    if is_pair(row):
        examples = parse_apart(row, render, eos, train_on)
        halves = examples if len(examples) == 2 else _halves(*examples)
        return [dataclasses.replace(half, label=p == 0) for p, half in enumerate(halves)]
    label = _label(without_absent(row))
    example = parse_row(row, "sft", render, eos, train_on)
    if example.prompt is None or ("input_ids" in row and "prompt_ids" not in row):
        raise BadRow(f"no prompt; the row has: {columns_of(row)}; {elsewhere('prompt')}")
    return [dataclasses.replace(example, label=label)]


def are_pairs(rows: Iterable[dict[str, Any] | BadRow]) -> bool:
    """Whether rows are read as pairs: no row is a single response with a label, and some row is a pair.

    Ranked answers count as pairs; a row of which neither can be said counts for nothing.

    Args:
        rows: as they were read, all of a set. They are read as far as the first response with a label.

    Returns:
        True of no rows at all.
    """
    is_known, is_paired = False, False
    for row in rows:
        if not isinstance(row, dict):
            continue
        is_known = True
        if is_pair(row) or answers_column(row) is not None:
            is_paired = True
        elif row.get("label") is not None:
            return False
    return is_paired or not is_known


def is_pair(row: dict[str, Any]) -> bool:
    """Whether a row holds a chosen and a rejected response.

    Args:
        row: as it was read.
    """
    return all(row.get(name) is not None or row.get(f"{name}_ids") is not None for name in _PAIRED)


def _label(row: dict[str, Any]) -> bool:
    """Whether the response is desirable. BadRow: the row does not say."""
    if "label" not in row:
        has = columns_of(row)
        raise BadRow(
            f"expected a response with a label, or chosen and rejected; the row has: {has}; if another "
            "column says whether the response is desirable, set columns: {label: NAME} beside the path"
        )
    label = row["label"]
    known = _LABELS.get(str(label).strip().lower())
    if known is None or not isinstance(label, bool | int | float | str):
        raise BadRow(f"label: expected true or false (or 1 or 0), got {label!r:.40}")
    return known


def _halves(pair: Example) -> list[Example]:
    """Both responses of a pair by themselves."""

    def entry(values: tuple[Any, ...], p: int) -> tuple[Any, ...]:
        return values[p : p + 1]

    return [
        dataclasses.replace(
            pair,
            responses=entry(pair.responses, p),
            annotations=entry(pair.annotations, p),
            content_ends=entry(pair.content_ends, p),
            spans=entry(pair.spans, p),
            before=entry(pair.before, p),
        )
        for p in range(2)
    ]


def mismatched(
    table: TokenTable, name: str, max_length: int, lenders: TokenTable | None = None
) -> TokenTable:
    """The rows with responses to another prompt: that of the next rows whose prompt is another.

    After the last row comes the first. Of rows that share a prompt the first has the first row of the next
    prompt, the second its second and so on, from the beginning again where it has fewer: pairs read as two
    rows give chosen and rejected responses alike. The partner depends on the rows alone, so that neither
    batches nor devices change a baseline that is estimated with it.

        row           a1   a2   b1   b2   c1
        response of   b1   b2   c1   c1   a1

    Where all rows have one prompt, their partners are those of `lenders` that have another, in order.

    Args:
        table: any rows with responses.
        name: of the setting that holds them, for messages.
        max_length: tokens of prompt and response; a response that is too long loses its end.
        lenders: rows of one response, to borrow from. None: there are no others.

    Raises:
        UserError: there is no row with another prompt, or a response has no token of its own within
            max_length.
    """
    N, P = len(table), table.responses_per_row
    if has_one_prompt(table):
        others = _borrowed(table, name, lenders)
    else:
        others = table.take(_partners(table.prompt_key_N))
    room_NP = (max_length - table.prompt_lengths_N)[:, None].repeat(P, axis=1)
    kept_NP, fits = np.zeros((N, P), np.int64), others.laid_lengths_NP <= room_NP
    kept_NP[fits] = others.response_lengths_NP[fits]
    for i, p in np.argwhere(~fits):
        kept_NP[i, p] = np.count_nonzero(others.laid(i, p)[1] < room_NP[i, p])
    if (kept_NP == 0).any():
        worst = table.origin(int(np.argwhere(kept_NP == 0)[0, 0]))
        raise UserError(
            f"{worst}: no token of another row's response fits behind this prompt within {max_length} "
            "tokens, and KTO's baseline needs some: raise data.max_length, or lower data.max_prompt_length"
        )
    return dataclasses.replace(
        _cut(others, kept_NP),
        prompts=table.prompts,
        **{column: getattr(table, column) for column in _OF_ROWS},
    )


def has_one_prompt(table: TokenTable) -> bool:
    """Whether all rows have the same prompt, so that none has a response to another.

    Args:
        table: one row or more.
    """
    return bool((table.prompt_key_N == table.prompt_key_N[0]).all())


def _borrowed(table: TokenTable, name: str, lenders: TokenTable | None) -> TokenTable:
    """Rows of one prompt with the responses of other rows, in order, from the beginning again at the end."""
    N, P = len(table), table.responses_per_row
    others = np.zeros(0, np.int64)
    if lenders is not None:
        others = np.flatnonzero(lenders.prompt_key_N != table.prompt_key_N[0])
    if lenders is None or not len(others):
        rows = f"all {N} rows have the same prompt" if N > 1 else "there is one row alone"
        where = "" if lenders is None else " and data.train has no other"
        raise UserError(
            f"{name}: {rows}{where}, and KTO's baseline needs responses to other prompts: add rows with "
            "another prompt, or take objective.kind=bco or apo_zero_unpaired"
        )
    lent = lenders.take(others[np.arange(N * P) % len(others)])
    return dataclasses.replace(
        table,
        responses=lent.responses,
        response_cut_NP=lent.response_cut_NP.reshape(N, P),
        between=lent.between,
        **{column: getattr(lent, column) for column in PER_TOKEN},
    )


# What mismatched rows have of the row itself: how much it counts, too, whatever its partner counts.
_OF_ROWS = ("prompt_key_N", "prompt_cut_N", "label_N", "pair_weight_N")


def _partners(key_N: np.ndarray) -> np.ndarray:
    """Of each row the one whose response it is matched with, see `mismatched`; there are two prompts."""
    first_R = np.concatenate([[0], np.flatnonzero(key_N[1:] != key_N[:-1]) + 1])  # of each run of one prompt
    length_R = np.diff(first_R, append=len(key_N))
    next_R = np.roll(np.arange(len(first_R)), -1)
    if key_N[0] == key_N[-1]:
        next_R[-1] = 1
    run_N = np.repeat(np.arange(len(first_R)), length_R)
    place_N = np.arange(len(key_N)) - first_R[run_N]
    other_N = next_R[run_N]
    return first_R[other_N] + place_N % length_R[other_N]


def _cut(table: TokenTable, kept_NP: np.ndarray) -> TokenTable:
    """The rows with the first tokens of each response alone."""
    responses, kept = table.responses, kept_NP.ravel()
    if (kept == responses.lengths).all():
        return table
    stays = np.arange(len(responses.flat)) < np.repeat(responses.starts[:-1] + kept, responses.lengths)
    starts = np.concatenate([[0], np.cumsum(kept)])
    columns = {name: getattr(table, name) for name in PER_TOKEN}
    between = table.between
    if between is not None:
        in_front = np.repeat(stays, table.all_before)
        ends = np.concatenate([[0], np.cumsum(in_front)])[between.starts]
        between = Ragged(between.flat[in_front], ends)
    return dataclasses.replace(
        table,
        responses=Ragged(responses.flat[stays], starts),
        between=between,
        **{name: None if values is None else values[stays] for name, values in columns.items()},
    )


def label_remarks(table: TokenTable, split_pairs: int) -> list[str]:
    """What a user should know of rows with labels.

    Args:
        table: the rows.
        split_pairs: how many pairs became two rows.
    """
    if table.label_N is None:
        return []
    desirable = int(table.label_N.sum())
    lines = [f"{desirable} desirable and {len(table) - desirable} undesirable responses"]
    if split_pairs:
        lines[0] += f"; {split_pairs} pairs are read as two rows each"
    return lines
