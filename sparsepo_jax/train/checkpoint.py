"""What survives a lost machine: training states that are saved while the run goes on, and states saved once.

A training state holds policy, masks, optimizer and step. Random draws are keyed by (seed, step, row) and
batches are a plan over the step, so that the step fixes random numbers and data position, too; both are
written beside the state for the reader. Orbax writes atomically: a checkpoint is complete or absent. What a
disk does to it later is found by checksums of the arrays: a damaged state is never used.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.host_memory import is_on_host
from sparsepo_jax.sharding.processes import wait_for_all
from sparsepo_jax.train.best import Best
from sparsepo_jax.train.checksums import checksums
from sparsepo_jax.train.other_arrays import other_arrays

# What Orbax logs of an error that it then raises where the state is waited for.
_RAISED_LATER = re.compile(
    r"_SignalingThread\.run\(\) raised|Handler Commit operations or the Commit callback|Save Finalize thread"
)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of Orbax says what nobody else does; if so, without the traceback of its threads."""
    record.exc_info = record.exc_text = None
    return not _RAISED_LATER.search(record.getMessage())


logging.getLogger("absl").setLevel(logging.ERROR)
logging.getLogger("absl").addFilter(_is_news)


class SavePolicy(NamedTuple):
    """When states are saved and which of them stay.

    Attributes:
        every_steps: steps between two checkpoints; None: never by steps.
        every_minutes: minutes between two checkpoints; None: never by time.
        keep: how many of the last checkpoints stay.
    """

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2


def abstract(state: Any) -> Any:
    """A state's shapes, types and shardings.

    Without shardings Orbax would restore arrays onto the devices that wrote them.

    Args:
        state: arrays, or their abstract form already.
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _damage(state: Any, expected: Mapping[str, int] | None) -> str | None:
    """What is wrong with a state that was read. None: nothing, or it was written without checksums."""
    if expected is None:
        return None
    wrong = [path for path, number in checksums(state).items() if expected.get(path) != number]
    if not wrong:
        return None
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{', '.join(wrong[:3])}{more} not as written"


def _load(load: Callable[[], tuple[Any, Mapping[str, Any] | None]]) -> tuple[Any, str | None]:
    """(state, what is wrong with it or None). load() gives (state, metadata)."""
    try:
        state, metadata = load()
        return state, _damage(state, (metadata or {}).get("checksums"))
    except Exception as error:  # Orbax and TensorStore raise many kinds
        if _is_from_elsewhere(error):
            raise
        return None, " ".join(str(error).split())[:200] or type(error).__name__


# Memory, permissions, the limit on open files, a network that is away: not the file's fault.
_OTHER_FAULTS = (KeyboardInterrupt, MemoryError, PermissionError, jax.errors.JaxRuntimeError)
_OTHER_NUMBERS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)
_OTHER_WORDS = re.compile("|".join(["Permission denied", *map(os.strerror, _OTHER_NUMBERS)]))


def _is_from_elsewhere(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says nothing of the state that was to be read."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _OTHER_FAULTS) or getattr(seen, "errno", None) in _OTHER_NUMBERS:
            return True
        if _OTHER_WORDS.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


_ELSEWHERE = "as another process reads it"


class _KeepBest:
    """Orbax's preservation policy for the checkpoint of the best step."""

    def __init__(self, best: Best):
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self._best.step for checkpoint in checkpoints]


class Checkpoints:
    """The states of one training stage."""

    def __init__(
        self,
        directory: Path,
        policy: SavePolicy,
        about: Mapping[str, Any],
        note: Callable[[str], None] = print,
        best: Best | None = None,
    ):
        """Opens a directory, which is made if it is missing. Starts the clock of `every_minutes`.

        Args:
            directory: where checkpoints are, one a subdirectory named by its step.
            policy: when to save and what to keep.
            about: plain JSON values that are written into each checkpoint.
            note: is given lines for the user.
            best: the best state so far: its checkpoint stays as well. None: no such one.
        """
        self._policy = policy
        self._best = best
        self._about = dict(about)
        self._note = note
        self._saved_at_s = time.monotonic()
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(policy.keep)]
        if best is not None:
            keep.append(_KeepBest(best))
        self._orbax = ocp.training.Checkpointer(
            directory.resolve(),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the last checkpoint, None if there is none."""
        return None if self._orbax.latest is None else self._orbax.latest.step

    def is_due(self, step: int) -> bool:
        """Whether the policy asks for a checkpoint now.

        Clocks differ between processes, so that a run of several saves by steps alone.

        Args:
            step: the step that was just done.
        """
        if self._policy.every_steps is not None and step % self._policy.every_steps == 0:
            return True
        if self._policy.every_minutes is None or jax.process_count() > 1:
            return False
        return time.monotonic() - self._saved_at_s > 60 * self._policy.every_minutes

    @property
    def follow_evaluation(self) -> bool:
        """Whether each evaluation is saved, since it may be the best."""
        return self._best is not None

    def warm_up(self, state: Any) -> None:
        """Compiles what `save` needs of the device, so that the first checkpoint does not hold up training.

        Args:
            state: one of those that will be saved.
        """
        checksums(state)

    def save(self, state: Any, step: int) -> None:
        """Starts writing, unless the step is saved already.

        The arrays are copied to the host before this returns, so that the state may be donated.

        Args:
            state: to be saved.
            step: its number.
        """
        if step == self.latest_step:
            return
        self._saved_at_s = time.monotonic()
        about = self._about | {
            "step": step,
            "data_position": {"next_batch": step},
            "rng": {"keyed_by": ["seed", "step", "row"]},
            "checksums": checksums(state),
            "best": None if self._best is None else self._best.record(),
        }
        self._orbax.save_checkpointables_async(step, {"state": state}, custom_metadata=about)

    def restore(self, like: Any) -> Any | None:
        """The last state that is not damaged.

        Newer ones, which are damaged, are told and renamed to DIRECTORY/../damaged_STEP.

        Args:
            like: a state, or its abstract form, of the wanted shapes, types and shardings.

        Returns:
            The state; None: there is no checkpoint yet.

        Raises:
            UserError: all checkpoints are damaged. They stay where they are.
        """
        damaged: list[tuple[Any, str]] = []  # the path of a checkpoint, and what is wrong with it
        for checkpoint in sorted(self._orbax.checkpoints, key=lambda checkpoint: -checkpoint.step):
            state, damage = self._read(checkpoint.step, like)
            if not _anywhere(damage is not None):
                for path, reason in damaged:
                    self._note(
                        f"checkpoint {path} is damaged ({reason}): the one of step {checkpoint.step} is used"
                    )
                    self._put_aside(path)
                self._restore_best(checkpoint.step)
                return _donatable(state, like)
            self._refuse_other_arrays(checkpoint.step, like)
            damaged.append((checkpoint.path, damage or _ELSEWHERE))
        if damaged:
            path, reason = damaged[-1]
            raise UserError(
                f"checkpoint {path} is damaged ({reason}), and there is no older one; delete "
                f"{self._orbax.directory} to begin the stage anew, or bring back a copy"
            )
        return None

    def load(self, step: int, like: Any) -> Any:
        """The state of a step that was saved.

        Args:
            step: its number.
            like: a state, or its abstract form, of the wanted shapes, types and shardings.

        Raises:
            UserError: it is damaged.
        """
        state, damage = self._read(step, like)
        if _anywhere(damage is not None):
            self._refuse_other_arrays(step, like)
            raise UserError(
                f"the checkpoint of step {step} in {self._orbax.directory} is damaged "
                f"({damage or _ELSEWHERE}); bring back a copy, or remove {step} from there: the run then "
                "keeps its last weights, as po.keep=last does"
            )
        return state

    def _read(self, step: int, like: Any) -> tuple[Any, str | None]:
        """(state, what is wrong with it or None)."""

        def load() -> tuple[Any, Mapping[str, Any] | None]:
            state = self._orbax.load_checkpointables(step, {"state": abstract(like)})["state"]
            return state, self._orbax.checkpointables_metadata(step).custom_metadata

        return _load(load)

    def _refuse_other_arrays(self, step: int, like: Any) -> None:
        _refuse_other_arrays(
            self._orbax.directory / str(step),
            lambda: self._orbax.checkpointables_metadata(step).metadata["state"],
            like,
        )

    def _restore_best(self, step: int) -> None:
        """Goes on with the best state that the checkpoint of this step knows."""
        if self._best is None:
            return
        self._best.restore((self._orbax.checkpointables_metadata(step).custom_metadata or {}).get("best"))
        best = self._best.step
        if best is not None and best not in [checkpoint.step for checkpoint in self._orbax.checkpoints]:
            self._best.forget()
            self._note(f"the checkpoint of the best step, {best}, is gone: the best is looked for anew")

    def _put_aside(self, path: Any) -> None:
        if jax.process_index() == 0:
            aside = self._orbax.directory.parent / f"damaged_{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        wait_for_all("damaged checkpoint put aside")
        self._orbax.reload()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self._orbax.close()


def _donatable(state: Any, like: Any) -> Any:
    """A copy made by XLA: buffers that Orbax restores may not be donatable.

    It has the shardings of `like`; otherwise the step would be compiled once more. What lies on the host
    stays there.
    """
    leaves, tree = jax.tree.flatten(state)
    shardings = [x.sharding for x in jax.tree.leaves(like)]
    places = [n for n, x in enumerate(leaves) if not is_on_host(x)]
    copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=[shardings[n] for n in places])
    for n, x in zip(places, copy([leaves[n] for n in places]), strict=True):
        leaves[n] = x
    return jax.tree.unflatten(tree, leaves)


def _anywhere(here: bool) -> bool:
    """Whether it is so in any process of the run."""
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.array(here))))


def _refuse_other_arrays(path: Any, stored: Callable[[], Any], like: Any) -> None:
    """UserError if a state is not damaged, but another one than is wanted: nobody should delete it."""
    problem = other_arrays(stored, like)
    if _anywhere(problem is not None):
        raise UserError(
            f"{path} holds other weights than this version makes of these settings: it "
            f"{problem or _ELSEWHERE}; go on with the version that wrote it (CHANGELOG), "
            "or begin anew in another output_dir"
        )


def save_once(path: Path, state: Any) -> None:
    """Saves a state that does not change again, such as the policy and masks as po began.

    Args:
        path: a directory. What is there already stays: a resumed run must not move it.
        state: a tree of arrays.
    """
    if not path.exists():
        # Orbax takes absolute paths only.
        ocp.save(path.resolve(), state, custom_metadata={"checksums": checksums(state)})


def load_once(path: Path, like: Any) -> Any:
    """The inverse of save_once.

    Args:
        path: the directory.
        like: a state, or its abstract form, of the wanted shapes, types and shardings.

    Raises:
        UserError: the state is gone, or damaged.
    """
    if _anywhere(not path.exists()):
        raise UserError(
            f"{path} is gone; bring back a copy, or delete {path.parent.parent / 'stages.json'} and run the "
            f"stage {path.parent.name} again, which goes on from its last checkpoint, if it has one"
        )

    def load() -> tuple[Any, Mapping[str, Any] | None]:
        return ocp.load(path.resolve(), abstract(like)), ocp.metadata(path.resolve()).custom_metadata

    state, damage = _load(load)
    if _anywhere(damage is not None):
        _refuse_other_arrays(path, lambda: ocp.metadata(path.resolve()).metadata, like)
        raise UserError(
            f"{path} is damaged ({damage or _ELSEWHERE}); bring back a copy, or delete {path.parent} and "
            f"stages.json beside it to run the stage {path.parent.name} anew"
        )
    return state
