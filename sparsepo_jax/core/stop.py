"""How a run is asked to stop: by Ctrl-C, or by SIGTERM from whoever takes the machine away.

A terminal that is closed (SIGHUP) asks as SIGTERM does, unless the run was started with nohup.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

AGAIN_AFTER_S = 0.05  # until a signal that nobody heard is sent once more


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
        self._number = 0  # of the last signal
        self._asked_before: type[KeyboardInterrupt] | None = None  # what `asked` was when it came
        self._again: threading.Timer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Takes the signals while it is open. For the main thread alone."""
        handlers: dict[int, Any] = {signal.SIGINT: self._take, signal.SIGTERM: self._take}
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup ignores it
            handlers[hangup] = _terminate
        with contextlib.ExitStack() as before:
            for number, handler in handlers.items():
                before.callback(signal.signal, number, signal.signal(number, handler))
            before.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
            sys.unraisablehook = functools.partial(self._hear_again, sys.unraisablehook)
            try:
                yield self
            except BaseException:
                if self._again is not None:
                    self._again.cancel()
                raise
            finally:
                if self._again is not None:  # a signal after this would meet the old handlers
                    self._again.join()

    def _take(self, number: int, frame: object) -> None:
        self._number, self._asked_before = number, self.asked
        self.asked = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._asked_before is not None or not self._waits:
            raise self.asked

    def _hear_again(self, show: Callable[[Any], None], unraisable: "sys.UnraisableHookArgs") -> None:
        """Sends a signal again that was raised where Python drops what is raised.

        Such places are `__del__` and callbacks: one of JAX's runs in each collection of garbage.

        show: does what is done with other errors there.
        """
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            show(unraisable)
            return
        self.asked = self._asked_before
        self._again = threading.Timer(AGAIN_AFTER_S, _send_to_self, (self._number,))
        self._again.daemon = True
        self._again.start()

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


def _terminate(number: int, frame: object) -> None:
    """Whatever listens to SIGTERM, JAX included where a run has several processes, hears SIGHUP so, too."""
    signal.raise_signal(signal.SIGTERM)


def _send_to_self(number: int) -> None:
    """Sends this process a signal, from any thread."""
    if os.name == "nt":
        signal.raise_signal(number)  # os.kill would end the process there, whatever listens
    else:
        os.kill(os.getpid(), number)  # wakes the main thread where it sleeps


def stopped_by(error: BaseException) -> type[KeyboardInterrupt] | None:
    """The signal that led to an error, if one did: libraries in C may raise an error of their own for it.

    Args:
        error: that ended the run.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return type(seen)
        seen = seen.__cause__ or seen.__context__
    return None
