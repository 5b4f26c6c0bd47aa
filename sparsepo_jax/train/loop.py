"""The loop around the update: data in, progress and metrics out, evaluation and checkpoints in between."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.train.checkpoint import Checkpoints
from sparsepo_jax.train.step import TrainState

IN_FLIGHT = 2  # steps handed to the device before their metrics are fetched


def run_training(
    *,
    stage: str,
    update: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array], jax.Array]],
    programs: Callable[[], int],
    state: TrainState,
    reference: Any,
    batches: Iterable[PairBatch],
    put: Callable[[PairBatch], Any],
    total_steps: int,
    checkpoints: Checkpoints,
    write: Callable[[str, int, dict[str, float]], None],
    log_every_steps: int,
    stop: Stop,
    should_stop: Callable[[], type[KeyboardInterrupt] | None],
    may_skip: int,
    name_rows: Callable[[int, np.ndarray], str],
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    eval_every_steps: int | None = None,
    unit: str = "pairs",
    watch: Callable[[int, dict[str, float]], Sequence[str]] | None = None,
    check_first: Callable[[dict[str, float], float], None] | None = None,
) -> TrainState:
    """Runs `update` over host batches from state.step to total_steps and returns the last state, which is saved.

    While the device works on a step the next batch is put onto it. programs(): how many programs of `update` this run has compiled; all of them before, so that a further one is said.
    batches start at the state's step. write(stage, step, metrics) is called every log_every_steps (means since the last time) and after
    evaluations. When should_stop() says so, the state is saved and that exception raised; signals that reach this process wait for it.
    may_skip: so many updates of the stage may have a loss or gradient that is not finite; one more is a UserError, and nothing is saved after it.
    name_rows(step, finite [micro-steps, rows]) names the rows that such a step is about.
    watch(step, metrics) is called after each step that was taken, and returns lines to say.
    check_first(metrics, tokens a row) looks at the stage's first step, before anything of it is kept.
    """
    from tqdm import tqdm

    step = start = int(state.step)
    waiting: deque[tuple[int, dict[str, jax.Array], jax.Array, dict[str, float]]] = deque()
    window: list[dict[str, float]] = []
    counted: dict[str, float] = {}
    known_programs = programs()

    def note(text: str) -> None:
        if jax.process_index() == 0:
            tqdm.write(text, file=sys.stderr)

    def count_anew() -> None:
        counted.update(rows=0.0, tokens=0.0, positions=0.0, since_s=time.perf_counter())

    count_anew()
    bar = tqdm(
        total=total_steps,
        initial=start,
        desc=stage,
        unit="step",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        mininterval=0.5,
    )

    skipped = int(state.skipped)

    def fetch() -> None:
        nonlocal skipped
        done, on_device, finite, counts = waiting.popleft()
        for name, count in counts.items():
            counted[name] += count
        metrics = {name: float(value) for name, value in on_device.items()}
        bar.update(1)
        if metrics["skipped"] > skipped:
            skipped = int(metrics["skipped"])
            what = f"{stage}: step {done} has loss {metrics['loss']} and gradient norm {metrics['grad_norm']}, from {name_rows(done, np.asarray(finite))}"
            if skipped > may_skip:
                bar.close()
                raise UserError(
                    f"{what}; look at these rows, lower the learning rate or beta, or let {stage}.skip_nonfinite updates be left out; "
                    "started again, the run continues from its last checkpoint"
                )
            note(f"{what}: left out ({skipped} of at most {may_skip})")
        else:
            if done == 1 and check_first is not None:
                check_first(metrics, counts["tokens"] / counts["rows"])
            window.append(metrics)
            for line in watch(done, metrics) if watch is not None else ():
                note(f"{stage}: {line}")
        seconds = time.perf_counter() - counted["since_s"]
        rates = {f"{unit}_per_s": counted["rows"] / seconds, "tokens_per_s": counted["tokens"] / seconds}
        bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, {rates[f'{unit}_per_s']:.1f} {unit}/s, {rates['tokens_per_s']:.0f} tokens/s",
            refresh=False,
        )
        if window and (done % log_every_steps == 0 or done == total_steps):
            means = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
            write(
                stage,
                done,
                means
                | rates
                | {"real_token_share": counted["tokens"] / counted["positions"], "programs": known_programs},
            )
            window.clear()
            count_anew()

    def next_batch() -> Any:
        batch: PairBatch = next(source)
        real = batch.packing.sequence_RS >= 0
        counts = {"rows": (batch.weight_B > 0).sum(), "tokens": real.sum(), "positions": real.size}
        return put(batch), {name: float(count) * jax.process_count() for name, count in counts.items()}

    def save(found: dict[str, float] | None = None) -> None:
        while waiting:  # a state is kept when its metrics have been seen
            fetch()
        checkpoints.save(state, step, found)

    source: Iterator[PairBatch] = iter(batches)
    try:
        with stop.later():
            found = None
            ahead = next_batch() if step < total_steps else None
            while step < total_steps:
                on_device, counts = ahead
                began_s = time.perf_counter()
                state, metrics, finite = update(state, reference, on_device)
                if programs() > known_programs:
                    known_programs = programs()
                    note(
                        f"note: {stage}: step {step + 1} had a shape that was not known before the first step: program {known_programs} "
                        f"was compiled in the middle, in {time.perf_counter() - began_s:.1f} s"
                    )
                step += 1
                ahead = next_batch() if step < total_steps else None
                waiting.append((step, metrics, finite, counts))
                while len(waiting) >= IN_FLIGHT:
                    fetch()
                found = None
                if (
                    evaluate is not None
                    and eval_every_steps is not None
                    and (step % eval_every_steps == 0 or step == total_steps)
                ):
                    try:
                        found = {f"eval/{name}": value for name, value in evaluate(state).items()}
                    except KeyboardInterrupt:
                        save()
                        raise
                    write(stage, step, found)
                if step < total_steps and (
                    checkpoints.is_due(step) or (found is not None and checkpoints.follow_evaluation)
                ):
                    save(found)
                if step < total_steps and (asked := should_stop()) is not None:
                    began_s = time.perf_counter()
                    save()
                    checkpoints.wait()
                    note(
                        f"{stage}: stopped after step {step}, saved in {time.perf_counter() - began_s:.1f} s"
                    )
                    raise asked
            save(found)
    finally:
        bar.close()
        checkpoints.close()
    return state
