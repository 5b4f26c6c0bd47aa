"""Scores as JSON: one record a pair, as `scores.jsonl` and the report's `pairs.jsonl` hold them."""

from typing import Any

import numpy as np

from sparsepo_jax.data.inspect import response_texts, token_texts
from sparsepo_jax.eval.scores import PairScore


def _numbers(values: np.ndarray) -> list[float]:
    # float() of a float32 prints up to 17 digits, all that there are.
    return [float(x) for x in values]


def _before(table: Any, row: int, p: int) -> list[list[Any]]:
    """[[token of the response, [ids of other turns before it]], ...]."""
    ids, places = table.laid(row, p)
    starts = [0, *(places[:-1] + 1)]
    spans = enumerate(zip(starts, places, strict=True))
    return [[n, [int(x) for x in ids[start:place]]] for n, (start, place) in spans if start < place]


def pair_record(score: PairScore, table: Any, tokenizer: Any | None, *, with_text: bool) -> dict[str, Any]:
    """The record of a scored pair.

    It has index, origin (file:line), pair_weight where the data has some, loss (L1 included), margin (the
    sigmoid's argument, beta included) and prompt_ids, and in "chosen" and "rejected" lists over the
    response's tokens; `decisive` is null where that is not known, and `before_ids` says which tokens of other
    turns stand before which of the response's, if any do. A row of one response has "chosen" alone if it is
    desirable, else "rejected" alone.

    Args:
        score: of the pair.
        table: holds the pair.
        tokenizer: makes text of tokens; None: there is none.
        with_text: adds what a reader needs: prompt_tokens, tokens and, where turns of others stand between a
            response's tokens, their texts as `before`.
    """
    record: dict[str, Any] = {
        "index": score.row,
        "origin": table.origin(score.row),
        "loss": score.metrics["loss"],
        "margin": score.metrics["margin"],
        "prompt_ids": [int(x) for x in table.prompt(score.row)],
    }
    if table.pair_weight_N is not None:
        record["pair_weight"] = float(table.pair_weight_N[score.row])
    if with_text:
        record["prompt_tokens"] = token_texts(table.prompt(score.row), tokenizer)
    names = ("chosen", "rejected")
    if table.label_N is not None:  # one response, under the name of its class
        names = names[:1] if table.label_N[score.row] else names[1:]
    for p, name in enumerate(names):
        ids = table.response(score.row, p)
        columns = score.responses[p]._asdict()
        record[name] = {"token_ids": [int(x) for x in ids]}
        record[name] |= {field: _numbers(values) for field, values in columns.items()}
        decisive = [bool(x) for x in table.decisive(score.row, p)] if table.has_decisive else None
        record[name]["decisive"] = decisive
        if before_ids := _before(table, score.row, p):
            record[name]["before_ids"] = before_ids
        if with_text:
            texts, before = response_texts(table, score.row, p, tokenizer)
            record[name]["tokens"] = texts
            if any(before):
                record[name]["before"] = ["".join(others) for others in before]
    return record
