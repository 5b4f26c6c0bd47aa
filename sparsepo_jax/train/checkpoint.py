"""What survives a lost machine: training states under a directory, written behind the run's back, and states that are saved once.

A training state holds policy, masks, optimizer and step. Random draws are keyed by (seed, step, row) and batches are a plan over the step, so
the step is RNG and data position, too; both are written beside it for the reader. Orbax writes atomically: a checkpoint is whole or absent.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from sparsepo_jax.core.errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)


class SavePolicy(NamedTuple):
    """every_steps, every_minutes: None means never. keep: the last so many. best_metric ("max" or "min" by best_mode) keeps one more."""

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2
    best_metric: str | None = None
    best_mode: str = "max"


def abstract(state: Any) -> Any:
    """Shapes, types and shardings: without shardings Orbax would restore onto the devices that wrote."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


class Checkpoints:
    """The states of one training stage. `about` (plain JSON values) is written into each checkpoint."""

    def __init__(self, directory: Path, policy: SavePolicy, about: Mapping[str, Any]):
        self._policy, self._about, self._saved_at_s = policy, dict(about), time.monotonic()
        last = ocp.training.preservation_policies.LatestN(policy.keep)
        keep = [last] if policy.best_metric is None else [last, self._best()]
        self._orbax = ocp.training.Checkpointer(
            directory.resolve(), preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1), cleanup_tmp_directories=True,
        )

    def _best(self):
        name, sign = self._policy.best_metric, 1.0 if self._policy.best_mode == "max" else -1.0
        return ocp.training.preservation_policies.BestN(
            get_metric_fn=lambda metrics: sign * metrics[name], n=1, keep_checkpoints_without_metrics=False)

    @property
    def latest_step(self) -> int | None:
        return None if self._orbax.latest is None else self._orbax.latest.step

    def is_due(self, step: int) -> bool:
        """Whether the policy asks for a checkpoint after this step. The clock is this process's: with several hosts use every_steps."""
        by_steps = self._policy.every_steps is not None and step % self._policy.every_steps == 0
        minutes = self._policy.every_minutes
        by_time = minutes is not None and jax.process_count() == 1 and time.monotonic() - self._saved_at_s > 60 * minutes
        return by_steps or by_time

    @property
    def follow_evaluation(self) -> bool:
        """Whether each evaluation is saved, since it may be the best."""
        return self._policy.best_metric is not None

    def save(self, state: Any, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; the arrays are copied to the host before this returns, so the state may be donated."""
        if step == self.latest_step:
            return
        self._saved_at_s = time.monotonic()
        wanted = self._policy.best_metric
        if metrics is not None and wanted is not None and wanted not in metrics:
            raise UserError(f"checkpoint.best.metric: no metric {wanted!r}; there are {', '.join(sorted(metrics))}")
        kept = {wanted: float(metrics[wanted])} if metrics is not None and wanted is not None else None
        about = self._about | {"step": step, "data_position": {"next_batch": step}, "rng": {"keyed_by": ["seed", "step", "row"]}}
        self._orbax.save_checkpointables_async(step, {"state": state}, metrics=kept, custom_metadata=about)

    def restore(self, like: Any) -> Any:
        """The last state, laid out as `like` (a state or its abstract form)."""
        restored = self._orbax.load_checkpointables(self.latest_step, {"state": abstract(like)})["state"]
        # Restored buffers may not be donatable; a copy made by XLA is.
        return jax.jit(lambda x: jax.tree.map(jax.numpy.copy, x))(restored)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._orbax.close()


def save_once(path: Path, state: Any) -> None:
    """A state that does not change again (the policy and masks as po began). Kept if it is there already: a resumed run must not move it."""
    if not path.exists():
        ocp.save(path.resolve(), state)  # Orbax takes absolute paths only


def load_once(path: Path, like: Any) -> Any:
    """The inverse of save_once, laid out as `like`."""
    return ocp.load(path.resolve(), abstract(like))
