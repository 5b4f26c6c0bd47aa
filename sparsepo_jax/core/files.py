"""Files that are there completely or not at all.

They are written beside their place under another name, then renamed.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def written_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes into, which becomes `path` when the block ends.

    An error leaves what was there before. Each writer has a temporary name of its own, so that several
    processes may write the same path: the last one wins.

    Args:
        path: of the file. Its directory is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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


def write_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Replaces a directory by one that is filled first.

    Args:
        directory: is complete afterwards, or as it was if `fill` fails.
        fill: writes into the directory that it is given.
    """
    unfinished = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fill(unfinished)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
