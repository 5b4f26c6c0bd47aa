"""Where rows come from: files, `datasets` directories, the Hub, or rows made in memory. Nothing here knows what a row means."""

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


class BadRow(Exception):
    """What is wrong with a row, in words. Where it stands is known to whoever reads."""


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
class Source:
    """An opened source. `fingerprint` depends on the rows, not on where they lie."""

    name: str
    fingerprint: str
    rows: Callable[[], Iterator[Row]]


def open_source(source) -> Source:
    """`source`: GeneratedRows, or FileRows (or what has its fields). UserError if there is nothing that can be read."""
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
    digest = hashlib.sha256(suffix.encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), lambda: _parquet_rows(path) if suffix == ".parquet" else _json_rows(path, suffix)


def _json_rows(path: str, suffix: str) -> Iterator[Row]:
    open_bytes = gzip.open if suffix.endswith(".gz") else open
    try:
        with open_bytes(path, "rb") as file:
            if suffix in (".json", ".json.gz"):
                content = file.read().removeprefix(codecs.BOM_UTF8)
                is_list = content.lstrip()[:1] == b"["
                yield from _list_rows(content) if is_list else _line_rows(io.BytesIO(content))
            else:
                yield from _line_rows(file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None


def _list_rows(content: bytes) -> Iterator[Row]:
    try:
        rows = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        yield Row(_line_of(error), _not_json(error))
        return
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
            yield Row(number, _object(json.loads(line.decode())))
        except (ValueError, RecursionError) as error:
            yield Row(number, _not_json(error))


def _line_of(error: Exception) -> int:
    if isinstance(error, UnicodeDecodeError):
        return error.object.count(b"\n", 0, error.start) + 1
    return getattr(error, "lineno", 1)


def _not_json(error: Exception) -> BadRow:
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
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in _arrow_rows(batch):
                number += 1
                yield Row(number, row)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from None


def _arrow_rows(batch) -> Iterator[dict[str, Any] | BadRow]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # arrow does not check UTF-8 when it reads: find the rows that are to blame
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield _not_json(error)


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
    return data._fingerprint, lambda: map(Row, range(1, len(data) + 1), data)


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
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
