"""How a run is asked to stop: by Ctrl-C, or by SIGTERM from whoever takes the machine away."""

import contextlib
import signal
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM: the machine is needed for something else, and the run is to be continued later."""


class Stop:
    """Raises KeyboardInterrupt or Terminated where the signal meets the program.

    Within `later()` it is only noted in `asked`, because a training step that is broken off takes its donated
    state with it. A second signal raises in any case.
    """

    def __init__(self) -> None:
        self.asked: type[KeyboardInterrupt] | None = None
        self._waits = False

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Takes both signals while it is open. For the main thread alone."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        again = self.asked is not None
        self.asked = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if again or not self._waits:
            raise self.asked

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Raises what was asked for within at the end of the block, unless an error ended it."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.check()

    def check(self) -> None:
        """Raises what was asked for, if anything was."""
        if self.asked is not None:
            raise self.asked
