"""Rows as a person reads them: token by token, with marks for the seam, cuts, weights and decisive tokens."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.values import common_prefix

_LEGEND = (
    "tokens are set apart by │; … cut off here; *decisive*; {given weight}, where it is not 1; "
    "⟨of another turn: read and not trained on⟩"
)
_RESPONSES = ((), ("response",), ("chosen", "rejected"))  # by the number of responses
_WINDOW = 32  # tokens


def token_texts(ids: np.ndarray, tokenizer: Any | None) -> list[str]:
    """What each token adds to the text.

    A character that is split over several tokens shows as U+FFFD until the last of them.

        ids       of "né 🙂" in bytes           texts    n | � | é |   | � | � | � | 🙂

    Args:
        ids: token ids [T].
        tokenizer: that they are of. None: the texts are the ids.
    """
    if tokenizer is None:
        return [f"{int(x)} " for x in ids]
    texts: list[str] = []
    # In windows: decoding all that came before, for each token, would take quadratic time.
    while len(texts) < len(ids):
        first = _window_start(ids, len(texts), tokenizer)
        end = min(len(texts) + _WINDOW, len(ids))
        decoded = ["", *(tokenizer.decode(ids[first:stop]) for stop in range(first + 1, end + 1))]
        added = [now[len(common_prefix(before, now)) :] for before, now in itertools.pairwise(decoded)]
        texts += added[len(texts) - first :]
    return texts


def response_texts(
    table: TokenTable, i: int, p: int, tokenizer: Any | None
) -> tuple[list[str], list[list[str]]]:
    """What each token of a response adds to the text, and the same of the tokens of other turns before it.

    Args:
        table: that holds the row.
        i: number of the row.
        p: number of the response.
        tokenizer: that the ids are of. None: the texts are the ids.
    """
    ids, places = table.laid(i, p)
    texts = token_texts(ids, tokenizer)
    starts = [0, *(places[:-1] + 1)]
    before = [texts[start:place] for start, place in zip(starts, places, strict=True)]
    return [texts[place] for place in places], before


def _window_start(ids: np.ndarray, done: int, tokenizer: Any) -> int:
    """Where to begin decoding, a token or more before `done`.

    Some tokenizers drop the space before the first token of a text, and a character may go on over the
    border.
    """
    first = max(done - 1, 0)
    while first > max(done - 8, 0) and tokenizer.decode(ids[first : first + 1]).startswith("\ufffd"):
        first -= 1
    return first


def format_rows(table: TokenTable, tokenizer: Any | None, rows: Iterable[int]) -> str:
    """A few lines for each row.

        pairs.jsonl:1
          prompt      6 tokens  <|endoftext|>│review│ of│ train│…
          chosen     12 tokens   the│ film│ was│* superb*│ .│<|endoftext|>

    Args:
        table: that holds the rows.
        tokenizer: that its ids are of. None: ids are shown.
        rows: their numbers.
    """
    lines = [_LEGEND]
    for i in rows:
        lines.append(table.origin(i))
        prompt = _visible_texts(table.prompt(i), tokenizer)
        lines.append(_line("prompt", prompt, cut_start=bool(table.prompt_cut_N[i])))
        names = _RESPONSES[table.responses_per_row]
        if table.label_N is not None:
            names = ("desirable" if table.label_N[i] else "undesirable",)
        for p, name in enumerate(names):
            texts = _marked_response(table, i, p, tokenizer)
            lines.append(_line(name, texts, cut_end=bool(table.response_cut_NP[i, p])))
    return "\n".join(lines)


def _marked_response(table: TokenTable, i: int, p: int, tokenizer: Any | None) -> list[str]:
    own, before = response_texts(table, i, p, tokenizer)
    texts = [_visible(text) for text in own]
    if table.has_decisive:
        decisive = table.decisive(i, p)
        texts = [f"*{text}*" if marked else text for text, marked in zip(texts, decisive, strict=True)]
    if table.has_weights:
        texts = [
            text if weight == 1 else f"{text}{{{weight:.3g}}}"
            for text, weight in zip(texts, table.weights(i, p), strict=True)
        ]
    return [
        shown
        for others, text in zip(before, texts, strict=True)
        for shown in (*(f"⟨{_visible(other)}⟩" for other in others), text)
    ]


def _line(name: str, texts: list[str], *, cut_start: bool = False, cut_end: bool = False) -> str:
    start = "…│" if cut_start else ""
    end = "│…" if cut_end else ""
    return f"  {name:<9} {len(texts):>5} tokens  {start}{'│'.join(texts)}{end}"


def _visible_texts(ids: np.ndarray, tokenizer: Any | None) -> list[str]:
    return [_visible(text) for text in token_texts(ids, tokenizer)]


def _visible(text: str) -> str:
    """A token's text on one line, with signs for line ends and tabs."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return shown if shown.isprintable() else repr(shown)[1:-1]
