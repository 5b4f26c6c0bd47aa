"""Output that ends before the program does: a log on a full disk, a terminal that is gone, one of ASCII."""

import errno
import io
import os
import subprocess
import sys

import pytest

from helpers.program import write_config
from sparsepo_jax import main as program
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


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPIPE, errno.EAGAIN])
def test_what_cannot_be_written_is_passed_over(number):
    """EIO: a terminal that was closed under a run that was disowned."""
    terminal = Terminal()
    lasting = Lasting(terminal)
    terminal.number = number
    print("lost or not", file=lasting, flush=True)
    terminal.number = None
    print("room again", file=lasting, flush=True)
    assert "room again" in terminal.getvalue()


def test_an_error_of_the_program_is_not_passed_over():
    """Kills: a run that prints into a file that its own code has closed, or set wrongly."""
    terminal = Terminal()
    terminal.number = errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        print("lost", file=Lasting(terminal), flush=True)


def test_letters_that_stdout_does_not_know_become_escapes(monkeypatch):
    content = io.BytesIO()
    stdout = io.TextIOWrapper(content, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    with opened_output():
        print("/tmp/ü/日")
    stdout.flush()
    assert content.getvalue() == b"/tmp/\\xfc/\\u65e5\n" and stdout.errors == "strict"


@full_device
@pytest.mark.parametrize("arguments", [["--schema"], ["stages=[inspect]"]])
def test_a_command_that_only_prints_says_that_it_cannot(arguments, tmp_path):
    config = [] if arguments == ["--schema"] else ["--config", str(write_config(tmp_path))]
    with open("/dev/full", "w") as out:
        ended = subprocess.run(
            [sys.executable, "-m", "sparsepo_jax.main", *config, *arguments],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ended.returncode, ended.stderr) == (1, "error: stdout: No space left on device\n")


@pytest.mark.parametrize("error", [OSError("libcuda.so: no such file"), OSError(errno.ENOSPC, "full")])
def test_an_error_of_something_else_than_stdout_keeps_its_traceback(monkeypatch, error):
    """As of ctypes and requests. Kills: `error: stdout: None`."""

    def command(arguments):
        raise error

    monkeypatch.setattr(program, "command", command)
    with pytest.raises(OSError) as raised:
        program.main([])
    assert raised.value is error
