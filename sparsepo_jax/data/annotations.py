"""What a row says of single tokens of a response, from its columns to one value a token.

Weights, decisive spans and chances come in columns beside the response (R is chosen, rejected or completion):

    R_weights     [1, 0.5, ...] or [[start, end, weight], ...]      a number a token, or spans of characters
    R_decisive    [true, false, ...] or [[start, end], ...]         what decides the preference, the same way
    R_chance      [[start, end, probability], ...]                  P(decisive | what comes before)

A token takes the value of the spans that it overlaps, the largest if there are several:

    response     the film was superb.        chosen_weights  [[13, 19, 3]]
    tokens       the| film| was| super|b|.   weights         1 1 1 3 3 1
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.values import is_numbers, is_spans, list_in_cell


@dataclass(frozen=True)
class Annotation:
    """What a row says of the tokens of one response. None: the row says nothing of it."""

    weights: list | None = None
    """A number a token, or spans [start, end, weight]."""
    decisive: list | None = None
    """A truth value a token, or spans [start, end]."""
    chance: list | None = None
    """Spans [start, end, probability]."""


class ResponseTokens(NamedTuple):
    """A response as token ids, with what it takes to place an annotation on them.

    Look it up. | tool 7 | It is 7.        ids      Look it up. It is 7.
                                           before   0 0 0 2 0 0, as lists of the tokens themselves
    """

    ids: list[int]
    """Its own tokens: those that are trained on."""
    ranges: list[tuple[int, int]] | None
    """Characters of the response text that each token covers, except an EOS of ours; None for rows of ids."""
    closed: bool
    """Whether the last token is an EOS that we have added."""
    content_end: int | None = None
    """Characters of the response text before what ends the turn; None if that cannot be told."""
    before: list[list[int]] | None = None
    """The tokens of other turns directly before each of its own. None: there are none."""

    def laid(self) -> list[int]:
        """All tokens as the model meets them."""
        if self.before is None:
            return self.ids
        return [token for before, own in zip(self.before, self.ids, strict=True) for token in (*before, own)]

    def fitting(self, room: int) -> int:
        """How many of its own tokens lie within the first `room` tokens.

        Args:
            room: tokens, those between its own included.
        """
        if self.before is None:
            return min(len(self.ids), room)
        ends = itertools.accumulate(len(before) + 1 for before in self.before)
        return sum(end <= room for end in ends)


class TokenValues(NamedTuple):
    """One value for each token of a response; None where the row says nothing."""

    weights: list[float] | None
    decisive: list[bool] | None
    chance: list[float] | None


def read_annotation(row: dict[str, Any], name: str) -> Annotation:
    """The annotation of one response, read from the columns beside it.

    Args:
        row: the row, without nulls.
        name: of the response: chosen, rejected or completion.

    Raises:
        BadRow: a column holds something else than numbers or spans.
    """
    weights = list_in_cell(row.get(f"{name}_weights"))
    decisive = list_in_cell(row.get(f"{name}_decisive"))
    chance = list_in_cell(row.get(f"{name}_chance"))
    if weights is not None and not (is_numbers(weights) or is_spans(weights, 3)):
        raise BadRow(
            f"{name}_weights must be finite numbers, one a token, or spans [[start, end, weight], ...]"
        )
    decisive_is_bad = decisive is not None and not (is_spans(decisive, 2) or _are_flags(decisive))
    chance_is_bad = chance is not None and not is_spans(chance, 3)
    if decisive_is_bad or chance_is_bad:
        raise BadRow(
            f"{name}_decisive must be spans [[start, end], ...] or true and false, one a token, "
            f"and {name}_chance [[start, end, probability], ...]"
        )
    if chance is not None and not all(0 <= probability <= 1 for *_, probability in chance):
        raise BadRow(f"{name}_chance must be probabilities, 0 to 1")
    return Annotation(weights, decisive, chance)


def _are_flags(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is bool for value in values)


def refuse_past_end(annotation: Annotation, text: str, name: str) -> None:
    """Checks that every span ends within the response.

    Args:
        annotation: whose spans count the characters of the text.
        text: the response.
        name: of the response, for the error message.

    Raises:
        BadRow: a span ends past the text.
    """
    for values in (annotation.weights, annotation.decisive, annotation.chance):
        for span in values or ():
            if isinstance(span, list) and span[1] > len(text):
                raise BadRow(
                    f"the span {span[:2]} ends past the text of {name}, which has {len(text)} characters"
                )


def shifted_to(
    annotation: Annotation, text: str, content: str, name: str, part: tuple[int, int] | None = None
) -> Annotation:
    """The annotation with its spans moved to where a chat template has put the content.

        content     Hello                   spans  [[0, 5, 2.0]]
        text         Hello</s>              spans  [[1, 6, 2.0]]

    Args:
        annotation: whose spans count the characters of `content`.
        text: what the template has written for the response.
        content: of the first message that is trained on.
        name: of the response, for the error message.
        part: (first, last + 1) of the text's characters among which that message stands. None: all.

    Raises:
        BadRow: a span ends past the content, or the template has altered it, so that spans cannot be placed.
    """
    fields = [field for field in ("weights", "decisive", "chance") if _has_spans(getattr(annotation, field))]
    if not fields:
        return annotation
    if not content:
        raise BadRow(f"the turn of {name} that its spans count has no content, only what the template writes")
    refuse_past_end(annotation, content, name)
    first, last = part or (0, len(text))
    shift = text.find(content, first, last)
    if shift < 0:
        raise BadRow(
            f"the chat template alters the text of {name}: its spans cannot be placed; "
            "leave white space at its ends out of it"
        )
    moved = {
        field: [[start + shift, end + shift, *rest] for start, end, *rest in getattr(annotation, field)]
        for field in fields
    }
    return replace(annotation, **moved)


def _has_spans(values: list | None) -> bool:
    return bool(values) and isinstance(values[0], list)


def per_token(annotation: Annotation, response: ResponseTokens, eos: int | None) -> TokenValues:
    """One value for each token of a response.

    Args:
        annotation: of the response; its spans count the characters that `response.ranges` counts.
        response: its tokens.
        eos: id of the tokenizer's EOS; None if there is none.

    Returns:
        Weights (1 outside spans, and on the tokens that end the turn if the row gives none), decisive (False
        outside spans) and chances (0 outside spans), each as long as `response.ids`; or None where the row
        says nothing.

    Raises:
        BadRow: the number of weights does not fit, or there are spans but the row came as token ids.
    """
    weights = annotation.weights
    if weights is None or _has_spans(weights):
        weights = _from_spans(weights, response, outside=1.0)
    else:
        weights = _with_end(weights, response, eos, "weights", missing=1.0)
    decisive = None
    if annotation.decisive is not None and _are_flags(annotation.decisive):
        flags = _with_end(annotation.decisive, response, eos, "truth values", missing=0.0)
        decisive = [bool(value) for value in flags]
    elif annotation.decisive is not None:
        ones = _from_spans([[*span, 1.0] for span in annotation.decisive], response, outside=0.0)
        decisive = [bool(value) for value in ones]
    return TokenValues(weights, decisive, _from_spans(annotation.chance, response, outside=0.0))


def _with_end(
    values: list[float], response: ResponseTokens, eos: int | None, name: str, *, missing: float
) -> list[float]:
    """Values of all tokens. Published data often lacks those of the tokens that end the turn: `missing`."""
    ending = _tokens_of_end(response, eos)
    bare = len(response.ids) - ending
    if not bare <= len(values) <= len(response.ids):
        end = "the EOS that is added" if response.closed else f"the {ending} that end the turn"
        without = f" (without {end})" if ending else ""
        raise BadRow(f"{len(values)} {name} for a response of {bare} tokens{without}")
    return [float(value) for value in values] + [missing] * (len(response.ids) - len(values))


def _tokens_of_end(response: ResponseTokens, eos: int | None) -> int:
    """How many last tokens only end the turn: what the template writes behind the content, or an EOS."""
    if response.content_end is not None:
        behind = sum(start >= response.content_end for start, _ in response.ranges)
        return behind + response.closed
    ends_in_eos = eos is not None and response.ids[-1:] == [eos] and len(response.ids) > 1
    return int(response.closed or ends_in_eos)


def _from_spans(spans: list | None, response: ResponseTokens, *, outside: float) -> list[float] | None:
    """For each token, the largest value of the spans that it overlaps; `outside` if it overlaps none."""
    if spans is None:
        return None
    if response.ranges is None:
        raise BadRow("spans of characters need text, but the row has token ids: give a number a token")
    values = []
    for start, end in response.ranges:
        overlapping = [value for first, last, value in spans if first < end and last > start]
        values.append(float(max(overlapping, default=outside)))
    return values + [outside] * (len(response.ids) - len(values))
