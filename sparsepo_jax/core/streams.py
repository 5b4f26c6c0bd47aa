"""Output that may end before the program does (`| head`, a closed terminal, a log on a full disk)."""

import contextlib
import errno
import io
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


# Its reader has ended; its terminal is gone (of a run that was disowned), or its file on the network is.
_FOR_GOOD = (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ESTALE, errno.ENOTCONN)
# There is no room; its reader is too slow, and it does not wait for it.
_FOR_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN)

STDOUT = "<stdout>"  # the filename of its errors


class Named:
    """A stream whose errors name it, as those of a file do.

    Args:
        stream: where everything goes.
        name: what its errors have for their filename.
    """

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """As TextIO.write.

        Args:
            text: to be written.
        """
        with self._naming():
            return self._stream.write(text)

    def flush(self) -> None:
        """As TextIO.flush."""
        with self._naming():
            self._stream.flush()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self._name
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Lasting:
    """A stream that goes on without its reader, and over a full disk.

    Args:
        stream: what is written goes there as long as it takes it.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """As TextIO.write.

        Args:
            text: is dropped if the reader is gone; on a full disk it may be.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._pass_over(error)
            return len(text)

    def flush(self) -> None:
        """As TextIO.flush."""
        try:
            self._stream.flush()
        except OSError as error:
            self._pass_over(error)

    def _pass_over(self, error: OSError) -> None:
        """Gives up a stream whose reader will not come back; on a full disk there may be room again.

        Raises:
            OSError: it is another error.
        """
        if error.errno in _FOR_GOOD:
            discard(self._stream)
        elif error.errno not in _FOR_NOW:
            raise error

    def end(self) -> None:
        """Flushes for the last time: what cannot be written now is dropped."""
        try:
            self._stream.flush()
        except OSError:
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
            stream.end()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def opened_output() -> Iterator[None]:
    """Opens stdout and stderr where the program was started with them closed (>&-).

    What is written to them goes nowhere. Otherwise the next file that is opened would become one of them.
    Errors of stdout have STDOUT for their filename.
    Letters that an open stdout cannot write, such as those beyond ASCII on a terminal of ASCII, become
    escapes.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, opened.enter_context(open(os.devnull, "w")))
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            opened.callback(sys.stdout.reconfigure, errors="strict")
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = Named(sys.stdout, STDOUT)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
