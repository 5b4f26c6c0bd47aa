"""What survives a lost machine: training states under a directory, written behind the run's back, and states that are saved once.

A training state holds policy, masks, optimizer and step. Random draws are keyed by (seed, step, row) and batches are a plan over the step, so
the step is RNG and data position, too; both are written beside it for the reader. Orbax writes atomically: a checkpoint is whole or absent. What a
disk does to it later is found out by checksums of the arrays: a damaged state is never used.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.sharding.processes import wait_for_all

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


@jax.jit
def _sums(state: Any) -> list[jax.Array]:
    """A checksum of each array, uint32: the sum of its elements' bits, each times an odd number that its place gives. Sums of integers do not depend
    on how an array is cut over devices."""

    def of(x: jax.Array) -> jax.Array:
        if x.dtype in (bool, jnp.int4, jnp.uint4):
            bits = x
        else:
            bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits.astype(jnp.uint32) * (place * jnp.uint32(2654435761) * 2 + 1), dtype=jnp.uint32)

    return [of(x) for x in jax.tree.leaves(state)]


def checksums(state: Any) -> dict[str, int]:
    """By path: jax.tree_util.keystr."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
    return dict(zip(paths, map(int, jax.device_get(_sums(state))), strict=True))


def weights_digest(weights: Any) -> str:
    """16 hex digits that change when any weight does, made where the weights lie. The same on all meshes."""
    return hashlib.sha256(json.dumps(checksums(weights), sort_keys=True).encode()).hexdigest()[:16]


def _damage(state: Any, expected: Mapping[str, int] | None) -> str | None:
    """What is wrong with a state that was read, None if it is what was written (or it was written without checksums)."""
    if expected is None:
        return None
    wrong = [path for path, number in checksums(state).items() if expected.get(path) != number]
    return (
        f"{', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} not as written"
        if wrong
        else None
    )


# Not the file's fault: memory, rights.
_OTHER_FAULTS = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Checkpoints:
    """The states of one training stage. `about` (plain JSON values) is written into each checkpoint. note(text): a line for the user."""

    def __init__(
        self,
        directory: Path,
        policy: SavePolicy,
        about: Mapping[str, Any],
        note: Callable[[str], None] = print,
    ):
        self._policy, self._about, self._note, self._saved_at_s = policy, dict(about), note, time.monotonic()
        last = ocp.training.preservation_policies.LatestN(policy.keep)
        keep = [last] if policy.best_metric is None else [last, self._best()]
        self._orbax = ocp.training.Checkpointer(
            directory.resolve(),
            preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    def _best(self):
        name, sign = self._policy.best_metric, 1.0 if self._policy.best_mode == "max" else -1.0
        return ocp.training.preservation_policies.BestN(
            get_metric_fn=lambda metrics: sign * metrics[name], n=1, keep_checkpoints_without_metrics=False
        )

    @property
    def latest_step(self) -> int | None:
        return None if self._orbax.latest is None else self._orbax.latest.step

    def is_due(self, step: int) -> bool:
        """Whether the policy asks for a checkpoint after this step. The clock is this process's: with several hosts use every_steps."""
        by_steps = self._policy.every_steps is not None and step % self._policy.every_steps == 0
        minutes = self._policy.every_minutes
        by_time = (
            minutes is not None
            and jax.process_count() == 1
            and time.monotonic() - self._saved_at_s > 60 * minutes
        )
        return by_steps or by_time

    @property
    def follow_evaluation(self) -> bool:
        """Whether each evaluation is saved, since it may be the best."""
        return self._policy.best_metric is not None

    def warm_up(self, state: Any) -> None:
        """Compiles what `save` needs of the device, so that the first checkpoint does not hold up training."""
        checksums(state)

    def save(self, state: Any, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; the arrays are copied to the host before this returns, so the state may be donated."""
        if step == self.latest_step:
            return
        self._saved_at_s = time.monotonic()
        wanted = self._policy.best_metric
        if metrics is not None and wanted is not None and wanted not in metrics:
            raise UserError(
                f"checkpoint.best.metric: no metric {wanted!r}; there are {', '.join(sorted(metrics))}"
            )
        kept = {wanted: float(metrics[wanted])} if metrics is not None and wanted is not None else None
        about = self._about | {
            "step": step,
            "data_position": {"next_batch": step},
            "rng": {"keyed_by": ["seed", "step", "row"]},
        }
        self._orbax.save_checkpointables_async(
            step, {"state": state}, metrics=kept, custom_metadata=about | {"checksums": checksums(state)}
        )

    def restore(self, like: Any) -> Any | None:
        """The last state that is whole, laid out as `like` (a state or its abstract form); None: there is none yet. A damaged one is said and
        put aside, as DIRECTORY/../damaged_STEP. UserError: all are damaged."""
        said = []
        while (last := self._orbax.latest) is not None:
            state, damage = None, None
            try:
                state = self._orbax.load_checkpointables(last.step, {"state": abstract(like)})["state"]
                about = self._orbax.checkpointables_metadata(last.step).custom_metadata
                damage = _damage(state, (about or {}).get("checksums"))
            except _OTHER_FAULTS:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds
                damage = " ".join(str(error).split())[:200] or type(error).__name__
            if not _anywhere(damage is not None):
                # Restored buffers may not be donatable; a copy made by XLA is. It lies as `like`, or the step would be compiled once more.
                return jax.jit(
                    lambda x: jax.tree.map(jnp.copy, x),
                    out_shardings=jax.tree.map(lambda x: x.sharding, like),
                )(state)
            said.append(f"checkpoint {last.path} is damaged ({damage or 'as another process reads it'})")
            self._put_aside(last.path)
            self._note(
                said[-1]
                + (f": the one of step {self.latest_step} is used" if self.latest_step is not None else "")
            )
        if said:
            raise UserError(
                f"{said[-1]}, and there is no older one; delete {self._orbax.directory} to begin the stage anew, or bring back a copy"
            )
        return None

    def _put_aside(self, path: Path) -> None:
        if jax.process_index() == 0:
            aside = self._orbax.directory.parent / f"damaged_{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        wait_for_all("damaged checkpoint put aside")
        self._orbax.reload()

    def wait(self) -> None:
        """Until everything is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        self._orbax.close()  # which waits, too


def _anywhere(here: bool) -> bool:
    """Whether it is so in any process of the run."""
    return (
        bool(np.any(multihost_utils.process_allgather(np.array(here)))) if jax.process_count() > 1 else here
    )


def save_once(path: Path, state: Any) -> None:
    """A state that does not change again (the policy and masks as po began). Kept if it is there already: a resumed run must not move it."""
    if not path.exists():
        ocp.save(
            path.resolve(), state, custom_metadata={"checksums": checksums(state)}
        )  # Orbax takes absolute paths only


def load_once(path: Path, like: Any) -> Any:
    """The inverse of save_once, laid out as `like`. UserError: it is damaged."""
    try:
        state = ocp.load(path.resolve(), abstract(like))
        damage = _damage(state, (ocp.metadata(path.resolve()).custom_metadata or {}).get("checksums"))
    except _OTHER_FAULTS:
        raise
    except Exception as error:
        damage = " ".join(str(error).split())[:200] or type(error).__name__
    if _anywhere(damage is not None):
        raise UserError(
            f"{path} is damaged ({damage or 'as another process reads it'}); bring back a copy, or delete {path.parent} to run the stage anew"
        )
    return state
