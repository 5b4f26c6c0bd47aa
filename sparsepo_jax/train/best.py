"""The best state of a training stage, by a metric of its evaluations, and when to stop for want of a better.

All of it follows from the evaluations done so far. It is written into each checkpoint, so that a run that
continues decides as one that was never interrupted.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError


class Watched(NamedTuple):
    """The metric that says how good a state is.

    Attributes:
        setting: the setting that names the metric, for messages.
        metric: its name among those of an evaluation.
        mode: "max" or "min", which values are the better ones.
        patience: stop after so many evaluations in a row without an improvement; None: never.
        min_delta: an improvement is more than this, in the metric's unit, at least 0.
    """

    setting: str
    metric: str
    mode: str = "max"
    patience: int | None = None
    min_delta: float = 0.0


class Best:
    """Follows a metric from evaluation to evaluation.

    The best state is the first of those with the best value. Whether there was an improvement is measured
    from the last improvement, so that many small steps upwards together are one. A value that is not finite
    is neither.
    """

    def __init__(self, watched: Watched):
        """Knows of no evaluation yet.

        Args:
            watched: the metric, and how long to wait.
        """
        self.watched = watched
        self.step: int | None = None
        self.value: float | None = None
        self._level: float | None = None  # of the last improvement
        self._waited = 0
        self._seen_step: int | None = None

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes over an evaluation.

        Args:
            step: the step whose state was evaluated, from 1.
            metrics: numbers by name.

        Raises:
            UserError: the metric is not among them.
        """
        check_metric(self.watched, metrics)
        value = float(metrics[self.watched.metric])
        self._seen_step = step
        if math.isfinite(value) and (self.value is None or self._gain(value, self.value) > 0):
            self.step, self.value = step, value
        if math.isfinite(value) and (
            self._level is None or self._gain(value, self._level) > self.watched.min_delta
        ):
            self._level, self._waited = value, 0
        else:
            self._waited += 1

    def _gain(self, value: float, than: float) -> float:
        return value - than if self.watched.mode == "max" else than - value

    def has_seen(self, step: int) -> bool:
        """Whether the last evaluation was that of this step.

        Args:
            step: from 1.
        """
        return self._seen_step == step

    @property
    def should_stop(self) -> bool:
        """Whether patience is at its end."""
        return self.watched.patience is not None and self._waited >= self.watched.patience

    def words(self) -> str:
        """What there is to say when patience is at its end."""
        if self.value is None:
            return f"{self.watched.metric} was never a finite number in {self._waited} evaluations"
        more = f" by more than {self.watched.min_delta:g}" if self.watched.min_delta else ""
        times = "evaluation" if self._waited == 1 else "evaluations"
        return (
            f"{self.watched.metric} has not got better{more} in {self._waited} {times}; "
            f"its best is {self.value:.4g}, at step {self.step}"
        )

    def record(self) -> dict[str, Any]:
        """Plain JSON values from which `restore` goes on."""
        return {
            "metric": self.watched.metric,
            "mode": self.watched.mode,
            "step": self.step,
            "value": self.value,
            "level": self._level,
            "waited": self._waited,
            "seen_step": self._seen_step,
        }

    def restore(self, record: Mapping[str, Any] | None) -> None:
        """Goes on from a record; one of another metric, or None, tells nothing.

        Args:
            record: what `record` gave.
        """
        if record is None or (record["metric"], record["mode"]) != (self.watched.metric, self.watched.mode):
            return
        self.step, self.value, self._level = record["step"], record["value"], record["level"]
        self._waited, self._seen_step = record["waited"], record["seen_step"]

    def forget(self) -> None:
        """Looks for the best from here on: the state of the one that was known is gone."""
        self.step = self.value = None


def check_metric(watched: Watched, names: Collection[str]) -> None:
    """Refuses a metric that evaluations do not have.

    Args:
        watched: the metric.
        names: those that there are.

    Raises:
        UserError: it is not among them.
    """
    if watched.metric not in names:
        raise UserError(
            f"{watched.setting}: no metric {watched.metric!r}; there are {', '.join(sorted(names))}"
        )
