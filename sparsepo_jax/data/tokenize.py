"""From a row in its one form to token ids: begin and end of text, the seam between prompt and response, truncation, per-token annotations.

    prompt "A film", responses " is good" / " is"        tokens  A| film| is| good      and  A| film| is
    prompt    BOS A film                                 BOS once at the front, if the tokenizer has one
    chosen    is good EOS                                EOS once at the end
    rejected  is EOS

Prompt and response are tokenised together, as the model will meet them. The prompt's tokens are those that lie in the prompt and are the same
before both responses; a token that reaches over the seam belongs to the response.

    prompt "ab", responses "c" / "x", where "bc" is one token:     a|bc  and  a|b|x
    prompt    a          chosen  bc          rejected  b x

A prompt to be answered is read in the same way: where a token would reach from its last space into the response's first word, the space is left to
the response.

    prompt "A film "                                     tokens  A| film

What a chat template has written is tokenised as `apply_chat_template` does: nothing is added. Where it writes the end of the generation prompt
no more once the answer is there, that end is left out, as TRL does; the prompt's tokens are those that both texts begin with.

    generation prompt    <|assistant|><think>            chosen    <|assistant|>Hello<|end|>
    prompt    <|assistant|>          chosen  Hello <|end|>
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.formats import Annotation, Example
from sparsepo_jax.data.rows import BadRow, one_line


class TokenRow(NamedTuple):
    """One tokenised row; the per-token lists stand beside responses, None where the row has none."""

    prompt: list[int]
    responses: tuple[list[int], ...]
    prompt_key: int
    prompt_cut: bool
    responses_cut: tuple[bool, ...]
    prompt_length: int
    """Before it was cut."""
    response_length: int
    """Of the longest response, before it was cut."""
    weights: tuple[list[float] | None, ...]
    decisive: tuple[list[bool] | None, ...]
    chance: tuple[list[float] | None, ...]


@dataclass(frozen=True)
class Limits:
    """Tokens: the longest prompt (its end is kept, and BOS), the longest prompt + response (the response's start is kept)."""

    max_length: int
    max_prompt_length: int
    vocab_size: int | None


def tokenize(
    examples: list[Example],
    tokenizer: Any | None,
    limits: Limits,
    *,
    separator: str,
    add_bos: bool | None,
    add_eos: bool,
) -> list[TokenRow | BadRow]:
    """Rows in order. add_bos None: if the tokenizer has one. UserError: text without a tokenizer, or a tokenizer without the token asked for."""
    texts = [
        _prompt_text(example, separator) + rest
        for example in examples
        if example.is_text
        for rest in _read_with(example, separator)
    ]
    ours = any(example.is_text and not example.has_ends for example in examples)
    if texts and tokenizer is None:
        raise UserError(
            "the data is text, but there is no tokenizer: set tokenizer.kind, or give token ids (prompt_ids, chosen_ids, rejected_ids)"
        )
    bos, eos = (
        _special(tokenizer, name, wanted) if ours else None
        for name, wanted in (("bos", add_bos), ("eos", add_eos))
    )
    encoded = iter(_encode(texts, tokenizer))
    rows: list[TokenRow | BadRow] = []
    for example in examples:
        try:
            if example.is_text:
                added = (None, None) if example.has_ends else (bos, eos)
                parts = _from_text(
                    example, [next(encoded) for _ in _read_with(example, separator)], separator, *added
                )
            else:
                parts = _from_ids(example)
            _refuse_outside(*parts, limits.vocab_size, tokenizer)
            rows.append(_finish(example, *parts, tokenizer=tokenizer, limits=limits))
        except BadRow as fault:
            rows.append(fault)
    return rows


def _special(tokenizer: Any, name: str, wanted: bool | None) -> int | None:
    found = getattr(tokenizer, f"{name}_token_id")
    if wanted and found is None:
        raise UserError(
            f"data.add_{name}: the tokenizer has no {name.upper()} token; set data.add_{name}=false, or take a tokenizer that has one"
        )
    return None if wanted is False else found


def _prompt_text(example: Example, separator: str) -> str:
    return (
        (example.prompt or "") if example.templated or example.prompt is None else example.prompt + separator
    )


def _read_with(example: Example, separator: str) -> tuple[str, ...]:
    """What may follow the prompt, of which the prompt's tokens are independent: the responses, the unseen end of the generation prompt; for a prompt
    alone what may come, if it matters."""
    if not example.responses:
        return ("a" if _prompt_text(example, separator).endswith(" ") and not example.has_ends else "",)
    return (*example.responses, example.unseen) if example.unseen else example.responses


Encoded = tuple[list[int], list[tuple[int, int]]] | BadRow


def _encode(texts: list[str], tokenizer: Any) -> list[Encoded]:
    """(ids, character range of each) of every text, without special tokens of the tokenizer's own."""
    if not texts:
        return []
    settings = dict(
        add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    try:
        found = tokenizer(texts, **settings)
    except Exception as error:  # some text holds what this tokenizer does not know: find out which
        if len(texts) == 1:
            return [BadRow(f"the tokenizer cannot encode it ({one_line(error)})")]
        return [one for text in texts for one in _encode([text], tokenizer)]
    return list(zip(found["input_ids"], found["offset_mapping"]))


class _Response(NamedTuple):
    ids: list[int]
    ranges: list[tuple[int, int]] | None
    """Characters of the response text that each token covers, without an EOS of ours; None for rows of ids."""
    closed: bool
    """Whether an EOS of ours is the last token."""
    content_end: int | None = None
    """Characters of the response text up to what ends the turn; None: not to be told."""


def _from_text(
    example: Example, encoded: list[Encoded], separator: str, bos: int | None, eos: int | None
) -> tuple[list[int], list[_Response]]:
    for one in encoded:
        if isinstance(one, BadRow):
            raise one
    seam = len(_prompt_text(example, separator))
    num_prompt = min(sum(end <= seam for _, end in ranges) for _, ranges in encoded)
    first = encoded[0][0]
    while any(ids[:num_prompt] != first[:num_prompt] for ids, _ in encoded):
        num_prompt -= 1
    prompt = first[:num_prompt]
    if bos is not None and prompt[:1] != [bos]:  # a template may have written it
        prompt = [bos, *prompt]
    responses = []
    for p, (ids, ranges) in enumerate(encoded[: len(example.responses) or 1]):
        rest = ids[num_prompt:]
        if not prompt:
            if example.prompt is not None or len(rest) < 2:
                raise BadRow(
                    "the prompt has no token of its own and the tokenizer no BOS: the first response token would have nothing before it"
                )
            prompt, rest, ranges = rest[:1], rest[1:], ranges[1:]
        if not example.responses:
            break
        closed = eos is not None and rest[-1:] != [eos]
        covered = [(start - seam, end - seam) for start, end in ranges[len(ranges) - len(rest) :]]
        content_end = example.content_ends[p] if example.content_ends else None
        responses.append(_Response([*rest, eos] if closed else rest, covered, closed, content_end))
    return prompt, responses


def _from_ids(example: Example) -> tuple[list[int], list[_Response]]:
    return list(example.prompt), [_Response(list(ids), None, False) for ids in example.responses]


def _refuse_outside(
    prompt: list[int], responses: list[_Response], vocab_size: int | None, tokenizer: Any | None
) -> None:
    """BadRow that names a token for which the model has no row. A tokenizer may have more tokens than the model."""
    if vocab_size is None:
        return
    for ids in (prompt, *(response.ids for response in responses)):
        outside = next((i for i in ids if not 0 <= i < vocab_size), None)
        if outside is not None:
            token = None if tokenizer is None or outside < 0 else tokenizer.convert_ids_to_tokens(outside)
            name = "" if token is None else f" ({token!r})"
            raise BadRow(f"token id {outside}{name} is outside the model's vocabulary of {vocab_size}")


def _finish(
    example: Example, prompt: list[int], responses: list[_Response], *, tokenizer: Any | None, limits: Limits
) -> TokenRow:
    """Checks, annotations, truncation."""
    bos, eos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos"))
    per_token = [
        _per_token(annotation, response, eos) for annotation, response in zip(example.annotations, responses)
    ]
    prompt_length = len(prompt)
    prompt_cut = prompt_length > limits.max_prompt_length
    if prompt_cut:
        keep_bos = example.is_text and bos is not None and prompt[0] == bos
        prompt = (
            [bos, *prompt[len(prompt) - limits.max_prompt_length + 1 :]]
            if keep_bos
            else prompt[-limits.max_prompt_length :]
        )
    room = limits.max_length - len(prompt)
    kept = tuple(response.ids[:room] for response in responses)
    if len(kept) == 2 and kept[0] == kept[1]:
        whole = responses[0].ids == responses[1].ids
        raise BadRow(
            "chosen and rejected are the same"
            + ("" if whole else f" within the first {room} tokens, all that data.max_length leaves them")
        )
    columns = (
        [tuple(None if values is None else values[:room] for values in column) for column in zip(*per_token)]
        if per_token
        else [()] * 3
    )
    cut = tuple(len(response.ids) > room for response in responses)
    response_length = max((len(response.ids) for response in responses), default=0)
    return TokenRow(prompt, kept, _key(example), prompt_cut, cut, prompt_length, response_length, *columns)


def _key(example: Example) -> int:
    """A hash of the prompt as it came, cut or not; of the text where there is no prompt."""
    content = example.responses[0] if example.prompt is None else example.prompt
    content = content if example.key is None else example.key
    return int.from_bytes(hashlib.sha256(repr(content).encode()).digest()[:8], "big")


def _per_token(
    annotation: Annotation, response: _Response, eos: int | None
) -> tuple[list[float] | None, list[bool] | None, list[float] | None]:
    """(weights, decisive, chance) of each token. A token has what any span that it overlaps has, of several the largest."""
    weights = annotation.weights
    if weights is not None and not (weights and isinstance(weights[0], list)):
        weights = _with_end(weights, response, eos)
    else:
        weights = _from_spans(weights, response, 1.0)
    decisive = (
        None
        if annotation.decisive is None
        else _from_spans([[*span, 1.0] for span in annotation.decisive], response, 0.0)
    )
    return weights, decisive and [bool(x) for x in decisive], _from_spans(annotation.chance, response, 0.0)


def _with_end(weights: list[float], response: _Response, eos: int | None) -> list[float]:
    """Weights of all tokens; 1 on those of the turn's end, which published data often lacks, whoever wrote them."""
    ending = _tokens_of_end(response, eos)
    bare = len(response.ids) - ending
    if not bare <= len(weights) <= len(response.ids):
        end = "the EOS that is added" if response.closed else f"the {ending} that end the turn"
        raise BadRow(
            f"{len(weights)} weights for a response of {bare} tokens"
            + (f" (without {end})" if ending else "")
        )
    return [float(weight) for weight in weights] + [1.0] * (len(response.ids) - len(weights))


def _tokens_of_end(response: _Response, eos: int | None) -> int:
    """How many tokens at the end only end the turn: what the template writes behind the content, or an EOS."""
    if response.content_end is not None:
        return sum(start >= response.content_end for start, _ in response.ranges) + response.closed
    return int(response.closed or (eos is not None and response.ids[-1:] == [eos] and len(response.ids) > 1))


def _from_spans(spans: list | None, response: _Response, outside: float) -> list[float] | None:
    if spans is None:
        return None
    if response.ranges is None:
        raise BadRow("spans of characters need text, but the row has token ids: give a number a token")
    values = []
    for start, end in response.ranges:
        found = [value for first, last, value in spans if first < end and last > start]
        values.append(float(max(found, default=outside)))
    return values + [outside] * (len(response.ids) - len(values))
