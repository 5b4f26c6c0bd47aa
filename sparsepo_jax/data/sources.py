"""Where rows come from: files, `datasets` directories, the Hub, or rows made in memory.

Nothing here knows what a row means.
"""

import functools
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.library_sets import open_library_set
from sparsepo_jax.data.ranked import answers_column
from sparsepo_jax.data.readers import SUFFIXES, class_names_in, count_rows, file_rows, suffix_of
from sparsepo_jax.data.row_source import RowSource, digest_of_files
from sparsepo_jax.data.rows import BadRow, Row
from sparsepo_jax.data.splits import SplitError, is_whole_split, split_names, split_ranges

Ranges = Sequence[tuple[int, int]]
"""(first row, row after the last), from 0."""


@dataclass(frozen=True)
class FileRows:
    """Rows of files, of a directory that `datasets` can read, or of a data set on the Hub."""

    path: str
    """Of a file or directory; or a pattern of files such as data/*.jsonl; or a Hub id."""
    split: str = "train"
    """As `datasets` writes it, parts included: train[:80%]. Files have one split, train."""
    subset: str | None = None
    """Of a data set that has several: `datasets` calls it a configuration."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> theirs."""
    weight: float = 1.0
    """How often an epoch sees each row."""


@dataclass(frozen=True)
class GeneratedRows:
    """Rows made in memory."""

    name: str
    """In place of a path, in messages."""
    rows: list[dict[str, Any]]
    weight: float = 1.0
    """How often an epoch sees each row."""


@dataclass(frozen=True)
class FirstWords:
    """The rows of another source, with no more than the first words of one column.

    words 2, column prompt        "A fine film, I think"    becomes    "A fine"
    """

    source: FileRows | GeneratedRows
    column: str
    words: int
    """How many are left; words are what white space sets apart."""

    @property
    def weight(self) -> float:
        """How often an epoch sees each row."""
        return self.source.weight

    def open(self) -> list[RowSource]:
        """What there is to read. UserError as for `open_sources`."""
        return [self._open(source) for source in open_sources(self.source)]

    def _open(self, source: RowSource) -> RowSource:
        key = hashlib.sha256(f"{source.fingerprint} {self.column} {self.words}".encode()).hexdigest()

        def rows() -> Iterator[Row]:
            return (Row(row.line, self._cut(row.content)) for row in source.rows())

        return RowSource(source.name, key, rows)

    def _cut(self, content: "dict[str, Any] | BadRow") -> "dict[str, Any] | BadRow":
        if isinstance(content, BadRow) or self.column not in content:
            return content
        text = content[self.column]
        if not isinstance(text, str):
            return BadRow(f"{self.column}: only text has first words, and this is {type(text).__name__}")
        first_words = re.match(rf"\s*((?:\S+\s+){{0,{self.words - 1}}}\S+|)", text)[1]
        return content | {self.column: first_words}


@dataclass(frozen=True)
class Exchanged:
    """The pairs of another source with chosen and rejected in each other's place.

    {chosen: Yes, rejected: No, chosen_weights: [1]}    becomes    {rejected: Yes, chosen: No,
                                                                    rejected_weights: [1]}
    """

    source: FileRows | GeneratedRows

    @property
    def weight(self) -> float:
        """How often an epoch sees each row."""
        return self.source.weight

    def open(self) -> list[RowSource]:
        """What there is to read. UserError as for `open_sources`."""
        return [self._open(source) for source in open_sources(self.source)]

    @staticmethod
    def _open(source: RowSource) -> RowSource:
        key = hashlib.sha256(f"{source.fingerprint} exchanged".encode()).hexdigest()

        def rows() -> Iterator[Row]:
            return (Row(row.line, exchange(row.content)) for row in source.rows())

        return RowSource(source.name, key, rows)


def exchange(content: dict[str, Any] | BadRow) -> dict[str, Any] | BadRow:
    """A row whose columns chosen and chosen_... have the names of rejected's, and the other way round.

    Args:
        content: the row; a bad one stays as it is.

    Returns:
        A BadRow for a list of ranked answers, whose pairs are not made yet, and for a row that is no pair.
    """
    if isinstance(content, BadRow):
        return content
    if (answers := answers_column(content)) is not None:
        return BadRow(
            f"{answers} are ranked answers, and only pairs can be exchanged: "
            "write them as chosen and rejected"
        )
    others = {"chosen": "rejected", "rejected": "chosen"}
    if all(content.get(name) is None and content.get(f"{name}_ids") is None for name in others):
        return BadRow("exchanged: no chosen and rejected, and only pairs can be exchanged: take it out")

    def other_name(name: str) -> str:
        first = name.partition("_")[0]
        return name.replace(first, others[first], 1) if first in others else name

    return {other_name(name): value for name, value in content.items()}


def open_sources(source: Any) -> list[RowSource]:
    """What there is to read, one RowSource for each file.

    Args:
        source: GeneratedRows, FirstWords, Exchanged, or FileRows (or an object with its fields).

    Raises:
        UserError: there is nothing that can be read.
    """
    if isinstance(source, FirstWords | Exchanged):
        return source.open()
    if isinstance(source, GeneratedRows):
        return [_open_generated(source)]
    if (paths := matching_files(source.path)) is not None:
        opened = _open_files(source.path, paths, source.split)
    else:
        opened = [open_library_set(source.path, source.split, source.subset)]
    return [_with_names(file, dict(source.columns)) for file in opened]


def _open_generated(source: GeneratedRows) -> RowSource:
    content = json.dumps(source.rows, sort_keys=True).encode()

    def rows() -> Iterator[Row]:
        return (Row(number, row) for number, row in enumerate(source.rows, 1))

    return RowSource(source.name, hashlib.sha256(content).hexdigest(), rows)


def source_name(source: Any) -> str:
    """What the user calls a source: its path, or the name of rows made in memory.

    Args:
        source: as for `open_sources`.
    """
    if isinstance(source, FirstWords | Exchanged):
        return source_name(source.source)
    return source.name if isinstance(source, GeneratedRows) else source.path


def open_source(source: Any) -> RowSource:
    """The only RowSource of what is one file, directory, data set of the Hub or list of rows.

    Args:
        source: as for `open_sources`, but no pattern of several files.

    Raises:
        UserError: there is nothing that can be read.
    """
    (opened,) = open_sources(source)
    return opened


def matching_files(path: str) -> list[str] | None:
    """The files that a path or pattern means, sorted.

    Args:
        path: of a file, or a pattern such as data/*.jsonl.

    Returns:
        None if it is neither a file nor a pattern.

    Raises:
        UserError: a pattern that matches no file.
    """
    if os.path.isfile(path):
        return [path]
    if os.path.exists(path) or not glob.has_magic(path):
        return None
    files = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not files:
        raise UserError(f"{path}: no file matches this pattern")
    return files


def _with_names(source: RowSource, columns: dict[str, str]) -> RowSource:
    if not columns:
        return source
    key = hashlib.sha256((source.fingerprint + json.dumps(columns, sort_keys=True)).encode()).hexdigest()

    def rows() -> Iterator[Row]:
        return (Row(row.line, rename(row.content, columns)) for row in source.rows())

    def class_names() -> dict[str, list[str]]:
        names = source.class_names()
        return {ours: names[theirs] for ours, theirs in columns.items() if theirs in names}

    return RowSource(source.name, key, rows, class_names)


def rename(content: dict[str, Any] | BadRow, columns: dict[str, str]) -> dict[str, Any] | BadRow:
    """A row with our names for its columns. Their names are gone, so that none is taken for one of ours.

        columns {prompt: text}        {text: Hi, prompt: 7}    becomes    {prompt: Hi}

    Args:
        content: the row; a bad one stays as it is.
        columns: our name -> theirs.

    Returns:
        A BadRow if one of their columns is missing.
    """
    if isinstance(content, BadRow):
        return content
    absent = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in content]
    if absent:
        return BadRow(f"no column {', '.join(absent)}; the row has: {', '.join(content)}")
    kept = {name: value for name, value in content.items() if name not in columns.values()}
    return kept | {ours: content[theirs] for ours, theirs in columns.items()}


def _open_files(path: str, files: list[str], split: str) -> list[RowSource]:
    """The files of a path. A part of a split counts their rows as if they were one file."""
    for file in files:
        if suffix_of(file) is None:
            raise UserError(
                f"{file}: cannot tell its format; expected a file ending in {', '.join(SUFFIXES)}"
            )
    try:
        others = [name for name in split_names(split) if name != "train"]
        if others:
            raise SplitError(
                f"no split {others[0]!r}: files have one split, train; "
                f"name the file that holds the {others[0]} rows instead"
            )
        if is_whole_split(split):
            return [_open_file(file, None) for file in files]
        sizes = [count_rows(file) for file in files]
        wanted = [(start, stop) for _, start, stop in split_ranges(split, {"train": sum(sizes)})]
    except SplitError as error:
        raise UserError(f"{path}: {error}") from None
    starts = [0, *itertools.accumulate(sizes)]
    return [
        _open_file(file, _shifted(wanted, start, size))
        for file, start, size in zip(files, starts[:-1], sizes, strict=True)
    ]


def _shifted(ranges: Ranges, start: int, size: int) -> Ranges:
    """The part of the ranges that lies within `size` rows from `start`, counted from there."""
    within = [(max(first - start, 0), min(last - start, size)) for first, last in ranges]
    return [(first, last) for first, last in within if first < last]


def _open_file(path: str, ranges: Ranges | None) -> RowSource:
    """ranges: the rows that are read. None: all."""
    digest = digest_of_files([path], suffix_of(path))
    names = functools.partial(class_names_in, path)
    if ranges is None:
        return RowSource(path, digest, lambda: file_rows(path), names)
    key = hashlib.sha256(f"{digest} {[list(part) for part in ranges]}".encode()).hexdigest()

    def rows() -> Iterator[Row]:
        for first, last in ranges:
            yield from itertools.islice(file_rows(path), first, last)

    return RowSource(path, key, rows, names)
