"""Runs of benchmarks/evidence.py at the same time, the most important ones first, until the time is up."""

import contextlib
import heapq
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

CARD_SHARE = 0.9  # of a card's memory, for all runs together
LOOKS_EVERY_S = 0.2  # whether the time is up while a run goes on

Rank = tuple[int, ...]
"""Of those who wait for a place the least is next."""


class NotDone(Exception):
    """A run that is needed is not there, and none may be made, or it failed."""


class Programs:
    """Places for runs of the main program.

    at_once: runs at the same time, each with its part of the card's memory. budget_s: when none is started
    any more and those that go on are ended; None: never."""

    def __init__(self, at_once: int = 1, budget_s: float | None = None):
        self.at_once = at_once
        self.failed: list[str] = []
        self._ends_s = None if budget_s is None else time.monotonic() + budget_s
        self._stopped = threading.Event()
        self._free, self._changed = at_once, threading.Condition()
        self._waiting: list[tuple[Rank, int]] = []
        self._tickets = itertools.count()

    @property
    def are_over(self) -> bool:
        return self._stopped.is_set() or (self._ends_s is not None and time.monotonic() >= self._ends_s)

    def stop(self) -> None:
        """Starts nothing more and ends what goes on."""
        self._stopped.set()

    @contextlib.contextmanager
    def place(self, rank: Rank) -> Iterator[None]:
        """Waits for a place and holds it. NotDone: the time is up."""
        with self._changed:
            ticket = (rank, next(self._tickets))
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: self._free and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._free -= 1
            self._changed.notify_all()
        try:
            if self.are_over:
                raise NotDone("the time is up")
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def fail(self, why: str) -> NotDone:
        """Says that a run failed; the others go on. What to raise."""
        self.failed.append(why)
        print(f"failed: {why}", file=sys.stderr, flush=True)
        return NotDone(why)

    def call(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Runs a command to its end. NotDone: the time was up before."""
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
            start_new_session=True,  # to end it with what it started
        )
        while True:
            try:
                _, said = process.communicate(timeout=LOOKS_EVERY_S)
                return subprocess.CompletedProcess(command, process.returncode, None, said)
            except subprocess.TimeoutExpired:
                if self.are_over:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    raise NotDone("the time is up") from None

    def _environment(self) -> dict[str, str]:
        """A run takes memory as it needs it, at most its part, by which it chooses its blocks."""
        if self.at_once == 1:
            return dict(os.environ)
        share = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{CARD_SHARE / self.at_once:.4f}",
        }
        return share | os.environ  # what a person has set is kept
