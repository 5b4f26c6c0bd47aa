"""Files that are there completely or not at all.

They are written beside their place under another name, then renamed.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparsepo_jax.core.errors import UserError


@contextlib.contextmanager
def written_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes into, which becomes `path` when the block ends.

    An error leaves what was there before, and so does a power cut: the bytes are on the disk before the name
    is. Each writer has a temporary name of its own, so that several processes may write the same path: the
    last one wins.

    Args:
        path: of the file. Its directory is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None  # what a person knows
        raise


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Writes a text as UTF-8.

    Args:
        path: of the file.
        text: what it will hold.
        errors: as for str.encode; matters for text that holds lone surrogates.
    """
    with written_atomically(path) as file:
        file.write(text.encode("utf-8", errors))


def write_json(path: str | Path, content: Any) -> None:
    """Writes a value as indented JSON with a newline at the end.

    Args:
        path: of the file.
        content: what json.dumps can write.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Writes one JSON value per line.

    Args:
        path: of the file.
        records: what json.dumps can write; an iterator is consumed line by line.
    """
    with written_atomically(path) as file:
        for record in records:
            file.write((json.dumps(record) + "\n").encode())


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object that a run wrote into a file.

    Args:
        path: of the file, which is there.
        what: it should be.
        remedy: what to do if it is not.

    Raises:
        UserError: the file holds something else, as a copy that broke off or a power cut may leave.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {what}, found something else; {remedy}")
    return content


def is_complete(path: Path, *, may_be_empty: bool = False) -> bool:
    """Whether a file or directory is there; of .json and .jsonl also, whether its end is.

    Args:
        path: of what a run has written.
        may_be_empty: whether a .jsonl without a line is one. Otherwise a power cut has emptied it.
    """
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return path.exists()
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            return file.read() == b"\n" if size else may_be_empty
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def write_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Replaces a directory by one that is filled first.

    Args:
        directory: is complete afterwards, or as it was if `fill` fails.
        fill: writes into the directory that it is given.
    """
    unfinished = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        fill(unfinished)
        for path in unfinished.rglob("*"):
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
