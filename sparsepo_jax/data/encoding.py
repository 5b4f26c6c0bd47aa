"""Texts to token ids, with the characters that each token stands for.

Some tokenizers have special tokens that swallow the white space beside them (lstrip and rstrip in
tokenizer.json; Phi-3's). These stand for their own characters alone, so that a header keeps to the prompt
whatever the answer begins with.

    <|assistant|>\\n  Hello                      tokens       <|assistant|>    Hello
                                                characters   0 to 13          16 to 21
"""

from typing import Any

from sparsepo_jax.data.rows import BadRow, one_line

Encoded = tuple[list[int], list[tuple[int, int]]] | BadRow
"""(token ids, first and last + 1 character of each) of a text, or why it cannot be encoded."""


def encode(texts: list[str], tokenizer: Any) -> list[Encoded]:
    """Every text encoded, without special tokens that the tokenizer would add.

    Args:
        texts: of any number.
        tokenizer: a fast one of Hugging Face.
    """
    if not texts:
        return []
    try:
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
    except Exception as error:  # some text holds what this tokenizer does not know: find out which one
        if len(texts) == 1:
            why = _of_unknown_word(texts[0], tokenizer) or one_line(error)
            return [BadRow(f"the tokenizer cannot encode it ({why})")]
        return [encode([text], tokenizer)[0] for text in texts]
    greedy = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.lstrip or token.rstrip
    }
    parts = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    if not greedy:
        return [(ids, ranges) for _, ids, ranges in parts]
    return [(ids, _own_ranges(text, ids, ranges, greedy)) for text, ids, ranges in parts]


def _of_unknown_word(text: str, tokenizer: Any) -> str | None:
    """Why a tokenizer of whole words cannot encode a text, and what to do; None: it is not for that."""
    from tokenizers import models

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.WordLevel) or backend.pre_tokenizer is None:
        return None
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    unknown = next((word for word in words if backend.token_to_id(word) is None), None)
    return unknown and (
        f"it has whole words alone, and {unknown!r:.60} is none of them; that of the built-in reviews is for "
        "them alone: for other text set tokenizer.kind=bpe, or a policy.path with a tokenizer of its own"
    )


def _own_ranges(
    text: str, ids: list[int], ranges: list[tuple[int, int]], greedy: dict[int, str]
) -> list[tuple[int, int]]:
    """The characters of each token, without the white space that one of `greedy` (id: text) has swallowed."""
    own = []
    for number, (start, end) in zip(ids, ranges, strict=True):
        content = greedy.get(number)
        first = -1 if content is None else text.find(content, start, end)
        own.append((start, end) if content is None or first < 0 else (first, first + len(content)))
    return own
