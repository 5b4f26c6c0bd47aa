"""How a run is asked to stop: by Ctrl-C, or by SIGTERM from whoever takes the machine away."""

import contextlib
import signal


class Terminated(KeyboardInterrupt):
    """SIGTERM: the machine is wanted, and the run will be wanted again."""


class Stop:
    """Raises KeyboardInterrupt or Terminated where the signal finds the program, but within `later()` only notes it in `asked`, since a step
    that is broken off takes its state with it. A second signal raises in any case."""

    def __init__(self):
        self.asked: type[KeyboardInterrupt] | None = None
        self._waits = False

    @contextlib.contextmanager
    def listening(self):
        """Takes both signals while it is open. In the main thread only."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        again, self.asked = (
            self.asked is not None,
            Terminated if number == signal.SIGTERM else KeyboardInterrupt,
        )
        if again or not self._waits:
            raise self.asked

    @contextlib.contextmanager
    def later(self):
        """What was asked for within is raised at the end, if nothing else was."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.check()

    def check(self) -> None:
        if self.asked is not None:
            raise self.asked
