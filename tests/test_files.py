"""Files that are there completely or not at all."""

import json
import os
from pathlib import Path

import pytest

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import (
    is_complete,
    read_object,
    write_directory,
    write_json,
    write_jsonl,
    write_text,
    written_atomically,
)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "made" / "records.jsonl"
    write_jsonl(path, [{"n": 1}])

    def records():
        yield {"n": 2}
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_jsonl(path, records())
    assert path.read_text() == '{"n": 1}\n'
    assert [file.name for file in path.parent.iterdir()] == ["records.jsonl"]


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with written_atomically(path) as first, written_atomically(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # closed last


def test_a_file_gets_the_rights_of_any_new_file(tmp_path):
    write_text(tmp_path / "atomic", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_directory_is_replaced_only_when_it_is_filled(tmp_path):
    directory = tmp_path / "kept"
    write_directory(directory, lambda unfinished: (unfinished / "old").write_text("1"))

    def fill(unfinished):
        (unfinished / "new").write_text("2")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_directory(directory, fill)
    assert (directory / "old").read_text() == "1" and len(list(tmp_path.iterdir())) == 1
    write_directory(directory, lambda unfinished: (unfinished / "new").write_text("2"))
    assert [file.name for file in directory.iterdir()] == ["new"] and len(list(tmp_path.iterdir())) == 1


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """Kills: a file that is empty after a power cut, since its name came to the disk first."""
    order, sync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append(os.fstat(file).st_size) or sync(file))
    monkeypatch.setattr(Path, "replace", lambda *paths: order.append("named") or replace(*paths))
    write_text(tmp_path / "file", "four")
    assert order == [4, "named"]
    order.clear()
    write_directory(tmp_path / "kept", lambda unfinished: (unfinished / "file").write_text("four"))
    assert order == [4, "named"]


def test_what_was_cut_is_not_complete(tmp_path):
    record, rows = tmp_path / "record.json", tmp_path / "rows.jsonl"
    assert not is_complete(record) and is_complete(tmp_path)
    write_json(record, {"n": 1})
    write_jsonl(rows, [{"n": 1}, {"n": 2}])
    assert is_complete(record) and is_complete(rows)
    for path in (record, rows):
        path.write_bytes(path.read_bytes()[:-3])
        assert not is_complete(path)
    rows.write_text("")
    assert not is_complete(rows), "a power cut has emptied it"
    assert is_complete(rows, may_be_empty=True), "pairs_made.jsonl where no answers differ"


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\0" * 40, b"{", b"\xff{}", b"[" * 100_000])
def test_a_record_of_something_else_is_one_line(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="record.json: expected a record, found something else; delete it"):
        read_object(path, "a record", "delete it")
    path.write_text(json.dumps({"n": 1}))
    assert read_object(path, "a record", "delete it") == {"n": 1}
