"""The rows of one file: JSON lines, a JSON list, comma- or tab-separated values, Parquet.

Nothing here knows what a row means.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.placeholders import placeholder_problem
from sparsepo_jax.data.rows import BadRow, Row, one_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def suffix_of(path: str) -> str | None:
    """The one of SUFFIXES that a file has.

    Args:
        path: of the file; upper and lower case count the same.

    Returns:
        None if it has none of them.
    """
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)


def file_rows(path: str) -> Iterator[Row]:
    """The rows of a file; one that cannot be read is a BadRow in its place.

    Args:
        path: of a file that has one of SUFFIXES.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    suffix = suffix_of(path)
    _refuse_other_content(path, suffix)
    if suffix == ".parquet":
        return _parquet_rows(path)
    return _text_rows(path, suffix)


# What files begin with that are not what their names say, and what they are.
_BEGINNINGS = {
    b"\x1f\x8b": "compressed by gzip: its name must end in .gz",
    b"PAR1": "a parquet file: its name must end in .parquet",
    b"PK\x03\x04": "a zip archive (or a spreadsheet): unpack it, or save it as .csv",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    codecs.BOM_UTF16_LE: "text in UTF-16: write it in UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: write it in UTF-8",
}


def _refuse_other_content(path: str, suffix: str | None) -> None:
    """UserError for a file that holds something else than its name says."""
    if (problem := placeholder_problem(Path(path))) is not None:
        raise UserError(f"{path}: {problem}")
    try:
        with open(path, "rb") as file:
            beginning = file.read(max(map(len, _BEGINNINGS)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    own = {".parquet": b"PAR1"}.get(suffix or "", b"\x1f\x8b" if str(suffix).endswith(".gz") else None)
    for mark, content in _BEGINNINGS.items():
        if beginning.startswith(mark) and mark != own:
            raise UserError(f"{path}: this is {content}")


def count_rows(path: str) -> int:
    """How many rows a file has, bad ones included.

    Args:
        path: as for `file_rows`.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    if suffix_of(path) == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError):
            pass  # reading the rows says what is wrong
    return sum(1 for _ in file_rows(path))


def class_names_in(path: str) -> dict[str, list[str]]:
    """What the numbers 0, 1, ... of a column mean, by column, as `datasets` notes it in a Parquet file.

    Args:
        path: as for `file_rows`. Other files say nothing of the kind.
    """
    if suffix_of(path) != ".parquet":
        return {}
    import pyarrow.parquet

    try:
        noted = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(noted).get("info", {}).get("features", {})
        named = {column: kind for column, kind in features.items() if kind.get("_type") == "ClassLabel"}
        return {column: list(map(str, kind["names"])) for column, kind in named.items()}
    except (pyarrow.ArrowException, OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}  # reading the rows says what is wrong


def _text_rows(path: str, suffix: str) -> Iterator[Row]:
    open_bytes = gzip.open if suffix.endswith(".gz") else open
    try:
        with open_bytes(path, "rb") as file:
            if suffix.startswith((".csv", ".tsv")):
                yield from _table_rows(path, file)
            elif suffix in (".json", ".json.gz"):
                content = file.read().removeprefix(codecs.BOM_UTF8)
                is_list = content.lstrip()[:1] == b"["
                yield from _list_rows(path, content) if is_list else _object_rows(path, content)
            else:
                yield from _line_rows(file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _list_rows(path: str, content: bytes) -> Iterator[Row]:
    try:
        rows = _from_json(content)
    except (ValueError, RecursionError, BadRow) as error:
        # Nobody knows how many rows are lost, so that they cannot be left out.
        problem = f"{path}:{_line_of(error)}: {_not_json(error)}"
        raise UserError(f"{problem}; mend the file, or write it as .jsonl, a row a line") from None
    for number, row in enumerate(rows, 1):
        yield Row(number, _object(row))


def _object_rows(path: str, content: bytes) -> Iterator[Row]:
    """A row a line, in a file whose name ends in .json. UserError for one object over several lines."""
    with contextlib.suppress(ValueError, RecursionError, BadRow):
        whole = _from_json(content)
        if isinstance(whole, dict) and _are_columns(whole):
            raise UserError(
                f"{path}: one object of columns ({BadRow(', '.join(whole))}), as pandas writes it: "
                "expected a list of rows, which its to_json(..., orient='records') writes"
            )
        if isinstance(whole, dict) and b"\n" in content.strip():
            raise UserError(
                f"{path}: one object ({BadRow(', '.join(whole))}) over several lines, where a list of rows "
                "is expected, or a row a line"
            )
    yield from _line_rows(io.BytesIO(content))


def _are_columns(whole: dict[str, Any]) -> bool:
    """{chosen: {"0": ..., "1": ...}, rejected: {"0": ..., "1": ...}}: the rows' numbers are keys."""
    columns = list(whole.values())
    return all(isinstance(column, dict) and "0" in column for column in columns) and all(
        column.keys() == columns[0].keys() for column in columns
    )


def _line_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        line = line.rstrip(b"\r\n")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            continue
        if number == 1 and line.lstrip()[:1] == b"[":
            yield Row(
                1, BadRow("expected a JSON object, got list: a file that is one list must end in .json")
            )
            continue
        try:
            content = _object(_from_json(line))
        except (ValueError, RecursionError, BadRow) as error:
            content = _not_json(error)
        yield Row(number, content)


def _from_json(content: bytes) -> Any:
    return json.loads(content.decode(), object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. BadRow if a key is there twice, since JSON leaves open which of the values counts."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"no JSON (the key {twice!r} stands there twice)")
    return content


def _line_of(error: Exception) -> int:
    """The line of a JSON text at which an error is, from 1."""
    if isinstance(error, UnicodeDecodeError):
        return error.object.count(b"\n", 0, error.start) + 1
    return getattr(error, "lineno", 1)


def _not_json(error: Exception) -> BadRow:
    """What is wrong with a row that cannot be read as JSON."""
    if isinstance(error, BadRow):
        return error
    if isinstance(error, UnicodeDecodeError):
        return BadRow(f"invalid UTF-8 (byte {error.object[error.start]:#04x} at byte {error.start + 1})")
    if isinstance(error, json.JSONDecodeError):
        return BadRow(f"no JSON ({error.msg}, column {error.colno})")
    return BadRow(f"no JSON ({error})")


def _object(row: Any) -> dict[str, Any] | BadRow:
    return row if isinstance(row, dict) else BadRow(f"expected a JSON object, got {type(row).__name__}")


def table_lines(file: BinaryIO, delimiter: str) -> Any:
    """A csv.reader of an open file; bytes that are no UTF-8 come as halves of surrogate pairs.

    Args:
        file: opened for bytes.
        delimiter: between cells, see `table_delimiter`.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # by default, a cell of more than 128 KiB is an error
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    return csv.reader(text, delimiter=delimiter, strict=True)


def table_delimiter(path: str) -> str:
    """What is between the cells of a file, by its suffix.

    Args:
        path: of a file of separated values.
    """
    return "," if suffix_of(path).startswith(".csv") else "\t"


def _table_rows(path: str, file: BinaryIO) -> Iterator[Row]:
    """Rows of text; an empty cell is null. The first line names the columns."""
    lines = table_lines(file, table_delimiter(path))
    try:
        names = next(lines, [])
        if len(set(names)) < len(names):
            raise UserError(
                f"{path}:1: two columns have one name; the columns are: {BadRow(', '.join(names))}"
            )
        line = lines.line_num + 1
        for cells in lines:
            if cells:
                yield Row(line, _table_row(names, cells))
            line = lines.line_num + 1
    except csv.Error as error:  # nobody knows where the next row begins
        raise UserError(
            f"{path}:{lines.line_num}: no separated values ({one_line(error)}); mend the file"
        ) from None


def _table_row(names: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(names):
        return BadRow(f"{len(cells)} cells, but the first line names {len(names)} columns")
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell if not cell.isascii()):
        return BadRow("invalid UTF-8")
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


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
            raise UserError(
                f"{path}: not a whole parquet file "
                f"(it says that it has {file.metadata.num_rows} rows, and has {number})"
            )
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable parquet file ({one_line(error)})") from None


def _arrow_rows(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    try:
        rows = batch.to_pylist()
    except Exception:
        # Arrow does not check on reading whether text is UTF-8, or whether Python has such a date. Find the
        # rows that are to blame.
        rows = [_arrow_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    yield from rows


def _arrow_row(batch: Any) -> dict[str, Any] | BadRow:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return _not_json(error)
    except Exception as error:
        return BadRow(f"Python cannot hold a value of this row ({one_line(error)})")
