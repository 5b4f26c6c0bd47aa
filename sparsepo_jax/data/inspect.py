"""Rows as a person reads them: token by token, with the seam, what was cut off, weights and decisive tokens marked."""

import itertools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparsepo_jax.data.table import TokenTable

_LEGEND = "tokens are set apart by │; … cut off here; *decisive*; {given weight}, where it is not 1"
_WINDOW = 32  # tokens


def token_texts(ids: np.ndarray, tokenizer: Any | None) -> list[str]:
    """What each token adds to the text; a character split over tokens shows as U+FFFD until its last one. Without a tokenizer, the ids."""
    if tokenizer is None:
        return [f"{int(x)} " for x in ids]
    texts: list[str] = []
    while len(texts) < len(
        ids
    ):  # in windows: to decode all that came before, for each token, would take the square of the length
        first = _window_start(ids, len(texts), tokenizer)
        decoded = [
            "",
            *(
                tokenizer.decode(ids[first:end])
                for end in range(first + 1, min(len(texts) + _WINDOW, len(ids)) + 1)
            ),
        ]
        added = [
            now[len(os.path.commonprefix([before, now])) :] for before, now in itertools.pairwise(decoded)
        ]
        texts += added[len(texts) - first :]
    return texts


def _window_start(ids: np.ndarray, done: int, tokenizer: Any) -> int:
    """A token or more before `done`: some tokenizers drop the space before the first token of a text, and a character may be in the middle."""
    first = max(done - 1, 0)
    while first > max(done - 8, 0) and tokenizer.decode(ids[first : first + 1]).startswith("\ufffd"):
        first -= 1
    return first


def format_rows(table: TokenTable, tokenizer: Any | None, rows: Iterable[int]) -> str:
    """A few lines for each row:

    pairs.jsonl:1
      prompt      6 tokens  <|endoftext|>│review│ of│ train│…
      chosen     12 tokens   the│ film│ was│* superb*│ .│<|endoftext|>
    """
    names = ((), ("response",), ("chosen", "rejected"))[table.responses_per_row]
    lines = [_LEGEND]
    for i in rows:
        lines.append(table.origin(i))
        prompt = [_visible(text) for text in token_texts(table.prompt(i), tokenizer)]
        lines.append(_line("prompt", prompt, cut_start=bool(table.prompt_cut_N[i])))
        for p, name in enumerate(names):
            texts = [_visible(text) for text in token_texts(table.response(i, p), tokenizer)]
            if table.has_decisive:
                texts = [
                    f"*{text}*" if decisive else text for text, decisive in zip(texts, table.decisive(i, p))
                ]
            if table.has_weights:
                texts = [
                    text if weight == 1 else f"{text}{{{weight:.3g}}}"
                    for text, weight in zip(texts, table.weights(i, p))
                ]
            lines.append(_line(name, texts, cut_end=bool(table.response_cut_NP[i, p])))
    return "\n".join(lines)


def _line(name: str, texts: list[str], *, cut_start: bool = False, cut_end: bool = False) -> str:
    return f"  {name:<9} {len(texts):>5} tokens  {'…│' if cut_start else ''}{'│'.join(texts)}{'│…' if cut_end else ''}"


def _visible(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return shown if shown.isprintable() else repr(shown)[1:-1]
