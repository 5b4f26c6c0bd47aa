"""The loop around the update: data in, metrics out, evaluation and checkpoints in between."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from sparsepo_jax.core.stop import Stop
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.train.best import Best
from sparsepo_jax.train.checkpoint import Checkpoints
from sparsepo_jax.train.progress import BatchCounts, Checks, Meter, Reporting, count
from sparsepo_jax.train.step import State


class Work(NamedTuple):
    """What a stage trains.

    Attributes:
        stage: its name, "sft" or "po".
        update: `update(state, reference, batch) -> (state, metrics, finite)`, see train/step; it may take
            the state's memory.
        programs: how many programs of `update` this run has compiled so far. All are compiled before the
            first step, so that a further one is worth a note.
        reference: the frozen weights that `update` is given; None: there are none.
        batches: this process's host batches, the first one that of the state's next step.
        put: places a host batch on the devices.
        total_steps: of the whole stage, steps of earlier runs included.
    """

    stage: str
    update: Callable[[State, Any, Any], tuple[State, dict[str, jax.Array], jax.Array]]
    programs: Callable[[], int]
    reference: Any
    batches: Iterable[PairBatch]
    put: Callable[[PairBatch], Any]
    total_steps: int


class Evaluating(NamedTuple):
    """How a stage is evaluated between its steps.

    Attributes:
        scores: `scores(state)` gives metrics by the names that they are reported as, such as "eval/loss".
        every_steps: steps between two evaluations; the last step is evaluated in any case.
        best: follows a metric, and says when to stop for want of a better value. None: nothing does.
    """

    scores: Callable[[State], dict[str, float]]
    every_steps: int
    best: Best | None = None

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether the state after this step is evaluated.

        Args:
            step: 0 if the stage begins.
            total_steps: of the stage.
        """
        return step > 0 and (step % self.every_steps == 0 or step == total_steps)

    def is_missing(self, step: int, total_steps: int) -> bool:
        """Whether a run that continues from a step has yet to evaluate it: it was stopped in the middle.

        Args:
            step: 0 if the stage begins.
            total_steps: of the stage.
        """
        return self.best is not None and self.is_due(step, total_steps) and not self.best.has_seen(step)


class Stopping(NamedTuple):
    """How a stage is asked to stop early.

    Attributes:
        stop: holds back signals that reach this process, until a step is complete.
        should_stop: the exception that the run was asked for, in agreement with all processes; None: go on.
    """

    stop: Stop
    should_stop: Callable[[], type[KeyboardInterrupt] | None]


def run_training(
    work: Work,
    state: State,
    *,
    reporting: Reporting,
    checks: Checks,
    stopping: Stopping,
    checkpoints: Checkpoints,
    evaluation: Evaluating | None = None,
) -> State:
    """Trains from `state.step` to `work.total_steps`, or until the evaluations have not got better for long.

    While the device works on a step, the next batch is put onto it. A state is saved only once its metrics
    have been seen.

    Args:
        work: what is trained.
        state: where to begin. Its memory is taken.
        reporting: where numbers and notes go.
        checks: which steps are refused.
        stopping: how the run is asked to stop.
        checkpoints: where states are saved. Closed at the end.
        evaluation: what is measured between steps. None: nothing.

    Returns:
        The last state, which is saved.

    Raises:
        UserError: a step does not pass the checks.
        KeyboardInterrupt: the run was asked to stop; the state is saved.
    """
    step = int(state.step)
    best = None if evaluation is None else evaluation.best
    meter = Meter(work.stage, state, reporting, checks, total=work.total_steps, programs=work.programs())
    batches = iter(work.batches)

    def put_next() -> tuple[Any, BatchCounts] | None:
        if step >= work.total_steps or (best is not None and best.should_stop):
            return None
        batch = next(batches)
        return work.put(batch), count(batch)

    def save() -> None:
        with meter.paused():
            checkpoints.save(state, step)

    def evaluate(evaluation: Evaluating) -> None:
        try:
            with meter.paused():
                scores = evaluation.scores(state)
        except KeyboardInterrupt:
            save()
            meter.write_rest(step)
            raise
        reporting.write(work.stage, step, scores)
        if best is not None:
            best.see(step, scores)

    try:
        with stopping.stop.later():
            if evaluation is not None and evaluation.is_missing(step, work.total_steps):
                evaluate(evaluation)
            ahead = put_next()
            while ahead is not None:
                batch, counts = ahead
                began_s = time.perf_counter()
                state, metrics, finite = work.update(state, work.reference, batch)
                step += 1
                meter.note_compiled(step, work.programs(), time.perf_counter() - began_s)
                ahead = put_next()
                meter.add(step, metrics, finite, counts)
                is_evaluated = False
                if evaluation is not None and evaluation.is_due(step, work.total_steps):
                    evaluate(evaluation)
                    is_evaluated = True
                if ahead is None or (best is not None and best.should_stop):
                    break
                if checkpoints.is_due(step) or (is_evaluated and checkpoints.follow_evaluation):
                    save()
                if (exception := stopping.should_stop()) is not None:
                    _save_to_stop(save, checkpoints, meter, step)
                    raise exception
            save()
            meter.write_rest(step)
            if best is not None and best.should_stop and step < work.total_steps:
                meter.note(f"stopped early after step {step} of {work.total_steps}: {best.words()}")
    finally:
        meter.close()
        checkpoints.close()
    return state


def _save_to_stop(save: Callable[[], None], checkpoints: Checkpoints, meter: Meter, step: int) -> None:
    """Saves the state whole, writes the steps that no later line would be about, and says so."""
    began_s = time.perf_counter()
    save()
    checkpoints.wait()
    meter.write_rest(step)
    meter.note(f"stopped after step {step}, saved in {time.perf_counter() - began_s:.1f} s")
