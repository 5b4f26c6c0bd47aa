"""The loop around the update: data in, metrics out, evaluation and checkpoints in between."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from sparsepo_jax.core.stop import Stop
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.train.checkpoint import Checkpoints
from sparsepo_jax.train.progress import BatchCounts, Checks, Meter, Reporting, count
from sparsepo_jax.train.step import TrainState


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
    update: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array], jax.Array]]
    programs: Callable[[], int]
    reference: Any
    batches: Iterable[PairBatch]
    put: Callable[[PairBatch], Any]
    total_steps: int


class Evaluating(NamedTuple):
    """How a stage is evaluated between its steps.

    Attributes:
        scores: `scores(state)` gives metrics by name; they are reported as "eval/NAME".
        every_steps: steps between two evaluations; the last step is evaluated in any case.
    """

    scores: Callable[[TrainState], dict[str, float]]
    every_steps: int


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
    state: TrainState,
    *,
    reporting: Reporting,
    checks: Checks,
    stopping: Stopping,
    checkpoints: Checkpoints,
    evaluation: Evaluating | None = None,
) -> TrainState:
    """Trains from `state.step` to `work.total_steps`.

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
    scores: dict[str, float] | None = None  # of this step's evaluation
    meter = Meter(work.stage, state, reporting, checks, total=work.total_steps, programs=work.programs())
    batches = iter(work.batches)

    def put_next() -> tuple[Any, BatchCounts] | None:
        if step >= work.total_steps:
            return None
        batch = next(batches)
        return work.put(batch), count(batch)

    def save() -> None:
        meter.catch_up()
        checkpoints.save(state, step, scores)

    try:
        with stopping.stop.later():
            ahead = put_next()
            while ahead is not None:
                batch, counts = ahead
                began_s = time.perf_counter()
                state, metrics, finite = work.update(state, work.reference, batch)
                step += 1
                scores = None
                meter.note_compiled(step, work.programs(), time.perf_counter() - began_s)
                ahead = put_next()
                meter.add(step, metrics, finite, counts)
                if evaluation is not None and (step % evaluation.every_steps == 0 or ahead is None):
                    try:
                        scores = {f"eval/{name}": x for name, x in evaluation.scores(state).items()}
                    except KeyboardInterrupt:
                        save()
                        raise
                    reporting.write(work.stage, step, scores)
                if ahead is None:
                    break
                if checkpoints.is_due(step) or (scores is not None and checkpoints.follow_evaluation):
                    save()
                if (exception := stopping.should_stop()) is not None:
                    began_s = time.perf_counter()
                    save()
                    checkpoints.wait()
                    meter.note(f"stopped after step {step}, saved in {time.perf_counter() - began_s:.1f} s")
                    raise exception
            save()
    finally:
        meter.close()
        checkpoints.close()
    return state
