"""Programs that show metrics as curves: TensorBoard, Weights & Biases, MLflow, Trackio.

Each is imported when it is asked for. A run has one entry in each of them, whatever stages it has and however
often it is continued: what it is called there is kept in output_dir/trackers.json.
"""

import contextlib
import importlib
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import read_object, write_json


@runtime_checkable
class Tracker(Protocol):
    """Takes the metrics of a stage."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each curve.

        Args:
            step: from 1.
            metrics: numbers by full name, such as "po/loss".
        """

    def close(self, *, failed: bool) -> None:
        """Sends what is left.

        Args:
            failed: whether the stage was broken off.
        """


class About(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
        output_dir: of the run; what a tracker writes lies below it unless its own settings say otherwise.
        stage: the stage that will write.
        after_step: the step that the stage continues from; 0: it begins.
        project: what the run is listed under.
        name: of the run.
        config: the run's settings.
    """

    output_dir: Path
    stage: str
    after_step: int
    project: str
    name: str
    config: Mapping[str, Any]


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def check_trackers(names: Sequence[str]) -> None:
    """Looks for the trackers' packages, without importing them.

    Args:
        names: keys of PACKAGES.

    Raises:
        UserError: one is not installed.
    """
    for name in names:
        package = PACKAGES[name]
        known = sys.modules[package] if package in sys.modules else importlib.util.find_spec(package)
        if known is None:
            raise UserError(
                f"logging.trackers: {name} needs the package {package}: install sparsepo_jax[{name}], or "
                f"take {name} out of the list"
            )


def import_packages(names: Sequence[str]) -> None:
    """Imports the trackers' packages: tensorboardX imports PyTorch where that is, which takes seconds.

    One that fails is left to open_tracker, which says why.

    Args:
        names: keys of PACKAGES.
    """
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(PACKAGES[name])


def open_tracker(name: str, about: About) -> Tracker:
    """Begins the run's entry, or goes on with it.

    Args:
        name: a key of PACKAGES.
        about: the run.

    Raises:
        UserError: the package is missing, or the tracker refuses the run.
    """
    check_trackers([name])
    try:
        return _MAKERS[name](about)
    except Exception as error:  # of any kind, from a program that is not ours
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"logging.trackers: {name} does not start: {reason}; mend that, or take {name} out of the list"
        ) from error


def _entry(about: About, name: str, begin: Callable[[], str]) -> tuple[str, bool]:
    """(what the run is called in a tracker, whether it has been begun before). `begin` makes a new name."""
    path = about.output_dir / "trackers.json"
    remedy = "bring the old file back, or delete it: each tracker then gets a new entry"
    entries = read_object(path, "the run's names in its trackers", remedy) if path.exists() else {}
    if name in entries:
        return entries[name], True
    entries[name] = begin()
    write_json(path, entries)
    return entries[name], False


class _TensorBoard:
    """Event files in tensorboard/STAGE. TensorBoard leaves out what was written of steps that are done again,
    for all curves of a directory, so that each stage has one of its own."""

    def __init__(self, about: About):
        from tensorboardX import SummaryWriter

        directory = about.output_dir / "tensorboard" / about.stage
        self._board = SummaryWriter(str(directory), purge_step=about.after_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._board.close()


class _Wandb:
    """A run of Weights & Biases. Curves are drawn over the stage's own steps; a step that is done again has
    the same values and falls on its old point."""

    def __init__(self, about: About):
        import wandb

        entry, _ = _entry(about, "wandb", lambda: secrets.token_hex(4))
        self._run = wandb.init(
            project=about.project,
            name=about.name,
            id=entry,
            resume="allow",
            config=dict(about.config),
            dir=str(about.output_dir),
        )
        self._step_name = f"{about.stage}/step"
        self._run.define_metric(self._step_name, hidden=True)
        self._run.define_metric(f"{about.stage}/*", step_metric=self._step_name)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, self._step_name: step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class _MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, else in output_dir/mlflow.db."""

    def __init__(self, about: About):
        from mlflow import MlflowClient

        here = f"sqlite:///{about.output_dir.resolve() / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or here
        self._client = MlflowClient(tracking_uri=uri)
        self._id, is_old = _entry(about, "mlflow", lambda: self._begin(about))
        if is_old:
            self._client.update_run(self._id, status="RUNNING")

    def _begin(self, about: About) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(about.project)
        experiment_id = (
            self._client.create_experiment(about.project) if experiment is None else experiment.experiment_id
        )
        run_id = self._client.create_run(experiment_id, run_name=about.name).info.run_id
        settings = [Param(name, text[:500]) for name, text in _flat(about.config)]
        for start in range(0, len(settings), 100):  # the most that a request may hold
            self._client.log_batch(run_id, params=settings[start : start + 100])
        return run_id

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        points = [Metric(name, value, now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=points)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "KILLED" if failed else "FINISHED")


def _flat(settings: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of each setting."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(settings)


class _Trackio:
    """A run of Trackio: on this machine, or in the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, about: About):
        import trackio

        # Trackio knows runs by their names, so that a name must not come twice.
        name, _ = _entry(about, "trackio", lambda: f"{about.name}-{secrets.token_hex(3)}")
        self._run = trackio.init(
            project=about.project,
            name=name,
            config=dict(about.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish()


_MAKERS: dict[str, Callable[[About], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
