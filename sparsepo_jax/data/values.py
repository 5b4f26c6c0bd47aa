"""Values in the columns of a row: checked, and brought to the type that the rest of the room expects."""

import contextlib
import json
from typing import Any

from sparsepo_jax.data.rows import BadRow

LARGEST_ID = 2**31 - 1  # int32
LARGEST_WEIGHT = 3.4e38  # float32
_LONGEST_LIST = 200  # characters


def check_text(value: Any, name: str) -> str:
    """The value, if it is text that can be written as UTF-8.

    Args:
        value: what the row holds.
        name: of its column, for the error message.

    Raises:
        BadRow: it is no text, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name} is no valid Unicode (it holds half of a surrogate pair)") from None
    return value


def read_ids(row: dict[str, Any], name: str) -> list[int]:
    """The token ids in a column: a list, or a text that shows one.

    Args:
        row: the row, without nulls.
        name: of the column.

    Raises:
        BadRow: the column is missing or empty, or an entry is no whole number from 0 to 2**31 - 1.
    """
    if name not in row:
        raise BadRow(f"no {name}; the row has: {', '.join(row)}")
    ids = list_in_cell(row[name])
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise BadRow(f"{name} must be a list of whole numbers")
    outside = next((i for i in ids if not 0 <= i <= LARGEST_ID), None)
    if outside is not None:
        raise BadRow(f"{name}: {outside} is no token id (0 to {LARGEST_ID})")
    if not ids:
        reason = ": the first response token would have nothing before it" if name == "prompt_ids" else ""
        raise BadRow(f"{name} is empty{reason}")
    return ids


def read_before(row: dict[str, Any], name: str, length: int) -> list[list[int]] | None:
    """The tokens of other turns before each token of a response, from the column that scores.jsonl has too.

        [[2, [7, 8]]]       tokens 7 and 8 stand before token 2 of the response

    Args:
        row: the row, without nulls.
        name: of the column.
        length: tokens of the response.

    Returns:
        A list for each token; None if there is no such column, or nothing in it.

    Raises:
        BadRow: the column holds something else.
    """
    entries = list_in_cell(row.get(name))
    if not entries:
        return None
    before: list[list[int]] = [[] for _ in range(length)]
    try:
        for number, ids in entries:
            if not (type(number) is int and 0 <= number < length and not before[number]):
                raise ValueError
            before[number] = read_ids({name: ids}, name)
    except (TypeError, ValueError):
        raise BadRow(
            f"{name} must be [[token of the response, [ids before it]], ...], each token at most once"
        ) from None
    return before


def list_in_cell(value: Any) -> Any:
    """The list that a text shows as JSON (a cell of a CSV file); any other value as it is.

    Args:
        value: of a column that may hold a list.
    """
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def is_numbers(values: Any) -> bool:
    """Whether this is a list of numbers that float32 can hold.

    Args:
        values: of any type.
    """
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) <= LARGEST_WEIGHT for value in values
    )


def as_number(value: Any) -> float | None:
    """A number that float32 can hold, or one that a text shows; None for anything else.

    Args:
        value: of any type.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if is_numbers([value]) else None


def read_pair_weight(row: dict[str, Any]) -> float | None:
    """How much a row counts in the loss, from its column pair_weight.

    Args:
        row: the row, without nulls.

    Returns:
        A number >= 0; None if there is no such column.

    Raises:
        BadRow: the column holds something else.
    """
    weight = row.get("pair_weight")
    if isinstance(weight, str):  # a cell of a CSV file
        with contextlib.suppress(ValueError):
            weight = float(weight)
    if weight is not None and not (is_numbers([weight]) and weight >= 0):
        raise BadRow(f"pair_weight must be a finite number, 0 or above, got {weight!r}")
    return None if weight is None else float(weight)


def is_spans(spans: Any, width: int) -> bool:
    """Whether this is a list of spans [start, end, ...] with 0 <= start < end.

    Args:
        spans: of any type.
        width: numbers of each span: 2, or 3 if it has a value.
    """
    return isinstance(spans, list) and all(
        is_numbers(span) and len(span) == width and 0 <= span[0] < span[1] for span in spans
    )


def columns_of(row: dict[str, Any]) -> str:
    """The names of the row's columns, for a message about one that is missing.

    Args:
        row: the row, without nulls.
    """
    shown = ", ".join(row) or "nothing"
    return shown if len(shown) <= _LONGEST_LIST else f"{shown[:_LONGEST_LIST].rpartition(', ')[0]} and more"


def elsewhere(*names: str) -> str:
    """What to do if columns are missing because the data calls them otherwise.

    Args:
        *names: ours, of the missing columns.
    """
    columns = ", ".join(f"{name}: NAME" for name in names)
    return f"if the data calls that otherwise, set columns: {{{columns}}} beside its path"


def elsewhere_or_listed(row: dict[str, Any], missing: list[str]) -> str:
    """What to do about missing columns: they may have other names, or be the answers of one list.

    Args:
        row: the row, without nulls.
        missing: ours, of the missing columns.
    """
    answers = next((name for name, value in row.items() if _may_be_answers(value)), None)
    if answers is None or set(missing) != {"chosen", "rejected"}:
        return elsewhere(*missing)
    return f"{elsewhere(*missing)}; if {answers} holds several answers, {{responses: {answers}}}"


def _may_be_answers(value: Any) -> bool:
    """Whether a column holds several texts, or several things that have a text."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    texts = ("text", "response", "answer", "completion")
    return all(isinstance(one, str) or (isinstance(one, dict) and any(map(one.get, texts))) for one in value)


def common_prefix(*texts: str) -> str:
    """What all texts begin with, character by character.

        Hello you / Hello me    becomes    "Hello "

    Args:
        *texts: at least one.
    """
    first, last = (
        min(texts),
        max(texts),
    )  # all others lie between them and begin with whatever these two share
    for n, character in enumerate(first):
        if character != last[n]:
            return first[:n]
    return first
