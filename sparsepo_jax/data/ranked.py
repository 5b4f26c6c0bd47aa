"""Rows with several answers to one prompt, and how good each is: brought to pairs by a rule.

    prompt, responses, scores       lists of one length; higher is better (or ratings, rewards, ranks: lower)
    prompt, responses               the best first
    instruction, completions        UltraFeedback: {response, overall_score, ...} of each answer
    prompt, answers                 Nectar: {answer, rank} of each answer

An answer is a text, a message or a list of messages, or a dict that holds its text as response, answer,
completion, text or content. Two answers side by side with what compares them are read as such a list, see
comparisons.py. `completions`, `generations` and `answers` are read as `responses` are, but need
scores: in some data sets lists of these names are no ranking.

    scores .9 .2 .6     best_worst .9 > .2     best_others .9 > .2, .9 > .6     all: these and .6 > .2
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sparsepo_jax.data.comparisons import as_ranked, is_comparison
from sparsepo_jax.data.messages import list_in_text
from sparsepo_jax.data.preferences import choose_pairs, pairs_looked_at
from sparsepo_jax.data.rows import BadRow, Row
from sparsepo_jax.data.values import as_number, list_in_cell

_ANSWERS = ("responses", "completions", "generations", "answers")
_TEXTS = ("response", "answer", "completion", "text", "content")
_SCORES = ("score", "scores", "overall_score", "rating", "ratings", "reward", "rewards")  # higher is better
_RANKS = ("rank", "ranks")  # lower is better
# A row with one of these is a pair already, or another kind of data.
_NO_RANKING = ("chosen", "rejected", "chosen_ids", "rejected_ids", "labels")


@dataclass(frozen=True)
class Ranking:
    """How ranked answers become pairs."""

    rule: Literal["all", "best_worst", "best_others"] = "best_worst"
    margin: float = 0.0
    """Scores that differ by no more make no pair."""
    score: str | None = None
    """The column, or field of each answer, that holds the score. None: the first known one."""


RANKING = Ranking()


# What a row says of single tokens of one response, which is not known to be the better one before the rule.
_OF_A_RESPONSE = [f"{side}_{what}" for side in _NO_RANKING[:2] for what in ("weights", "decisive", "chance")]


class Ties:
    """Counts of pairs that were looked at and left out, and of rows whose order was taken for a rank."""

    def __init__(self) -> None:
        self.count = 0
        self.best_first = 0


class _Answer(NamedTuple):
    content: Any
    score: float


def answers_column(row: dict[str, Any]) -> str | None:
    """The column that holds a row's ranked answers.

    Args:
        row: as it was read.

    Returns:
        None if the row is no ranked list.
    """
    if is_comparison(row):
        return "responses"
    if any(row.get(name) is not None for name in _NO_RANKING):
        return None
    for name in _ANSWERS:
        value = _list_of(row.get(name))
        if isinstance(value, list):
            return name
    return None


def answer_texts(row: dict[str, Any]) -> list[Any]:
    """The answers of a ranked row, as the columns of other rows hold a response.

    Args:
        row: as it was read.
    """
    row = as_ranked(row)
    name = answers_column(row)
    return [] if name is None else [_content(answer, name) for answer in _list_of(row[name])]


def with_pairs(read: Callable[[], Iterator[Row]], ranking: Ranking, ties: Ties) -> Iterator[Row]:
    """The rows, each ranked list as its pairs, which stand where the list stands.

    Args:
        read: gives all rows of the source, from the first on.
        ranking: how lists become pairs.
        ties: counts what makes no pair.
    """
    others_have_scores: bool | None = None  # not looked at
    for row in _ranked_rows(read):
        if isinstance(row.content, BadRow) or (name := answers_column(row.content)) is None:
            yield row
            continue
        try:
            if is_best_first(row.content, ranking):
                if others_have_scores is None:
                    others_have_scores = any(_has_scores(other, ranking) for other in _ranked_rows(read))
                if others_have_scores:
                    raise BadRow(f"{name} have no scores, and those of other rows do")
                ties.best_first += 1
            for pair in _pairs_of(row.content, name, ranking, ties):
                yield Row(row.line, pair)
        except BadRow as fault:
            yield Row(row.line, fault)


def _ranked_rows(read: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """All rows, those with two answers side by side as ranked ones."""
    for row in read():
        try:
            yield row if isinstance(row.content, BadRow) else row._replace(content=as_ranked(row.content))
        except BadRow as fault:
            yield row._replace(content=fault)


def is_best_first(row: dict[str, Any], ranking: Ranking) -> bool:
    """Whether a row's several answers have no scores and are read in their order, the best first.

    Args:
        row: as it was read.
        ranking: how lists become pairs.
    """
    if answers_column(row) != "responses" or ranking.score is not None:
        return False
    return _scores_of(row, _list_of(row["responses"]), (*_SCORES, *_RANKS)) is None


def _has_scores(row: Row, ranking: Ranking) -> bool:
    content = row.content
    if isinstance(content, BadRow) or answers_column(content) != "responses":
        return False
    return not is_best_first(content, ranking)


def _pairs_of(row: dict[str, Any], name: str, ranking: Ranking, ties: Ties) -> list[dict[str, Any]]:
    if unclear := [column for column in _OF_A_RESPONSE if row.get(column) is not None]:
        raise BadRow(f"{', '.join(unclear)} beside {name}: which answer is meant is not known; leave it out")
    answers = _read_answers(row, name, ranking.score)
    if len(answers) < 2:
        raise BadRow(f"{name} has {'one answer' if answers else 'no answer'}, and a pair needs two")
    scores = [answer.score for answer in answers]
    places = choose_pairs(scores, ranking.rule, margin=ranking.margin)
    pairs = [(answers[better].content, answers[worse].content) for better, worse in places]
    pairs = [(better, worse) for better, worse in pairs if better != worse]
    ties.count += pairs_looked_at(len(answers), ranking.rule) - len(pairs)
    rest = {column: value for column, value in row.items() if column not in (*_ANSWERS, *_SCORES, *_RANKS)}
    return [rest | {"chosen": better, "rejected": worse} for better, worse in pairs]


def _read_answers(row: dict[str, Any], name: str, score: str | None) -> list[_Answer]:
    """The answers with their scores, higher is better."""
    answers = _list_of(row[name])
    contents = [_content(answer, name) for answer in answers]
    columns = (*_SCORES, *_RANKS) if score is None else (score,)
    if (scores := _scores_of(row, answers, columns)) is not None:
        column, values = scores
        numbers = _numbers(values, column, name, len(answers))
        sign = -1.0 if column in _RANKS else 1.0
        return [_Answer(*pair) for pair in zip(contents, (sign * x for x in numbers), strict=True)]
    if score is None and name == "responses":  # the best first
        return [_Answer(content, -float(n)) for n, content in enumerate(contents)]
    raise BadRow(
        f"{name} are several answers without {' or '.join(columns)}; "
        "name what holds their scores as data.ranked.score"
    )


def _scores_of(row: dict[str, Any], answers: list[Any], columns: tuple[str, ...]) -> tuple[str, Any] | None:
    """(column, what it holds) of the first column, or field of every answer, that is there."""
    for column in columns:
        values = list_in_cell(row.get(column))
        if values is None and all(isinstance(answer, dict) and column in answer for answer in answers):
            values = [answer[column] for answer in answers]
        if values is not None:
            return column, values
    return None


def _numbers(values: Any, column: str, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise BadRow(f"{column} must be a list of {count} numbers, one for each of {name}")
    numbers = [as_number(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        if number is None:
            raise BadRow(f"{column} of {name} must be finite numbers, got {value!r}")
    return [number for number in numbers if number is not None]


def _content(answer: Any, name: str) -> Any:
    """What a column chosen would hold of this answer."""
    if isinstance(answer, dict) and "role" not in answer:
        for field in _TEXTS:
            if isinstance(answer.get(field), str | list):
                return answer[field]
        raise BadRow(f"an answer of {name} has no {', '.join(_TEXTS)}; it has: {', '.join(answer)}")
    if not isinstance(answer, str | dict | list):
        raise BadRow(f"an answer of {name} must be text or messages, got {type(answer).__name__}")
    return answer


def _list_of(value: Any) -> Any:
    """A list, or what a cell shows as one."""
    return list_in_cell(list_in_text(value))
