"""Processes that are started before their turn: they import and compile, and then wait for their first line.

Compiling needs processor cores and the device only for a moment (products are tried out at its beginning), so
that several can compile at once; nothing is timed before all of them wait.
"""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

from work import Candidate

MOST = 32  # processes that are started at once


class Ahead:
    """Processes by what they were started with."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MOST)
        self._starting: dict[Hashable, Future[Candidate]] = {}
        self._closed = threading.Event()

    def begin(self, key: Hashable, start: Callable[[], Candidate], delay_s: float = 0) -> None:
        """Starts a process after so many seconds."""

        def later() -> Candidate:
            if self._closed.wait(delay_s):
                raise CancelledError
            candidate = start()
            candidate.within(None)  # it may wait as long as it must
            return candidate

        self._starting[key] = self._pool.submit(later)

    def wait(self) -> None:
        """Until each waits for its turn or has ended."""
        wait(self._starting.values())

    def take(self, key: Hashable) -> Candidate | None:
        """The process, which is the caller's from now on; None: none was started.

        Raises:
            CandidateEnded: it has ended.
        """
        future = self._starting.pop(key, None)
        return None if future is None else future.result()

    def close(self) -> None:
        """Ends those whose turn did not come, and starts none any more."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)
        for future in self._starting.values():
            if not future.cancelled() and future.exception() is None:
                future.result().close()
