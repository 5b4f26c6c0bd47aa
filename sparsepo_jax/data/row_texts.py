"""Every text of a row, for a tokenizer to learn from."""

from typing import Any

from sparsepo_jax.data.formats import DIALOGUES
from sparsepo_jax.data.messages import list_in_text
from sparsepo_jax.data.ranked import answer_texts
from sparsepo_jax.data.values import check_text

_OTHER_TEXTS = ("text", "system", "instruction", "input", "output")


def row_texts(row: dict[str, Any]) -> list[str]:
    """Every text of a row that tokenisation may meet, for a tokenizer to learn from.

    Args:
        row: as it was read.

    Raises:
        BadRow: a text is no valid Unicode.
    """
    texts = []
    for name in (*DIALOGUES, *_OTHER_TEXTS):
        value = list_in_text(row.get(name))
        for turn in value if isinstance(value, list) else [value]:
            texts += [check_text(text, name) for text in _texts_of_turn(turn) if text]
    for answer in answer_texts(row):
        for turn in answer if isinstance(answer, list) else [answer]:
            texts += [check_text(text, "an answer") for text in _texts_of_turn(turn) if text]
    return texts


def _texts_of_turn(turn: Any) -> list[str]:
    """The texts of a message, of the parts of a message, or of what is text itself."""
    content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
    parts = [content]
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
    return [part for part in parts if isinstance(part, str)]
