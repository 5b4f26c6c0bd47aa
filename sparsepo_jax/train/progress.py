"""What a training stage shows and writes while it runs: a bar, rates, means over windows of steps, notes."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.labels import mean_of_steps
from sparsepo_jax.train.step import MicroBatches, State

AS_AT_THE_STEP = ("learning_rate",)  # of the last step of a window that was taken, not a mean
IN_FLIGHT = 2  # steps handed to the device before the metrics of the oldest are fetched


class Reporting(NamedTuple):
    """What a stage reports to.

    Attributes:
        write: `write(stage, step, metrics)` keeps numbers. Called every `every_steps` with means over the
            steps since the last call, the learning rate and the number of updates left out as they are at
            the step, and after each evaluation.
        every_steps: the length of a window.
        unit: what a batch is made of, in the names of rates: "pairs", "responses" or "rows".
        watch: `watch(step, metrics)` is called after each step that was taken and returns lines for the
            user. None: nobody watches.
        first_step: `first_step()` is called once, when the numbers of the first step are there, and returns
            a line for the user. None: nobody waits for it.
    """

    write: Callable[[str, int, Mapping[str, float]], None]
    every_steps: int
    unit: str = "pairs"
    watch: Callable[[int, dict[str, float]], Sequence[str]] | None = None
    first_step: Callable[[], str] | None = None


class Checks(NamedTuple):
    """What a stage does not let pass.

    Attributes:
        may_skip: how many updates of the stage may be left out because their loss or gradient is not
            finite. One more is a UserError, and nothing is saved after it.
        name_rows: `name_rows(step, finite [micro-steps, rows])` names the rows that such a step is about.
        first_step: `first_step(metrics, tokens a row)` looks at step 1 before anything of the stage is
            kept, and raises if the step is not what it should be. None: no check.
    """

    may_skip: int
    name_rows: Callable[[int, np.ndarray], str]
    first_step: Callable[[dict[str, float], float], Any] | None = None


class BatchCounts(NamedTuple):
    """What batches hold, over all processes.

    Attributes:
        rows: rows (or pairs), fillers left out.
        tokens: real ones.
        positions: padding included.
        weight: of all rows, as they count in the loss.
    """

    rows: float = 0.0
    tokens: float = 0.0
    positions: float = 0.0
    weight: float = 0.0


def count(batch: MicroBatches) -> BatchCounts:
    """The counts of a global batch, estimated from this process's part of it.

    The parts have the same shape and about as many tokens, so that the processes need not ask each other.

    Args:
        batch: of this process, arrays in the host's memory.
    """
    real_RS = batch.packing.sequence_RS >= 0
    rows = batch.valid_BPT.any(axis=(-1, -2)).sum()
    here = (rows, real_RS.sum(), real_RS.size, batch.weight_B.sum())
    return BatchCounts(*(float(number) * jax.process_count() for number in here))


class _Step(NamedTuple):
    """A step that was handed to the device; its numbers may not be computed yet."""

    step: int
    metrics: Mapping[str, jax.Array]
    finite: jax.Array
    counts: BatchCounts


class Meter:
    """Follows the steps of a stage. Only the first process shows a bar and notes.

    Fetching a step's metrics waits for the device. So that the device always has work, a step's metrics are
    fetched when IN_FLIGHT - 1 further steps have been handed over, or when `catch_up` asks for them.
    """

    _window: list[dict[str, float]]  # metrics of its steps
    _weights: list[float]  # of their rows together
    _counted: BatchCounts  # of its batches
    _opened_at_s: float

    def __init__(
        self,
        stage: str,
        state: State,
        reporting: Reporting,
        checks: Checks,
        *,
        total: int,
        programs: int,
    ):
        """Starts the clock and shows the bar.

        Args:
            stage: its name, in front of all that is said.
            state: where the run begins: steps and left out updates of earlier runs are counted in it.
            reporting: where numbers go.
            checks: what is refused.
            total: steps of the whole stage.
            programs: how many programs of the update are compiled so far; a further one is told.
        """
        from tqdm import tqdm

        self._stage = stage
        self._reporting = reporting
        self._checks = checks
        self._total_steps = total
        self._skipped = int(state.skipped)
        self._programs = programs
        self._is_first = True
        self._in_flight: deque[_Step] = deque()
        self._open_window()
        self._bar = tqdm(
            total=total,
            initial=int(state.step),
            desc=stage,
            unit="step",
            dynamic_ncols=True,
            disable=jax.process_index() != 0,
            mininterval=0.5,
        )

    def note(self, text: str) -> None:
        """Prints a line above the bar, with the stage's name in front.

        Args:
            text: one line without the name.
        """
        self._print(f"{self._stage}: {text}")

    def note_compiled(self, step: int, programs: int, seconds: float) -> None:
        """Tells of a program that was compiled in the middle of training.

        Args:
            step: the step that has just been handed to the device.
            programs: how many programs of the update are compiled by now.
            seconds: how long handing over took.
        """
        if programs > self._programs:
            self._programs = programs
            self._print(
                f"note: {self._stage}: step {step} had a shape that was not known before the first step: "
                f"program {programs} was compiled in the middle, in {seconds:.1f} s"
            )

    def add(
        self, step: int, metrics: Mapping[str, jax.Array], finite: jax.Array, counts: BatchCounts
    ) -> None:
        """Takes over a step that was handed to the device.

        Args:
            step: its number, from 1.
            metrics: scalars of the step, among them "loss", "grad_norm", "skipped" (all updates left out so
                far) and "weight" (of all processes' rows together, as they count in the loss).
            finite: whether the loss of each row is a finite number, bool [micro-steps, rows].
            counts: of the step's batch.

        Raises:
            UserError: a step that is fetched now does not pass the checks.
        """
        self._in_flight.append(_Step(step, metrics, finite, counts))
        while len(self._in_flight) >= IN_FLIGHT:
            self._fetch()

    def catch_up(self) -> None:
        """Fetches the metrics of all steps that were handed over. Raises as `add`."""
        while self._in_flight:
            self._fetch()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is no training, such as an evaluation: rates leave its time out.

        Steps that were handed over are fetched first, so that their own time is not left out with it. Raises
        as `add`.
        """
        self.catch_up()
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._opened_at_s += time.perf_counter() - began_s

    def write_rest(self, step: int) -> None:
        """Writes the steps since the last window, where a stage ends before its last step.

        Args:
            step: the last one that was taken. Its metrics have been fetched.
        """
        if self._window:
            self._write_window(step, self._rates())

    def close(self) -> None:
        """Takes the bar off the screen."""
        self._bar.close()

    def _print(self, line: str) -> None:
        if jax.process_index() == 0:
            self._bar.write(line, file=sys.stderr)

    def _fetch(self) -> None:
        step, on_device, finite, counts = self._in_flight.popleft()
        self._counted = BatchCounts(*map(sum, zip(self._counted, counts, strict=True)))
        metrics = {name: float(value) for name, value in on_device.items()}
        weight = metrics.pop("weight")
        if self._is_first and self._reporting.first_step is not None:
            self.note(self._reporting.first_step())
        self._is_first = False
        self._bar.update(1)
        if metrics["skipped"] > self._skipped:
            self._skipped = int(metrics["skipped"])
            self._tell_skipped(step, metrics, np.asarray(finite))
        else:
            self._take(step, metrics, counts, weight)
        rates = self._rates()
        unit = self._reporting.unit
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, {rates[f'{unit}_per_s']:.1f} {unit}/s, "
            f"{rates['tokens_per_s']:.0f} tokens/s",
            refresh=False,
        )
        if self._window and (step % self._reporting.every_steps == 0 or step == self._total_steps):
            self._write_window(step, rates)

    def _tell_skipped(self, step: int, metrics: Mapping[str, float], finite: np.ndarray) -> None:
        """Notes that an update was left out, or refuses one too many."""
        event = (
            f"step {step} has loss {metrics['loss']} and gradient norm "
            f"{metrics['grad_norm']}, from {self._checks.name_rows(step, finite)}"
        )
        if self._skipped > self._checks.may_skip:
            self._bar.close()
            raise UserError(
                f"{self._stage}: {event}; look at these rows, lower the learning rate or beta, or let "
                f"{self._stage}.skip_nonfinite updates be left out; started again, the run continues from "
                "its last checkpoint"
            )
        self.note(f"{event}: left out ({self._skipped} of at most {self._checks.may_skip})")

    def _take(self, step: int, metrics: dict[str, float], counts: BatchCounts, weight: float) -> None:
        """Lets a step with an update count in the window."""
        if step == 1 and self._checks.first_step is not None:
            self._checks.first_step(metrics, counts.tokens / counts.rows)
        self._window.append(metrics)
        self._weights.append(weight)
        if self._reporting.watch is not None:
            for line in self._reporting.watch(step, metrics):
                self.note(line)

    def _rates(self) -> dict[str, float]:
        """Rows and tokens a second since the window was opened, pauses left out."""
        seconds = time.perf_counter() - self._opened_at_s
        return {
            f"{self._reporting.unit}_per_s": self._counted.rows / seconds,
            "tokens_per_s": self._counted.tokens / seconds,
        }

    def _open_window(self) -> None:
        self._window, self._weights = [], []
        self._counted = BatchCounts()
        self._opened_at_s = time.perf_counter()

    def _write_window(self, step: int, rates: Mapping[str, float]) -> None:
        means = mean_of_steps(self._window, self._weights)
        counted = self._counted
        facts: dict[str, float] = {"skipped": self._skipped}
        facts |= {name: self._window[-1][name] for name in AS_AT_THE_STEP if name in means}
        facts |= {"real_token_share": counted.tokens / counted.positions, "programs": self._programs}
        if counted.weight != counted.rows:  # the data says how much rows count
            facts["pair_weight"] = counted.weight / counted.rows
        self._reporting.write(self._stage, step, {**means, **rates, **facts})
        self._open_window()
