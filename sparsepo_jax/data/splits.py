"""Splits and their parts, written as `datasets` writes them.

train               all rows
train[:80%]         the first 80 %; train[80%:] is the rest
train[10:20]        ten rows; train[-100:] the last hundred
train[:5%]+test     one after the other
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_PART = re.compile(
    r"(?P<split>\w+(?:\.\w+)*)"
    r"(?P<slice>\[(?:(?P<first>-?[\d_]+)(?P<first_percent>%)?)?"
    r":(?:(?P<last>-?[\d_]+)(?P<last_percent>%)?)?\])?"
    r"(?:\((?P<rounding>closest|pct1_dropremainder)\))?"
)


class SplitError(ValueError):
    """A split that cannot be read, or is not there."""


class Range(NamedTuple):
    """Rows `start` to `stop` (not included) of a split, from 0."""

    split: str
    start: int
    stop: int


def split_names(split: str) -> list[str]:
    """The splits that a text names, each once.

    Args:
        split: such as train[:80%]+test.

    Raises:
        SplitError: the text names no splits.
    """
    return list(dict.fromkeys(match["split"] for match in _parts(split)))


def is_whole_split(split: str) -> bool:
    """Whether a text is the name of a split and no more.

    Args:
        split: such as train.
    """
    return re.fullmatch(r"\w+(\.\w+)*", split) is not None


def split_ranges(split: str, rows: Mapping[str, int]) -> list[Range]:
    """The rows that a text means, rounded as `datasets` rounds.

        train[:80%]+test    of 7 and 2 rows    becomes    (train, 0, 6) (test, 0, 2)

    Args:
        split: such as train[:80%].
        rows: how many rows each split has, by its name.

    Raises:
        SplitError: the text names no splits, or one that is not there.
    """
    ranges = []
    for match in _parts(split):
        name = match["split"]
        if name not in rows:
            raise SplitError(f"no split {name!r}; it has: {', '.join(rows)}")
        ranges.append(Range(name, *_bounds(match, rows[name])))
    return ranges


def _parts(split: str) -> list[re.Match]:
    matches = [_PART.fullmatch(part) for part in re.split(r"\s*\+\s*", split.strip())]
    if None in matches:
        raise SplitError(
            f"cannot read the split {split!r}; "
            "expected one such as train, train[:80%], train[10:20] or train[:10%]+test"
        )
    return matches


def _bounds(match: re.Match, rows: int) -> tuple[int, int]:
    """(first row, row after the last) of a part of a split of so many rows."""
    in_percent = match["first_percent"] or match["last_percent"]
    bounds = []
    for text, default in ((match["first"], 0), (match["last"], rows)):
        bound = default
        if text is not None:
            bound = _from_percent(int(text), rows, match["rounding"]) if in_percent else int(text)
        bounds.append(min(max(bound + rows, 0) if bound < 0 else bound, rows))
    return bounds[0], max(bounds[0], bounds[1])


def _from_percent(percent: int, rows: int, rounding: str | None) -> int:
    if abs(percent) > 100:
        raise SplitError(f"a part of a split lies between -100 % and 100 %, got {percent} %")
    if rounding != "pct1_dropremainder":
        return round(percent * rows / 100)
    if rows < 100:
        raise SplitError(f"pct1_dropremainder leaves nothing of {rows} rows, which are fewer than 100")
    return percent * math.trunc(rows / 100)
