"""Where numbers go: metrics.jsonl and trackers. Only the first process writes."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import written_atomically
from sparsepo_jax.sharding.processes import as_the_first
from sparsepo_jax.train.trackers import About, Tracker, open_tracker


class MetricsLog:
    """Adds a line to metrics.jsonl and a point to each curve with every `write`. Use it as a context manager.

    A stage that continues from a checkpoint does the steps behind it once more. What was written of them
    before is taken out of metrics.jsonl. The time of each line goes on from that of the last line before it.

    Attributes:
        earlier_s: seconds that the stage took in earlier runs, as far as its lines say so; known to the first
            process alone.
    """

    def __init__(self, about: About, trackers: Sequence[str], *, evaluates_again: bool = False):
        """Opens the files, and the run's entry in each tracker.

        Args:
            about: the run, and the stage that will write.
            trackers: names, see train/trackers.
            evaluates_again: whether the step that the stage continues after is evaluated (once more).

        Raises:
            UserError: in all processes, if the package of a tracker is not installed, or the tracker refuses
                the run.
        """
        self.earlier_s = 0.0
        self._start_s = time.time()
        self._file: TextIO | None = None
        self._trackers: dict[str, Tracker] = {}
        refusal: UserError | None = None
        if jax.process_index() == 0:
            path = about.output_dir / "metrics.jsonl"
            _drop_steps(path, about.stage, about.after_step, evaluates_again)
            self.earlier_s = _time_so_far(path, about.stage)
            refusal = self._open_trackers(about, trackers)
            if refusal is None:
                self._file = path.open("a", encoding="utf-8")
        if as_the_first(np.array(refusal is not None)):
            raise refusal or UserError("the first process of this run says which tracker does not start")

    def _open_trackers(self, about: About, names: Sequence[str]) -> UserError | None:
        """Opens all of them; if one refuses, those before it are closed, and its reason is returned."""
        try:
            for name in names:
                self._trackers[name] = open_tracker(name, about)
        except UserError as error:
            for name in list(self._trackers):
                self._ask(name, lambda tracker: tracker.close(failed=True))
            return error
        return None

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step.

        Args:
            stage: in front of all names, so that "loss" is "po/loss".
            step: from 1.
            metrics: numbers by name. One that is not finite is null in metrics.jsonl, since JSON has no NaN.
        """
        if self._file is None:
            return
        seconds = self.earlier_s + time.time() - self._start_s
        row: dict[str, Any] = {"stage": stage, "step": step, "time_s": round(seconds, 3)}
        row |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        points = {f"{stage}/{name}": float(value) for name, value in metrics.items()}
        for name in list(self._trackers):
            self._ask(name, lambda tracker: tracker.write(step, points))

    def _ask(self, name: str, what: Callable[[Tracker], None]) -> None:
        """Lets a tracker do something; one that fails is left alone from then on, and the run goes on."""
        try:
            what(self._trackers[name])
        except Exception as error:  # of any kind, from a program that is not ours
            del self._trackers[name]
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            print(f"note: {name} failed and gets no more metrics ({reason}); metrics.jsonl has them all")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        failed = exception[0] is not None
        for name in list(self._trackers):
            self._ask(name, lambda tracker: tracker.close(failed=failed))


def _drop_steps(path: Path, stage: str, after_step: int, evaluates_again: bool) -> None:
    """Takes out the stage's lines of later steps, and half a line, which a killed run may leave.

    Of the step itself the evaluation goes, if it is done again.
    """
    if not path.exists():
        return
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    after = b"".join(line for line in lines if not _is_redone(line, stage, after_step, evaluates_again))
    if after and not after.endswith(b"\n"):
        after += b"\n"
    if after != before:
        with written_atomically(path) as file:
            file.write(after)


def _time_so_far(path: Path, stage: str) -> float:
    """The time of the stage's last line, seconds; 0 where it has none."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            row = json.loads(line)
            if row["stage"] == stage:
                return float(row["time_s"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0.0


def _is_redone(line: bytes, stage: str, after_step: int, evaluates_again: bool) -> bool:
    try:
        row = json.loads(line)
        if row["stage"] != stage:
            return False
        if row["step"] == after_step and evaluates_again:
            return any(name.startswith("eval") for name in row)
        return bool(row["step"] > after_step)
    except (ValueError, KeyError, TypeError, AttributeError):
        return not line.endswith(b"\n")
