"""Rows with two answers side by side and a column that says which is better, as ranked answers with scores.

    response_0, response_1, better_response_id          0 or 1 (PKU-SafeRLHF)
    response_1, response_2, preference_strength         -3 to 3, below 0 if the first is better (HelpSteer2)
    response1, response2, overall_preference            the same (HelpSteer3)
    response_a, response_b, winner                      model_a, model_b, or a tie (chatbot arenas)
    response_a, response_b, winner_model_a, ..._b       1 for the better one (chatbot arenas)
    conversation_a, conversation_b, winner              the same with whole dialogues
    human_ref_A, human_ref_B, labels                    1 if A is better, 0 if B is (SHP)
    answer_0, answer_1, score_0, score_1                numbers, higher is better (WebGPT)

    better_response_id 1        becomes        responses [response_0, response_1], scores [0, 1]

In the arenas' csv files prompt and responses are lists of texts, one a turn: they become whole dialogues.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.values import as_number, list_in_cell

Scores = list[Any]
_TIE = re.compile(r"(tie|both)([ _(-].*|bad)?")  # of the arenas: "tie (bothbad)"


class _Form(NamedTuple):
    """One way to write a comparison."""

    answers: tuple[str, str]
    compared: tuple[str, ...]
    """The columns that say which is better."""
    read: Callable[..., Scores | None]
    """From what these hold to a score of each answer; None if it cannot be told."""


def is_comparison(row: dict[str, Any]) -> bool:
    """Whether a row holds two answers side by side, with what compares them.

    Args:
        row: as it was read.
    """
    return _form_of(row) is not None


def as_ranked(row: dict[str, Any]) -> dict[str, Any]:
    """The row with columns responses and scores in place of two answers and what compares them.

    Args:
        row: as it was read.

    Returns:
        The row as it is if it holds no such answers, or is a pair already.

    Raises:
        BadRow: which answer is better cannot be told.
    """
    form = _form_of(row)
    if form is None:
        return row
    scores = form.read(*(row[name] for name in form.compared))
    if scores is None:
        said = ", ".join(f"{name}: {row[name]!r:.40}" for name in form.compared)
        raise BadRow(f"which of {' and '.join(form.answers)} is better cannot be told from {said}")
    rest = {name: _plain(row[name]) for name in row if name not in (*form.answers, *form.compared)}
    return rest | _contents(rest.get("prompt"), [row[name] for name in form.answers]) | {"scores": scores}


def _form_of(row: dict[str, Any]) -> _Form | None:
    if any(row.get(name) is not None for name in ("chosen", "rejected", "responses")):
        return None
    for form in _FORMS:
        if all(row.get(name) is not None for name in (*form.answers, *form.compared)):
            return form
    return None


def _plain(value: Any) -> Any:
    """The text of a question of WebGPT, which is a mapping; any other value as it is."""
    text = value.get("full_text") if isinstance(value, dict) else None
    return text if isinstance(text, str) else value


def _contents(prompt: Any, responses: list[Any]) -> dict[str, Any]:
    """The columns prompt and responses; lists of texts become dialogues, which begin with the prompt."""
    questions, answers = list_in_cell(prompt), [list_in_cell(response) for response in responses]
    if not all(_are_texts(turns) for turns in (questions, *answers)):
        return {"prompt": prompt, "responses": responses}
    if any(len(turns) != len(questions) for turns in answers):
        lengths = " and ".join(str(len(turns)) for turns in answers)
        raise BadRow(f"prompt has {len(questions)} turns, and the answers have {lengths}")
    dialogues = [
        [
            {"role": role, "content": text}
            for turn in zip(questions, turns, strict=True)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        for turns in answers
    ]
    return {"prompt": None, "responses": dialogues}


def _are_texts(turns: Any) -> bool:
    return isinstance(turns, list) and bool(turns) and all(isinstance(text, str) for text in turns)


def _from_winner(winner: Any) -> Scores | None:
    """model_a, A or a; model_b, B or b; tie, tie (bothbad), both."""
    name = str(winner).strip().lower().removeprefix("model_")
    if _TIE.fullmatch(name):
        return [0, 0]
    return {"a": [1, 0], "b": [0, 1]}.get(name)


def _from_number(of: dict[float, Scores]) -> Callable[[Any], Scores | None]:
    """Reads a number, or a text that shows one, as the scores that it stands for."""

    def read(value: Any) -> Scores | None:
        number = as_number(value)
        return None if number is None else of.get(number)

    return read


def _from_strength(strength: Any) -> Scores | None:
    """How much better the second is."""
    number = as_number(strength)
    return None if number is None else [0, number]


def _as_scores(*scores: Any) -> Scores:
    return list(scores)


_FORMS = (
    _Form(("response_0", "response_1"), ("better_response_id",), _from_number({0: [1, 0], 1: [0, 1]})),
    _Form(("response_1", "response_2"), ("preference_strength",), _from_strength),
    _Form(("response1", "response2"), ("overall_preference",), _from_strength),
    _Form(("response_a", "response_b"), ("winner",), _from_winner),
    _Form(("response_a", "response_b"), ("winner_model_a", "winner_model_b"), _as_scores),
    _Form(("conversation_a", "conversation_b"), ("winner",), _from_winner),
    _Form(("human_ref_A", "human_ref_B"), ("labels",), _from_number({1: [1, 0], 0: [0, 1]})),
    _Form(("answer_0", "answer_1"), ("score_0", "score_1"), _as_scores),
)
