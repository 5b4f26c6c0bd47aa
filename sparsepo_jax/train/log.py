"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases. Only the first process writes."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import written_atomically


class MetricsLog:
    """`write(stage, step, metrics)` adds a line to metrics.jsonl and a point to each curve. Use as a context manager.

    A stage that continues after a step writes the steps behind it once more: what was written of them before is taken out of metrics.jsonl.
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
        self._start_s, self._file, self._board, self._wandb = time.time(), None, None, None
        if jax.process_index() != 0:
            return
        path = output_dir / "metrics.jsonl"
        _drop_steps(path, stage, after_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(output_dir / "tensorboard"))
        if wandb is not None:
            try:
                import wandb as client
            except ImportError as error:
                raise UserError(
                    "logging.wandb needs the package wandb: install sparsepo_jax[wandb], or set logging.wandb to null"
                ) from error
            self._wandb = client.init(
                project=wandb["project"],
                name=wandb["name"],
                config=dict(config),
                dir=str(output_dir),
                resume="allow",
            )

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            return
        # JSON has no NaN: null says that there is no number.
        row = {"stage": stage, "step": step, "time_s": round(time.time() - self._start_s, 3)}
        row |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"{stage}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log(
                {f"{stage}/{name}": value for name, value in metrics.items()} | {f"{stage}/step": step}
            )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        for sink, close in ((self._file, "close"), (self._board, "close"), (self._wandb, "finish")):
            if sink is not None:
                getattr(sink, close)()


def _drop_steps(path: Path, stage: str, after_step: int) -> None:
    """Takes the stage's lines of later steps out of the file, and half a line, which a killed run may leave."""
    if not path.exists():
        return
    before = path.read_bytes()
    kept = b"".join(
        line for line in before.splitlines(keepends=True) if not _is_redone(line, stage, after_step)
    )
    kept += b"\n" * bool(kept and not kept.endswith(b"\n"))
    if kept != before:
        with written_atomically(path) as file:
            file.write(kept)


def _is_redone(line: bytes, stage: str, after_step: int) -> bool:
    try:
        row = json.loads(line)
        return row["stage"] == stage and row["step"] > after_step
    except (ValueError, KeyError, TypeError):
        return not line.endswith(b"\n")
