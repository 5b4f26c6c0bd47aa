"""How a candidate lets itself be timed from outside: a process of its own that does one step for each line on
its stdin."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

_ANSWERS = sys.stdout
sys.stdout = sys.stderr  # keeps what libraries print out of the answers
Work = Callable[[], float | dict[str, Any]]


def answer(**facts) -> None:
    print(json.dumps(facts), file=_ANSWERS, flush=True)


def peak_mb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def serve(steps: Work | Mapping[str, Work], **about) -> None:
    """Reports once that it is ready; then does the step that each line of stdin names and answers with its
    seconds, its loss (or the facts that it returns) and the process's memory.

    An error ends that step alone: its answer says why.
    """
    named = steps if isinstance(steps, Mapping) else {"": steps}
    answer(ready=True, **about)
    for line in sys.stdin:
        began_s = time.perf_counter()
        try:
            result = named[line.strip()]()
        except Exception as error:
            answer(error=first_line(error))
            continue
        facts = result if isinstance(result, dict) else {"loss": result}
        answer(seconds=time.perf_counter() - began_s, peak_mb=peak_mb(), **facts)


class LossBefore:
    """Gives the loss of the step before, so that a device has its next step while the last one's loss is
    fetched, as in training."""

    def __init__(self):
        self._before: Any = None

    def __call__(self, loss: Any) -> float:
        """loss: of the step that was just handed over, an array on the device."""
        before, self._before = self._before, loss
        return float(loss if before is None else before)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
