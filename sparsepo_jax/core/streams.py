"""Output whose reader may go away before the program does (`| head`, a terminal that is closed)."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def discard(stream: TextIO) -> None:
    """What was and will be written to a stream goes nowhere: else Python would complain of it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Lasting:
    """A stream that goes on without its reader."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """A run's work is worth more than what it says: within, stdout and stderr may lose their readers."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting = [Lasting(stream) for stream in before]
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def opened_output() -> Iterator[None]:
    """Where the program was started with stdout or stderr closed (>&-), they lead nowhere: a file that is opened must not become one of them."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, opened.enter_context(open(os.devnull, "w")))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
