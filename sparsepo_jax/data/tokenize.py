"""From a row in its one form to token ids: begin and end of text, the seam after the prompt, truncation.

    prompt "A film", responses " is good" / " is"        tokens  A| film| is| good      and  A| film| is
    prompt    BOS A film                                 BOS once at the front, if the tokenizer has one
    chosen    is good EOS                                EOS once at the end
    rejected  is EOS

Prompt and response are tokenised together, as the model will meet them. The prompt's tokens are those that
lie in the prompt and are the same before both responses; a token that reaches over the seam belongs to the
response.

    prompt "ab", responses "c" / "x", where "bc" is one token:     a|bc  and  a|b|x
    prompt    a          chosen  bc          rejected  b x

A prompt to be answered is read in the same way: where a token would reach from its last space into the
response's first word, the space is left to the response.

    prompt "A film "                                     tokens  A| film

What a chat template has written is tokenised as `apply_chat_template` does: nothing is added. Some templates
drop the end of the generation prompt once the answer is there. That end is then left out, as TRL does; the
prompt's tokens are those that both texts begin with.

    generation prompt    <|assistant|><think>            chosen    <|assistant|>Hello<|end|>
    prompt    <|assistant|>          chosen  Hello <|end|>
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.annotations import ResponseTokens, per_token
from sparsepo_jax.data.encoding import Encoded, encode
from sparsepo_jax.data.example import Example
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.tokenizers import vocabulary_digest
from sparsepo_jax.data.turns import Spans


class TokenRow(NamedTuple):
    """One tokenised row."""

    prompt: list[int]
    responses: tuple[list[int], ...]
    prompt_key: int
    """A hash of the prompt before tokenisation and truncation."""
    prompt_cut: bool
    """Whether the prompt's beginning was cut off."""
    responses_cut: tuple[bool, ...]
    """Whether the end of each response was cut off."""
    prompt_length: int
    """Tokens before the cut."""
    response_length: int
    """Tokens of the longest response, before the cut."""
    weights: tuple[list[float] | None, ...]
    """One list a response, as long as it; None where the row says nothing. So are the next two."""
    decisive: tuple[list[bool] | None, ...]
    chance: tuple[list[float] | None, ...]
    before: tuple[list[list[int]] | None, ...] = ()
    """Of each response: the tokens of other turns directly before each of its own. None: there are none."""
    pair_weight: float | None = None
    """How much the row counts in the loss. None: the row does not say."""
    label: bool | None = None
    """Whether the row's one response is desirable. None: a pair, or a row without a label."""


@dataclass(frozen=True)
class LengthLimits:
    """What a row may be at the most."""

    max_length: int
    """Tokens of prompt + response; the response's start is kept."""
    max_prompt_length: int
    """Tokens; the prompt's end is kept, and BOS."""
    vocab_size: int | None
    """Of the model; ids at or above it are refused. None: not known."""
    image_tokens: tuple[int, ...] = ()
    """Ids that stand for a part of an image or of sound to the model; they are refused."""


def tokenize(
    examples: list[Example],
    tokenizer: Any | None,
    limits: LengthLimits,
    *,
    separator: str,
    add_bos: bool | None,
    add_eos: bool,
) -> list[TokenRow | BadRow]:
    """Rows in the order of the examples; a BadRow in the place of one that cannot be tokenised.

    Args:
        examples: rows in their one form.
        tokenizer: a fast one of Hugging Face. None: the rows are token ids.
        limits: what a row may be at the most.
        separator: put between prompt and response; it counts as prompt.
        add_bos: whether texts get a BOS at the front. None: if the tokenizer has one.
        add_eos: whether texts get an EOS at the end.

    Raises:
        UserError: there is text but no tokenizer, or a tokenizer without the token asked for.
    """
    texts = [
        _prompt_text(example, separator) + continuation
        for example in examples
        if example.is_text
        for continuation in _continuations(example, separator)
    ]
    if texts and tokenizer is None:
        raise UserError(
            "the data is text, but there is no tokenizer: set tokenizer.kind, "
            "or give token ids (prompt_ids, chosen_ids, rejected_ids; completion_ids with a label)"
        )
    bos, eos = None, None
    if any(example.is_text and not example.has_ends for example in examples):
        bos = _special(tokenizer, "bos", add_bos)
        eos = _special(tokenizer, "eos", add_eos)
    encoded = iter(encode(texts, tokenizer))
    marked = any(example.ids_vocabulary is not None for example in examples)
    vocabulary = vocabulary_digest(tokenizer) if marked else None
    rows: list[TokenRow | BadRow] = []
    for example in examples:
        try:
            if example.is_text:
                parts = [next(encoded) for _ in _continuations(example, separator)]
                ends = (None, None) if example.has_ends else (bos, eos)
                prompt, responses = _from_text(example, parts, separator, *ends)
            else:
                prompt, responses = _from_ids(example, vocabulary)
            _refuse_outside(prompt, responses, limits.vocab_size, tokenizer)
            _refuse_image_tokens(prompt, responses, limits.image_tokens, tokenizer)
            rows.append(_finish(example, prompt, responses, tokenizer, limits))
        except BadRow as fault:
            rows.append(fault)
    return rows


def _special(tokenizer: Any, name: str, wanted: bool | None) -> int | None:
    """The id of BOS or EOS; None if it is not to be added. wanted None: it is, if the tokenizer has one."""
    token = getattr(tokenizer, f"{name}_token_id")
    if wanted and token is None:
        raise UserError(
            f"data.add_{name}: the tokenizer has no {name.upper()} token; "
            f"set data.add_{name}=false, or take a tokenizer that has one"
        )
    return None if wanted is False else token


def _prompt_text(example: Example, separator: str) -> str:
    if example.prompt is None:
        return ""
    return example.prompt if example.templated else example.prompt + separator


def _continuations(example: Example, separator: str) -> tuple[str, ...]:
    """The texts that may follow the prompt: its tokens must be the same before all of them.

    These are the responses and the unseen end of the generation prompt. For a prompt alone it is a word, if
    that could make a difference: a word that follows a space.
    """
    if example.responses:
        return (*example.responses, example.unseen) if example.unseen else example.responses
    ends_in_space = _prompt_text(example, separator).endswith(" ") and not example.has_ends
    return ("a",) if ends_in_space else ("",)


def _from_text(
    example: Example, encoded: list[Encoded], separator: str, bos: int | None, eos: int | None
) -> tuple[list[int], list[ResponseTokens]]:
    """(prompt, responses) of a row of text; bos and eos None: none is added."""
    for part in encoded:
        if isinstance(part, BadRow):
            raise part
    seam = len(_prompt_text(example, separator))
    num_prompt = _count_prompt_tokens(encoded, seam)
    prompt = encoded[0][0][:num_prompt]
    if bos is not None and prompt[:1] != [bos]:  # a template may have written it
        prompt = [bos, *prompt]
    responses = []
    for p, (ids, ranges) in enumerate(encoded[: len(example.responses) or 1]):
        rest = ids[num_prompt:]
        if not prompt:
            if example.prompt is not None or len(rest) < 2:
                raise BadRow(
                    "the prompt has no token of its own and the tokenizer no BOS: "
                    "the first response token would have nothing before it"
                )
            prompt, rest, ranges = rest[:1], rest[1:], ranges[1:]
        if not example.responses:
            break
        covered = [(start - seam, end - seam) for start, end in ranges[len(ranges) - len(rest) :]]
        closed = eos is not None and not _ends_in(eos, rest, covered, example.responses[p])
        content_end = example.content_ends[p] if example.content_ends else None
        response = ResponseTokens([*rest, eos] if closed else rest, covered, closed, content_end)
        spans = example.spans[p] if example.spans else None
        responses.append(response if spans is None else _within(response, spans))
    return prompt, responses


def _ends_in(eos: int, ids: list[int], covered: list[tuple[int, int]], text: str) -> bool:
    """Whether no more than white space stands behind the last EOS of a response."""
    if eos not in ids:
        return False
    last = len(ids) - 1 - ids[::-1].index(eos)
    return not text[covered[last][1] :].strip()


def _within(response: ResponseTokens, spans: Spans) -> ResponseTokens:
    """The tokens that touch the spans as the response's own; what comes after the last of them is dropped."""
    ranges = response.ranges or []
    own = [
        n
        for n, (start, end) in enumerate(ranges)
        if any(start < last and end > first for first, last in spans)
    ]
    if not own:
        raise BadRow("no token of the response is the assistant's")
    closed = response.closed and own[-1] == len(ranges) - 1
    if closed:
        own.append(len(ranges))
    before = [response.ids[previous + 1 : n] for previous, n in itertools.pairwise([-1, *own])]
    return ResponseTokens(
        [response.ids[n] for n in own],
        [ranges[n] for n in own[: len(own) - closed]],
        closed,
        response.content_end,
        before if any(before) else None,
    )


def _count_prompt_tokens(encoded: list[Encoded], seam: int) -> int:
    """How many first tokens lie before the seam (a character) and are the same in all texts."""
    count = min(sum(end <= seam for _, end in ranges) for _, ranges in encoded)
    first = encoded[0][0]
    while any(ids[:count] != first[:count] for ids, _ in encoded):
        count -= 1
    return count


def _from_ids(example: Example, vocabulary: str | None) -> tuple[list[int], list[ResponseTokens]]:
    """(prompt, responses) of a row of ids; vocabulary: digest of the tokenizer's, None without one."""
    if None not in (vocabulary, example.ids_vocabulary) and vocabulary != example.ids_vocabulary:
        raise BadRow(
            f"its token ids are of another vocabulary (digest {example.ids_vocabulary}) than the tokenizer's "
            f"({vocabulary}): take the tokenizer that the file was made with, or make the file again"
        )
    before = example.before or (None,) * len(example.responses)
    return list(example.prompt), [
        ResponseTokens(list(ids), None, False, before=others)
        for ids, others in zip(example.responses, before, strict=True)
    ]


def _refuse_outside(
    prompt: list[int], responses: list[ResponseTokens], vocab_size: int | None, tokenizer: Any | None
) -> None:
    """BadRow that names a token for which the model has no row: a tokenizer may have more tokens than it."""
    if vocab_size is None:
        return
    for ids in (prompt, *(response.laid() for response in responses)):
        outside = next((i for i in ids if not 0 <= i < vocab_size), None)
        if outside is not None:
            raise BadRow(
                f"token id {_named(outside, tokenizer)} is outside the model's vocabulary of {vocab_size}"
            )


def _refuse_image_tokens(
    prompt: list[int],
    responses: list[ResponseTokens],
    image_tokens: tuple[int, ...],
    tokenizer: Any | None,
) -> None:
    """BadRow for a token in whose place the model would meet a piece of an image, which is not there."""
    if not image_tokens:
        return
    for ids in (prompt, *(response.laid() for response in responses)):
        if found := set(image_tokens).intersection(ids):
            raise BadRow(
                f"token id {_named(min(found), tokenizer)} stands for an image, video or sound, "
                "and only text is trained on: take it out of the text"
            )


def _named(token: int, tokenizer: Any | None) -> str:
    """An id, and its token where there is one."""
    text = None if tokenizer is None or token < 0 else tokenizer.convert_ids_to_tokens(token)
    return f"{token}" if text is None else f"{token} ({text!r})"


def _finish(
    example: Example,
    prompt: list[int],
    responses: list[ResponseTokens],
    tokenizer: Any | None,
    limits: LengthLimits,
) -> TokenRow:
    """The row cut to its limits, with a value a token for each annotation."""
    bos = getattr(tokenizer, "bos_token_id", None)
    eos = getattr(tokenizer, "eos_token_id", None)
    values = [
        per_token(annotation, response, eos)
        for annotation, response in zip(example.annotations, responses, strict=True)
    ]
    kept_prompt = _cut_prompt(prompt, limits.max_prompt_length, bos if example.is_text else None)
    room = limits.max_length - len(kept_prompt)
    counts = [response.fitting(room) for response in responses]
    if 0 in counts:
        raise BadRow(
            f"no token of the assistant's lies within the first {room} of a response, all that "
            "data.max_length leaves it"
        )
    _refuse_equal(responses, room, counts)

    def kept(parts: Sequence[Any], column: str) -> tuple[list | None, ...]:
        lists = zip((getattr(part, column) for part in parts), counts, strict=True)
        return tuple(None if entries is None else entries[:count] for entries, count in lists)

    return TokenRow(
        kept_prompt,
        kept(responses, "ids"),
        prompt_key=_key(example),
        prompt_cut=len(prompt) > limits.max_prompt_length,
        responses_cut=tuple(
            len(response.ids) > count for response, count in zip(responses, counts, strict=True)
        ),
        prompt_length=len(prompt),
        response_length=max((len(response.laid()) for response in responses), default=0),
        weights=kept(values, "weights"),
        decisive=kept(values, "decisive"),
        chance=kept(values, "chance"),
        before=kept(responses, "before"),
        pair_weight=example.pair_weight,
        label=example.label,
    )


def _cut_prompt(prompt: list[int], limit: int, bos: int | None) -> list[int]:
    """The last tokens of a prompt that is too long; a BOS at the front stays, and takes the place of one."""
    if len(prompt) <= limit:
        return prompt
    if bos is not None and prompt[0] == bos:
        return [bos, *prompt[len(prompt) - limit + 1 :]]
    return prompt[-limit:]


def _refuse_equal(responses: list[ResponseTokens], room: int, counts: list[int]) -> None:
    """BadRow for two responses whose first `room` tokens are the same: such a pair cannot teach anything."""
    if len(responses) != 2:
        return
    first, second = (
        [own for own in zip(response.ids, response.before or itertools.repeat([]), strict=False)]
        for response in responses
    )
    if first[: counts[0]] != second[: counts[1]]:
        return
    where = (
        "" if first == second else f" within the first {room} tokens, all that data.max_length leaves them"
    )
    raise BadRow(f"chosen and rejected are the same{where}")


def _key(example: Example) -> int:
    """A hash of the prompt as it came, cut or not; of the response where there is no prompt."""
    content: Any = example.key
    if content is None:
        content = example.responses[0] if example.prompt is None else example.prompt
    return int.from_bytes(hashlib.sha256(repr(content).encode()).digest()[:8], "big")
