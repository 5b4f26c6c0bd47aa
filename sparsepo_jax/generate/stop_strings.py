"""Strings that end a response, and where the first one begins in its text and among its tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np

Text = Callable[[int, bool], str]
"""Text of the first so many tokens of a response, without special tokens or (True) with them."""


def text_of(decode: Callable[..., str], prompt: list[int], ids: list[int]) -> Text:
    """The text of a response's tokens behind its prompt's, for so many of them as one asks for."""

    def text(count: int, special: bool) -> str:
        begin = len(decode(prompt, skip_special_tokens=not special)) if prompt else 0
        return decode([*prompt, *ids[:count]], skip_special_tokens=not special)[begin:]

    return text


class StopStrings:
    """Strings that end a response.

    One that holds a special token (<|im_end|>) is looked for in the text with special tokens; any other one
    in the text without them, so that "|" does not end at <|im_end|>.
    """

    def __init__(self, stop: tuple[str, ...], tokenizer: Any):
        special = [
            token.content
            for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
            if token.special
        ]
        self._special = tuple(string for string in stop if any(token in string for token in special))
        self._plain = tuple(string for string in stop if string not in self._special)

    def within(self, text: Text, count: int) -> bool:
        """Whether one is in the text of the first `count` tokens."""
        return any(string in text(count, False) for string in self._plain) or any(
            string in text(count, True) for string in self._special
        )

    def place(self, text: Text, count: int) -> int | None:
        """Where the first one begins, in the text without special tokens; None if there is none."""
        plain = text(count, False)
        places = [plain.index(string) for string in self._plain if string in plain]
        if self._special:
            with_special = text(count, True)
            for string in self._special:
                if string in with_special:
                    places.append(self._without_special(text, count, with_special.index(string)))
        return min(places, default=None)

    def _without_special(self, text: Text, count: int, place: int) -> int:
        """Where a place of the text with special tokens is in the text without them.

        The end of the last token before it, and the characters that are left.
        """
        tokens = next(tokens for tokens in range(count, -1, -1) if len(text(tokens, True)) <= place)
        return len(text(tokens, False)) + place - len(text(tokens, True))


def stop_within(ids: np.ndarray, stop: StopStrings, tokenizer: Any) -> tuple[int, str] | None:
    """(tokens up to the one that completes the first stop string, the text before it), or None."""
    text = text_of(tokenizer.decode, [], ids.tolist())
    if not stop.within(text, len(ids)):
        return None
    count = next(count for count in range(1, len(ids) + 1) if stop.within(text, count))
    return count, text(count, False)[: stop.place(text, count)]
