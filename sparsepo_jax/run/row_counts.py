"""How many rows the data has, as far as files that are here tell without being read completely."""

import contextlib
import gzip
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.config.schema.data import FileSource, Source
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.steps import times_in_epoch
from sparsepo_jax.data.example import RESPONSES
from sparsepo_jax.data.ranked import answers_column
from sparsepo_jax.data.readers import SUFFIXES, file_rows, suffix_of, table_delimiter, table_lines
from sparsepo_jax.data.sources import matching_files, rename
from sparsepo_jax.data.splits import SplitError, split_names, split_ranges
from sparsepo_jax.data.unpaired import are_pairs, is_pair
from sparsepo_jax.run.local import DATA_ID, Count, is_local, total

# Of a text file; the rest is extrapolated, so that --check does not wait for large files.
_READ_AT_MOST_BYTES = 32 * 2**20
_LOOK_AT_MOST = 10_000  # rows of a source, to tell pairs from single responses


class Rows(NamedTuple):
    """How many rows a list of sources has.

    once: each row counted once, as evaluation reads them. epoch: those that an epoch of training sees, by the
    weights of their sources.
    """

    once: Count
    epoch: Count


UNKNOWN = Rows(Count(None), Count(None))


def rows_of(sources: Sequence[Source], where: str, mistakes: list[str], *, halved: bool = False) -> Rows:
    """The rows of sources.

    Args:
        halved: whether pairs are read as two rows each.
        where: the setting that holds the sources.
        mistakes: gets a line for each source that cannot be read.
    """
    counts = [_rows_in(source, f"{where}.{index}", mistakes) for index, source in enumerate(sources)]
    if halved:
        counts = [_in_responses(count, source) for source, count in zip(sources, counts, strict=True)]
    rows = total(count.number for count in counts)
    if rows is None:
        return UNKNOWN
    exact = all(count.exact for count in counts)
    return Rows(Count(rows, exact), Count(_rows_of_epoch(sources, counts), exact))


def _rows_of_epoch(sources: Sequence[Source], counts: Sequence[Count]) -> int:
    """As data/batching draws them: rows of equal weight together, whatever their source."""
    of_weight: Counter[float] = Counter()
    for source, count in zip(sources, counts, strict=True):
        of_weight[float(np.float32(source.weight))] += count.number or 0  # as tables hold it
    parts = [(rows, *times_in_epoch(weight, rows)) for weight, rows in of_weight.items()]
    return sum(rows * times + drawn for rows, times, drawn in parts)


def _in_responses(rows: Count, source: Source) -> Count:
    """How many responses rows are, where a pair is two; exact where all rows were looked at."""
    looked_at = list(itertools.islice(_contents(source), _LOOK_AT_MOST + 1))
    pairs = sum(map(is_pair, looked_at[:_LOOK_AT_MOST]))
    if rows.number is None or not looked_at:
        return Count(rows.number, exact=rows.number is None)
    seen = min(len(looked_at), _LOOK_AT_MOST)
    is_known = len(looked_at) <= _LOOK_AT_MOST or pairs in (0, seen)
    return Count(round(rows.number * (1 + pairs / seen)), rows.exact and is_known)


def hold_pairs(sources: Sequence[Source]) -> bool | None:
    """Whether an evaluation set of an objective of single responses is read as pairs.

    Told by the first rows of files that are here, many of them; None if there are none.
    """
    rows = [row for source in sources for row in itertools.islice(_contents(source), _LOOK_AT_MOST)]
    return are_pairs(rows) if rows else None


def _contents(source: Source) -> Iterator[dict[str, Any]]:
    """The rows of a source's files that are here, by our names of columns; made-up reviews are pairs."""
    if not isinstance(source, FileSource):
        yield dict.fromkeys(RESPONSES["pairs"], "")
        return
    with contextlib.suppress(UserError, OSError, EOFError, ValueError, KeyError, zlib.error):
        for file in matching_files(source.path) or []:
            for row in file_rows(file) if suffix_of(file) is not None else ():
                content = rename(row.content, source.columns)
                if isinstance(content, dict):
                    yield content


def _rows_in(source: Source, where: str, mistakes: list[str]) -> Count:
    if not isinstance(source, FileSource):
        return Count(source.rows)
    try:
        files = matching_files(source.path)
        if files is None and not is_local(source.path, f"{where}.path", mistakes, DATA_ID):
            return Count(None)
        if files is None:
            return _rows_of_datasets_directory(Path(source.path), source.split)
        if any(_is_ranked(file) for file in files):
            return Count(None)
        counts = [_rows_of_file(file) for file in files]
        rows = total(count.number for count in counts)
        return _rows_of_split(source.split, {"train": Count(rows, all(count.exact for count in counts))})
    except (SplitError, UserError) as error:
        mistakes.append(f"{where}.path: {error}")
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        # Errors of pyarrow and json are ValueErrors.
        mistakes.append(f"{where}.path: cannot read {source.path}: {' '.join(str(error).split())}")
    return Count(None)


def _is_ranked(file: str) -> bool:
    """Whether the rows of a file hold several answers: how many pairs these make is not known."""
    if suffix_of(file) is None:
        return False
    first = next(file_rows(file), None)
    return first is not None and isinstance(first.content, dict) and answers_column(first.content) is not None


def _rows_of_file(file: str) -> Count:
    suffix = suffix_of(file)
    if suffix is None:
        raise UserError(f"expected a file ending in {', '.join(SUFFIXES)}, or a directory, got {file}")
    if suffix == ".parquet":
        import pyarrow.parquet

        return Count(pyarrow.parquet.read_metadata(file).num_rows)
    count = _rows_of_table if suffix.startswith((".csv", ".tsv")) else _rows_of_json
    return count(Path(file), zipped=suffix.endswith(".gz"))


def _rows_of_split(split: str, rows: dict[str, Count]) -> Count:
    """Rows of a split or of parts of splits. SplitError: one that is not there."""
    absent = next((name for name in split_names(split) if name not in rows), None)
    if absent is not None:
        raise SplitError(f"it has no split {absent!r}, only {', '.join(rows)}")
    ranges = split_ranges(split, {name: count.number or 0 for name, count in rows.items()})
    if any(rows[part.split].number is None for part in ranges):
        return Count(None)
    number = sum(part.stop - part.start for part in ranges)
    return Count(number, all(rows[part.split].exact for part in ranges))


def _rows_of_json(path: Path, zipped: bool) -> Count:
    """Lines that are not empty, or the entries of one list."""
    size, rows = path.stat().st_size, 0
    with open(path, "rb") as raw:
        lines = gzip.GzipFile(fileobj=raw) if zipped else raw
        for line in lines:
            if rows == 0 and line.lstrip().startswith(b"["):
                if size > _READ_AT_MOST_BYTES:
                    return Count(None)
                return Count(len(json.loads(line + lines.read())))
            rows += not line.isspace()
            if raw.tell() >= _READ_AT_MOST_BYTES:
                return Count(round(rows * size / raw.tell()), exact=raw.tell() == size)
    return Count(rows)


def _rows_of_table(path: Path, zipped: bool) -> Count:
    """Rows of separated values below the line that names the columns."""
    rows, size = 0, path.stat().st_size
    with open(path, "rb") as raw:
        lines = table_lines(gzip.GzipFile(fileobj=raw) if zipped else raw, table_delimiter(str(path)))
        next(lines, None)
        for cells in lines:
            rows += bool(cells)
            if lines.line_num % 1000 == 0 and raw.tell() >= _READ_AT_MOST_BYTES:
                return Count(round(rows * size / raw.tell()), exact=raw.tell() == size)
    return Count(rows)


def _rows_of_datasets_directory(path: Path, split: str) -> Count:
    """Rows of what `save_to_disk` has written; unknown for other directories.

    SplitError: a split is not there.
    """
    if (path / "dataset_dict.json").exists():
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        needed = split_names(split)
        rows = {name: _rows_of_saved(path / name) if name in needed else Count(0) for name in names}
        return _rows_of_split(split, rows)
    if not (path / "state.json").exists():
        return Count(None)
    name = json.loads((path / "state.json").read_text()).get("_split") or "train"
    return _rows_of_split(split, dict.fromkeys((name, "train"), _rows_of_saved(path)))


def _rows_of_saved(directory: Path) -> Count:
    import pyarrow

    entries = json.loads((directory / "state.json").read_text())["_data_files"]
    rows = 0
    for entry in entries:
        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(directory / entry["filename"])))
        rows += sum(batch.num_rows for batch in stream)
    return Count(rows)
