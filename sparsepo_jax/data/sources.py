"""Where rows come from: files, `datasets` directories, the Hub, or rows made in memory. Nothing here knows what a row means."""

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError, escaped

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_LONGEST_MESSAGE = 400  # characters


class BadRow(Exception):
    """What is wrong with a row, in words, on one line whatever the row holds. Where it stands is known to whoever reads."""

    def __init__(self, problem: str):
        shown = escaped(problem[: _LONGEST_MESSAGE + 1])
        super().__init__(shown if len(shown) <= _LONGEST_MESSAGE else shown[: _LONGEST_MESSAGE - 3] + "...")


class Row(NamedTuple):
    line: int
    """Line, or number of the row where the source has no lines; from 1."""
    content: dict[str, Any] | BadRow


@dataclass(frozen=True)
class FileRows:
    """A file, a directory that `datasets` can read, or a Hub id. `columns`: our column name -> theirs."""

    path: str
    split: str = "train"
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

    def open(self) -> "Source":
        whole = open_source(self.source)
        key = hashlib.sha256(f"{whole.fingerprint} {self.column} {self.words}".encode()).hexdigest()
        return Source(whole.name, key, lambda: (Row(row.line, self._cut(row.content)) for row in whole.rows()))

    def _cut(self, content: "dict[str, Any] | BadRow") -> "dict[str, Any] | BadRow":
        if isinstance(content, BadRow) or self.column not in content:
            return content
        if not isinstance(content[self.column], str):
            return BadRow(f"{self.column}: only text has first words, and this is {type(content[self.column]).__name__}")
        return content | {self.column: re.match(r"\s*((?:\S+\s+){0,%d}\S+|)" % (self.words - 1), content[self.column])[1]}


@dataclass(frozen=True)
class Source:
    """An opened source. `fingerprint` depends on the rows, not on where they lie."""

    name: str
    fingerprint: str
    rows: Callable[[], Iterator[Row]]


def open_source(source) -> Source:
    """`source`: GeneratedRows, FirstWords, or FileRows (or what has its fields). UserError if there is nothing that can be read."""
    if isinstance(source, FirstWords):
        return source.open()
    if isinstance(source, GeneratedRows):
        content = json.dumps(source.rows, sort_keys=True).encode()
        return Source(source.name, hashlib.sha256(content).hexdigest(), lambda: map(Row, range(1, len(source.rows) + 1), source.rows))
    if os.path.isfile(source.path):
        fingerprint, rows = _open_file(source.path)
    else:
        fingerprint, rows = _open_dataset(source.path, source.split, source.subset)
    columns = dict(source.columns)
    if not columns:
        return Source(source.path, fingerprint, rows)
    key = hashlib.sha256((fingerprint + json.dumps(columns, sort_keys=True)).encode()).hexdigest()
    return Source(source.path, key, lambda: (Row(row.line, rename(row.content, columns)) for row in rows()))


def rename(content: dict[str, Any] | BadRow, columns: dict[str, str]) -> dict[str, Any] | BadRow:
    """{ours: theirs}. Their name is gone afterwards, so that it cannot be taken for one of ours."""
    if isinstance(content, BadRow):
        return content
    absent = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in content]
    if absent:
        return BadRow(f"no column {', '.join(absent)}; the row has: {', '.join(content)}")
    kept = {name: value for name, value in content.items() if name not in columns.values()}
    return kept | {ours: content[theirs] for ours, theirs in columns.items()}


def _open_file(path: str) -> tuple[str, Callable[[], Iterator[Row]]]:
    suffix = next((s for s in _SUFFIXES if path.lower().endswith(s)), None)
    if suffix is None:
        raise UserError(f"{path}: cannot tell its format; expected a file ending in {', '.join(_SUFFIXES)}")
    return _digest([path], suffix), lambda: _parquet_rows(path) if suffix == ".parquet" else _json_rows(path, suffix)


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


def _json_rows(path: str, suffix: str) -> Iterator[Row]:
    open_bytes = gzip.open if suffix.endswith(".gz") else open
    try:
        with open_bytes(path, "rb") as file:
            if suffix in (".json", ".json.gz"):
                content = file.read().removeprefix(codecs.BOM_UTF8)
                is_list = content.lstrip()[:1] == b"["
                yield from _list_rows(path, content) if is_list else _line_rows(io.BytesIO(content))
            else:
                yield from _line_rows(file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _list_rows(path: str, content: bytes) -> Iterator[Row]:
    try:
        rows = _from_json(content)
    except (ValueError, RecursionError, BadRow) as error:  # how many rows are lost nobody knows: they cannot be left out
        raise UserError(f"{path}:{_line_of(error)}: {_not_json(error)}; mend the file, or write it as .jsonl, a row a line") from None
    for number, row in enumerate(rows, 1):
        yield Row(number, _object(row))


def _line_rows(lines) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        line = line.rstrip(b"\r\n")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            continue
        try:
            content = _object(_from_json(line))
        except (ValueError, RecursionError, BadRow) as error:
            content = _not_json(error)
        yield Row(number, content)


def _from_json(content: bytes) -> Any:
    return json.loads(content.decode(), object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # JSON leaves open which of the values counts
        names = [name for name, _ in pairs]
        raise BadRow(f"no JSON (the key {next(name for name in names if names.count(name) > 1)!r} stands there twice)")
    return found


def _line_of(error: Exception) -> int:
    if isinstance(error, UnicodeDecodeError):
        return error.object.count(b"\n", 0, error.start) + 1
    return getattr(error, "lineno", 1)


def _not_json(error: Exception) -> BadRow:
    if isinstance(error, BadRow):
        return error
    if isinstance(error, UnicodeDecodeError):
        return BadRow(f"invalid UTF-8 (byte {error.object[error.start]:#04x} at byte {error.start + 1})")
    if isinstance(error, json.JSONDecodeError):
        return BadRow(f"no JSON ({error.msg}, column {error.colno})")
    return BadRow(f"no JSON ({error})")


def _object(row: Any) -> dict[str, Any] | BadRow:
    return row if isinstance(row, dict) else BadRow(f"expected a JSON object, got {type(row).__name__}")


def _parquet_rows(path: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise UserError(f"{path}: two columns have one name; the columns are: {BadRow(', '.join(names))}")
        for batch in file.iter_batches(batch_size=1024):
            for row in _arrow_rows(batch):
                number += 1
                yield Row(number, row)
        if number != file.metadata.num_rows:
            raise UserError(f"{path}: not a whole parquet file (it says that it has {file.metadata.num_rows} rows, and has {number})")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable parquet file ({one_line(error)})") from None


def _arrow_rows(batch) -> Iterator[dict[str, Any] | BadRow]:
    try:
        rows = batch.to_pylist()
    except Exception:  # arrow checks neither UTF-8 when it reads nor whether Python has such a date: find the rows that are to blame
        rows = [_arrow_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    yield from rows


def _arrow_row(batch) -> dict[str, Any] | BadRow:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return _not_json(error)
    except Exception as error:
        return BadRow(f"Python cannot hold a value of this row ({one_line(error)})")


def _open_dataset(path: str, split: str, subset: str | None) -> tuple[str, Callable[[], Iterator[Row]]]:
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not path.startswith(".") and not path.lower().endswith(_SUFFIXES)
    if not os.path.isdir(path) and not hub_id:
        raise UserError(f"{path}: no such file or directory")
    if not os.path.isdir(path):
        _require_hub(path)
    import datasets

    try:
        if os.path.exists(os.path.join(path, "dataset_dict.json")) or os.path.exists(os.path.join(path, "state.json")):
            data = datasets.load_from_disk(path)
            if isinstance(data, datasets.DatasetDict):
                if split not in data:
                    raise UserError(f"{path}: no split {split!r}; it has: {', '.join(data)}")
                data = data[split]
        else:
            data = datasets.load_dataset(path, subset, split=split)
    except UserError:
        raise
    except Exception as error:  # whatever `datasets` raises (it has no common base) is about the user's path, split or subset
        raise UserError(f"{path}: `datasets` cannot read it ({one_line(error)})") from None
    # What a directory says of itself is no proof: its rows count.
    fingerprint = _digest([file["filename"] for file in data.cache_files], f"{data._fingerprint} {split}")
    return fingerprint, lambda: _dataset_rows(data)


def _dataset_rows(data) -> Iterator[Row]:
    done = 0
    while done < len(data):
        try:
            for row in data.skip(done) if done else data:
                done += 1
                yield Row(done, row)
        except Exception as error:  # decoding a value (an image, a date, text that is no UTF-8) raises what it likes
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


def one_line(error: Exception) -> str:
    """The first line of what a library says, so that our message stays one line."""
    return str(BadRow(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)))
