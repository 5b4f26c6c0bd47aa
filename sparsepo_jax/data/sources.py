"""Where rows come from: files, `datasets` directories, the Hub, or rows made in memory. Nothing here knows what a row means."""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.data.readers import SUFFIXES, count_rows, file_rows, suffix_of
from sparsepo_jax.data.rows import BadRow, Row, one_line
from sparsepo_jax.data.splits import SplitError, is_whole_split, split_names, split_ranges

Ranges = Sequence[tuple[int, int]]
"""(first row, row after the last), from 0."""


@dataclass(frozen=True)
class FileRows:
    """A file, a pattern of files such as data/*.jsonl, a directory that `datasets` can read, or a Hub id. `columns`: our column name -> theirs."""

    path: str
    split: str = "train"
    """As `datasets` writes it, parts included: train[:80%]. Files have one split, train."""
    subset: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class GeneratedRows:
    """Rows made in memory, as a source beside those that have a path."""

    name: str
    rows: list[dict[str, Any]]
    weight: float = 1.0


@dataclass(frozen=True)
class FirstWords:
    """The rows of another source, of whose text in `column` only the first `words` words (what white space sets apart) are left."""

    source: FileRows | GeneratedRows
    column: str
    words: int

    @property
    def weight(self) -> float:
        return self.source.weight

    def open(self) -> "list[Source]":
        return [self._open(source) for source in open_sources(self.source)]

    def _open(self, source: "Source") -> "Source":
        key = hashlib.sha256(f"{source.fingerprint} {self.column} {self.words}".encode()).hexdigest()
        return Source(
            source.name, key, lambda: (Row(row.line, self._cut(row.content)) for row in source.rows())
        )

    def _cut(self, content: "dict[str, Any] | BadRow") -> "dict[str, Any] | BadRow":
        if isinstance(content, BadRow) or self.column not in content:
            return content
        if not isinstance(content[self.column], str):
            return BadRow(
                f"{self.column}: only text has first words, and this is {type(content[self.column]).__name__}"
            )
        return content | {
            self.column: re.match(r"\s*((?:\S+\s+){0,%d}\S+|)" % (self.words - 1), content[self.column])[1]
        }


@dataclass(frozen=True)
class Source:
    """An opened source. `fingerprint` depends on the rows, not on where they lie."""

    name: str
    fingerprint: str
    rows: Callable[[], Iterator[Row]]


def open_sources(source) -> list[Source]:
    """What there is to read, one Source for each file.

    Args:
        source: GeneratedRows, FirstWords, or FileRows (or what has its fields).

    Raises:
        UserError: there is nothing that can be read.
    """
    if isinstance(source, FirstWords):
        return source.open()
    if isinstance(source, GeneratedRows):
        content = json.dumps(source.rows, sort_keys=True).encode()
        return [
            Source(
                source.name,
                hashlib.sha256(content).hexdigest(),
                lambda: map(Row, range(1, len(source.rows) + 1), source.rows),
            )
        ]
    if (paths := matching_files(source.path)) is not None:
        opened = _open_files(source.path, paths, source.split)
    else:
        opened = [Source(source.path, *_open_dataset(source.path, source.split, source.subset))]
    return [_with_names(file, dict(source.columns)) for file in opened]


def source_name(source) -> str:
    """As the user has named it."""
    if isinstance(source, FirstWords):
        return source_name(source.source)
    return source.name if isinstance(source, GeneratedRows) else source.path


def open_source(source) -> Source:
    """The only Source of what is one file, or none."""
    (opened,) = open_sources(source)
    return opened


def matching_files(path: str) -> list[str] | None:
    """The files that a path or pattern means, sorted; None: it is neither a file nor a pattern. UserError: a pattern of nothing."""
    if os.path.isfile(path):
        return [path]
    if os.path.exists(path) or not glob.has_magic(path):
        return None
    files = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not files:
        raise UserError(f"{path}: no file matches this pattern")
    return files


def _with_names(source: Source, columns: dict[str, str]) -> Source:
    if not columns:
        return source
    key = hashlib.sha256((source.fingerprint + json.dumps(columns, sort_keys=True)).encode()).hexdigest()
    return Source(
        source.name, key, lambda: (Row(row.line, rename(row.content, columns)) for row in source.rows())
    )


def rename(content: dict[str, Any] | BadRow, columns: dict[str, str]) -> dict[str, Any] | BadRow:
    """{ours: theirs}. Their name is gone afterwards, so that it cannot be taken for one of ours."""
    if isinstance(content, BadRow):
        return content
    absent = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in content]
    if absent:
        return BadRow(f"no column {', '.join(absent)}; the row has: {', '.join(content)}")
    kept = {name: value for name, value in content.items() if name not in columns.values()}
    return kept | {ours: content[theirs] for ours, theirs in columns.items()}


def _open_files(path: str, files: list[str], split: str) -> list[Source]:
    """A part of a split counts the rows of all files, one after the other."""
    for file in files:
        if suffix_of(file) is None:
            raise UserError(
                f"{file}: cannot tell its format; expected a file ending in {', '.join(SUFFIXES)}"
            )
    try:
        others = [name for name in split_names(split) if name != "train"]
        if others:
            raise SplitError(
                f"no split {others[0]!r}: files have one split, train; name the file that holds the {others[0]} rows instead"
            )
        if is_whole_split(split):
            return [_open_file(file, None) for file in files]
        sizes = [count_rows(file) for file in files]
        wanted = [(start, stop) for _, start, stop in split_ranges(split, {"train": sum(sizes)})]
    except SplitError as error:
        raise UserError(f"{path}: {error}") from None
    starts = [0, *itertools.accumulate(sizes)]
    return [
        _open_file(file, _shifted(wanted, start, size)) for file, start, size in zip(files, starts, sizes)
    ]


def _shifted(ranges: Ranges, start: int, size: int) -> Ranges:
    """The part of the ranges that lies within `size` rows from `start`, counted from there."""
    within = [(max(first - start, 0), min(last - start, size)) for first, last in ranges]
    return [(first, last) for first, last in within if first < last]


def _open_file(path: str, ranges: Ranges | None) -> Source:
    whole = _digest([path], suffix_of(path))
    if ranges is None:
        return Source(path, whole, lambda: file_rows(path))
    key = hashlib.sha256(f"{whole} {[list(part) for part in ranges]}".encode()).hexdigest()
    return Source(
        path,
        key,
        lambda: (row for first, last in ranges for row in itertools.islice(file_rows(path), first, last)),
    )


def _digest(paths: Iterable[str], beginning: str) -> str:
    digest = hashlib.sha256(beginning.encode())
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _open_dataset(path: str, split: str, subset: str | None) -> tuple[str, Callable[[], Iterator[Row]]]:
    """(fingerprint, rows) of a directory or Hub id."""
    hub_id = (
        re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not is_mistyped_path(path) and suffix_of(path) is None
    )
    if not os.path.isdir(path) and not hub_id:
        raise UserError(f"{path}: no such file or directory")
    if not os.path.isdir(path):
        _require_hub(path)
    import datasets

    try:
        if os.path.exists(os.path.join(path, "dataset_dict.json")) or os.path.exists(
            os.path.join(path, "state.json")
        ):
            parts = _saved_parts(datasets.load_from_disk(path), split)
        else:
            data = datasets.load_dataset(path, subset, split=split)
            parts = [(data, 0, len(data))]
    except SplitError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever `datasets` raises (it has no common base) is about the user's path, split or subset
        raise UserError(f"{path}: `datasets` cannot read it ({one_line(error)})") from None
    # What a directory says of itself is no proof: its rows count.
    files = dict.fromkeys(file["filename"] for data, _, _ in parts for file in data.cache_files)
    fingerprint = _digest(files, f"{' '.join(data._fingerprint for data, _, _ in parts)} {split}")
    return fingerprint, lambda: (row for part in parts for row in _dataset_rows(*part))


def _saved_parts(saved: Any, split: str) -> list[tuple[Any, int, int]]:
    """(data, first row, row after the last) of each part of a split of what `save_to_disk` wrote. A Dataset without splits is one split, train."""
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved, "train": saved}
    ranges = split_ranges(split, {name: len(data) for name, data in splits.items()})
    return [(splits[name], start, stop) for name, start, stop in ranges]


def _dataset_rows(data, start: int, stop: int) -> Iterator[Row]:
    done = start
    while done < stop:
        try:
            for row in data if (done, stop) == (0, len(data)) else data.select(range(done, stop)):
                done += 1
                yield Row(done, row)
        except (
            Exception
        ) as error:  # decoding a value (an image, a date, text that is no UTF-8) raises what it likes
            done += 1
            yield Row(done, BadRow(f"`datasets` cannot decode this row ({one_line(error)})"))


def _require_hub(path: str) -> None:
    """Ask before `datasets` does: without a network it tries for half a minute."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(path, timeout=20)
    except Exception as error:
        raise UserError(
            f"{path}: no such file or directory, and as a Hub data set not to be had ({one_line(error)}); "
            "a copy in the local cache is used with HF_HUB_OFFLINE=1"
        ) from None
