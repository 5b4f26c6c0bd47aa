"""Output that ends before the program does: a log on a full disk, a terminal that is gone, one of ASCII."""

import errno
import io
import os
import subprocess
import sys

import pytest

from sparsepo_jax.core.streams import Lasting, lasting_output, opened_output

full_device = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="Linux has a disk that is always full"
)


@full_device
def test_a_run_goes_on_over_a_full_disk_under_its_log(monkeypatch):
    with open("/dev/full", "w") as out, open("/dev/full", "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with lasting_output():
            print("a step", flush=True)
            print("a note", file=sys.stderr, flush=True)


class Terminal(io.StringIO):
    """One that fails as told."""

    number: int | None = None

    def flush(self) -> None:
        if self.number is not None:
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPIPE])
def test_what_cannot_be_written_is_passed_over(number):
    """EIO: a terminal that was closed under a run that was disowned."""
    terminal = Terminal()
    lasting = Lasting(terminal)
    terminal.number = number
    print("lost or not", file=lasting, flush=True)
    terminal.number = None
    print("room again", file=lasting, flush=True)
    assert "room again" in terminal.getvalue()


def test_letters_that_stdout_does_not_know_become_escapes(monkeypatch):
    content = io.BytesIO()
    stdout = io.TextIOWrapper(content, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    with opened_output():
        print("/tmp/ü/日")
    stdout.flush()
    assert content.getvalue() == b"/tmp/\\xfc/\\u65e5\n" and stdout.errors == "strict"


@full_device
def test_a_command_that_only_prints_says_that_it_cannot():
    with open("/dev/full", "w") as out:
        ended = subprocess.run(
            [sys.executable, "-m", "sparsepo_jax.main", "--schema"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ended.returncode, ended.stderr) == (1, "error: stdout: No space left on device\n")
