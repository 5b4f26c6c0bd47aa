"""Scores as JSON: one record a pair, as `scores.jsonl` and the report's `pairs.jsonl` hold them."""

import itertools
import os
from typing import Any

import numpy as np

from sparsepo_jax.eval.scores import PairScore


def _numbers(values: np.ndarray) -> list[float]:
    # float() of a float32 prints up to 17 digits, all that there are.
    return [float(x) for x in values]


def pair_record(score: PairScore, table: Any, tokenizer: Any | None, *, with_text: bool) -> dict[str, Any]:
    """index, loss (L1 included), margin (the sigmoid's argument, beta included), and of chosen and rejected the lists over response tokens.

    with_text adds what a reader needs: origin, prompt_tokens, tokens and decisive (null where unknown).
    """
    record: dict[str, Any] = {"index": score.row, "loss": score.metrics["loss"], "margin": score.metrics["margin"]}
    if with_text:
        record |= {"origin": table.origin(score.row), "prompt_tokens": _pieces(table.prompt(score.row), tokenizer)}
    for p, name in enumerate(("chosen", "rejected")):
        ids, response = table.response(score.row, p), score.responses[p]
        record[name] = {"token_ids": [int(x) for x in ids]} | {field: _numbers(getattr(response, field)) for field in response._fields}
        if with_text:
            decisive = [bool(x) for x in table.decisive(score.row, p)] if table.has_decisive else None
            record[name] |= {"tokens": _pieces(ids, tokenizer), "decisive": decisive}
    return record


def _pieces(ids: np.ndarray, tokenizer: Any | None) -> list[str]:
    """What each token adds to the text; a character split over tokens shows as U+FFFD until its last one."""
    if tokenizer is None:
        return [f"{int(x)} " for x in ids]
    texts = ["", *(tokenizer.decode(ids[: n + 1]) for n in range(len(ids)))]
    return [now[len(os.path.commonprefix([before, now])) :] for before, now in itertools.pairwise(texts)]
