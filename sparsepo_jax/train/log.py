"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases. Only the first process writes."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import written_atomically


class MetricsLog:
    """Adds a line to metrics.jsonl and a point to each curve with every `write`. Use it as a context manager.

    A stage that continues from a checkpoint does the steps behind it once more. What was written of them
    before is taken out of metrics.jsonl, and TensorBoard is told to leave it out (`purge_step`). It would
    do so for all curves of a directory, so that each stage has a directory of its own.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        stage: str,
        after_step: int,
        tensorboard: bool,
        wandb: Mapping[str, str | None] | None,
        config: Mapping[str, object],
    ):
        """Opens the files.

        Args:
            output_dir: of the run.
            stage: the stage that will write.
            after_step: the step that the stage continues from; 0: it begins.
            tensorboard: whether to write for TensorBoard, in tensorboard/STAGE.
            wandb: "project" and "name" for Weights & Biases; None: it is not used.
            config: the run's settings, for Weights & Biases.

        Raises:
            UserError: the package wandb is asked for and not installed.
        """
        self._start_s = time.time()
        self._file: TextIO | None = None
        self._board: Any = None
        self._wandb: Any = None
        if jax.process_index() != 0:
            return
        path = output_dir / "metrics.jsonl"
        _drop_steps(path, stage, after_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(output_dir / "tensorboard" / stage), purge_step=after_step + 1)
        if wandb is not None:
            try:
                import wandb as client
            except ImportError as error:
                raise UserError(
                    "logging.wandb needs the package wandb: install sparsepo_jax[wandb], or set "
                    "logging.wandb to null"
                ) from error
            self._wandb = client.init(
                project=wandb["project"],
                name=wandb["name"],
                config=dict(config),
                dir=str(output_dir),
                resume="allow",
            )

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step.

        Args:
            stage: in front of all names, so that "loss" is "po/loss".
            step: from 1.
            metrics: numbers by name. One that is not finite is null in metrics.jsonl, since JSON has no NaN.
        """
        if self._file is None:
            return
        row: dict[str, Any] = {"stage": stage, "step": step, "time_s": round(time.time() - self._start_s, 3)}
        row |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"{stage}/{name}", value, step)
        if self._wandb is not None:
            points = {f"{stage}/{name}": value for name, value in metrics.items()}
            self._wandb.log({**points, f"{stage}/step": step})

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_steps(path: Path, stage: str, after_step: int) -> None:
    """Takes out the stage's lines of later steps, and half a line, which a killed run may leave."""
    if not path.exists():
        return
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    after = b"".join(line for line in lines if not _is_redone(line, stage, after_step))
    if after and not after.endswith(b"\n"):
        after += b"\n"
    if after != before:
        with written_atomically(path) as file:
            file.write(after)


def _is_redone(line: bytes, stage: str, after_step: int) -> bool:
    try:
        row = json.loads(line)
        return bool(row["stage"] == stage and row["step"] > after_step)
    except (ValueError, KeyError, TypeError):
        return not line.endswith(b"\n")
