"""How a candidate lets itself be timed from outside: a process of its own that does one step for each line on
its stdin."""

import json
import resource
import sys
import time
from collections.abc import Callable

_ANSWERS = sys.stdout
sys.stdout = sys.stderr  # keeps what libraries print out of the answers


def answer(**facts) -> None:
    print(json.dumps(facts), file=_ANSWERS, flush=True)


def peak_mb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def serve(step: Callable[[], float], **about) -> None:
    """Reports once that it is ready; then answers each line of stdin with the seconds and the loss of a
    step."""
    answer(ready=True, **about)
    for _ in sys.stdin:
        began_s = time.perf_counter()
        loss = step()
        answer(seconds=time.perf_counter() - began_s, loss=loss, peak_mb=peak_mb())
