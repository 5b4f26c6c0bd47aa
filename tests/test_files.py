"""Files that are there completely or not at all."""

import pytest

from sparsepo_jax.core.files import write_directory, write_jsonl, write_text, written_atomically


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
    assert (directory / "old").read_text() == "1"
    write_directory(directory, lambda unfinished: (unfinished / "new").write_text("2"))
    assert [file.name for file in directory.iterdir()] == ["new"] and len(list(tmp_path.iterdir())) == 1
