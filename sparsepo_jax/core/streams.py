"""Output whose reader may go away before the program does (`| head`, a terminal that is closed)."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def discard(stream: Any) -> None:
    """Sends nowhere what was and will be written to a stream.

    Without this, Python would complain again about the missing reader when it ends.

    Args:
        stream: a stream whose reader is gone.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a file
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)


class Lasting:
    """A stream that goes on without its reader.

    Args:
        stream: what is written goes there as long as it has a reader.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """As TextIO.write.

        Args:
            text: is dropped if the reader is gone.
        """
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        """As TextIO.flush."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Lets stdout and stderr lose their readers within: a run's work is worth more than what it prints."""
    before = sys.stdout, sys.stderr
    lasting = [Lasting(stream) for stream in before]
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def opened_output() -> Iterator[None]:
    """Opens stdout and stderr where the program was started with them closed (>&-).

    What is written to them goes nowhere. Otherwise the next file that is opened would become one of them.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, opened.enter_context(open(os.devnull, "w")))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
