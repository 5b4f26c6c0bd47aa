"""Trackers: one list, one entry a run however often it is continued, and no tracker that can end a run."""

import json
import sys
from types import ModuleType, SimpleNamespace

import jax
import pytest

from helpers.configs import make_config
from helpers.program import lines_of, run, write_config
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.train import log
from sparsepo_jax.train.log import MetricsLog
from sparsepo_jax.train.trackers import About


class FakeWandb(ModuleType):
    """Runs by id, as the service keeps them."""

    def __init__(self):
        super().__init__("wandb")
        self.runs: dict[str, list[dict]] = {}
        self.settings: list[dict] = []
        self.endings: list[int] = []

    def init(self, **settings):
        self.settings.append(settings)
        points = self.runs.setdefault(settings["id"], [])
        return SimpleNamespace(
            define_metric=lambda name, **how: None,
            log=points.append,
            finish=lambda exit_code: self.endings.append(exit_code),
        )


class FakeTrackio(ModuleType):
    """Runs by project and name."""

    def __init__(self):
        super().__init__("trackio")
        self.runs: dict[tuple[str, str], list[tuple[int, dict]]] = {}

    def init(self, project, name, resume, **settings):
        assert resume == "allow" and settings["embed"] is False
        points = self.runs.setdefault((project, name), [])
        return SimpleNamespace(log=lambda metrics, step: points.append((step, metrics)), finish=lambda: None)


class FakeMlflow(ModuleType):
    """Runs by id, with what a client does to them."""

    def __init__(self):
        super().__init__("mlflow")
        self.entities = ModuleType("mlflow.entities")
        self.entities.Metric = lambda *fields: ("metric", *fields)
        self.entities.Param = lambda *fields: ("param", *fields)
        self.uris: set[str] = set()
        self.points: dict[str, list] = {}
        self.settings: dict[str, dict] = {}
        self.status: list[str] = []

    def MlflowClient(self, tracking_uri):
        self.uris.add(tracking_uri)

        def create_run(experiment, run_name):
            run_id = f"{experiment}-{len(self.points)}"
            self.points[run_id], self.settings[run_id] = [], {}
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

        def log_batch(run_id, metrics=(), params=()):
            assert len(params) <= 100
            self.points[run_id] += [(name, value, step) for _, name, value, _, step in metrics]
            self.settings[run_id] |= {name: value for _, name, value in params}

        return SimpleNamespace(
            get_experiment_by_name=lambda name: None,
            create_experiment=lambda name: name,
            create_run=create_run,
            log_batch=log_batch,
            update_run=lambda run_id, status: self.status.append(status),
            set_terminated=lambda run_id, status: self.status.append(status),
        )


@pytest.fixture
def fakes(monkeypatch):
    made = SimpleNamespace(wandb=FakeWandb(), trackio=FakeTrackio(), mlflow=FakeMlflow())
    for name, module in vars(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", made.mlflow.entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


ALL = ["wandb", "mlflow", "trackio"]


def write(directory, stage, after_step, steps, trackers=ALL):
    about = About(directory, stage, after_step, project="films", name="first", config={"po": {"steps": 3}})
    with MetricsLog(about, trackers) as metrics_log:
        for step in steps:
            metrics_log.write(stage, step, {"loss": step / 2})


def test_all_stages_and_a_resume_go_on_in_one_entry_of_each_tracker(tmp_path, fakes):
    """sft, then po that was killed after step 6 and goes on from step 4. Kills: an entry for each stage or
    each start, which is what a client gives by itself."""
    write(tmp_path, "sft", 0, (2, 4))
    write(tmp_path, "po", 0, (2, 4, 6))
    write(tmp_path, "po", 4, (6, 8))
    [points] = fakes.wandb.runs.values()
    assert [point["po/step"] for point in points if "po/loss" in point] == [2, 4, 6, 6, 8]
    assert points[0] == {"sft/loss": 1.0, "sft/step": 2} and fakes.wandb.endings == [0, 0, 0]
    assert {(of["project"], of["name"], of["resume"]) for of in fakes.wandb.settings} == {
        ("films", "first", "allow")
    }
    [((project, name), steps)] = fakes.trackio.runs.items()
    assert project == "films" and name.startswith("first-") and len(steps) == 7
    [points] = fakes.mlflow.points.values()
    assert points[-1] == ("po/loss", 4.0, 8) and len(points) == 7
    assert list(fakes.mlflow.settings.values()) == [{"po.steps": "3"}]
    assert fakes.mlflow.status == ["FINISHED", "RUNNING"] * 2 + ["FINISHED"]
    assert fakes.mlflow.uris == {f"sqlite:///{tmp_path / 'mlflow.db'}"}
    assert json.loads((tmp_path / "trackers.json").read_text()).keys() == set(ALL)


def test_two_runs_are_two_entries(tmp_path, fakes):
    """Kills: Trackio's own rule, by which two runs of one name are one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "po", 0, (2,))
    assert len(fakes.wandb.runs) == len(fakes.mlflow.points) == len(fakes.trackio.runs) == 2


def test_only_the_first_process_has_trackers(tmp_path, fakes, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(tmp_path, "po", 0, (2,))
    assert not fakes.wandb.runs and not list(tmp_path.iterdir())


def test_a_tracker_that_fails_is_left_alone_and_the_run_goes_on(tmp_path, fakes, capsys):
    """The second point meets a lost connection. Kills: a run that ends for its tracker's sake; a line a
    point."""

    class Lost(list):
        def append(self, point):
            if self:
                raise ConnectionError("no route\nto host")
            super().append(point)

    fakes.wandb.runs = SimpleNamespace(setdefault=lambda name, new: lost)
    lost = Lost()
    write(tmp_path, "po", 0, (2, 4, 6))
    assert [row["step"] for row in lines_of(tmp_path / "metrics.jsonl")] == [2, 4, 6]
    assert len(lost) == 1 and len(next(iter(fakes.mlflow.points.values()))) == 3
    said = capsys.readouterr().out
    assert said.count("note: wandb failed and gets no more metrics (no route to host)") == 1


def test_a_tracker_is_told_of_a_stage_that_was_broken_off(tmp_path, fakes):
    about = About(tmp_path, "po", 0, project="p", name="n", config={})
    with pytest.raises(KeyboardInterrupt), MetricsLog(about, ALL):
        raise KeyboardInterrupt
    assert fakes.wandb.endings == [1] and fakes.mlflow.status == ["KILLED"]


def test_a_tracker_that_does_not_start_ends_all_processes_and_closes_those_before_it(
    tmp_path, fakes, monkeypatch
):
    """Kills: a first process that raises alone, so that the others wait for it for ever."""
    monkeypatch.setattr(fakes.mlflow, "MlflowClient", None)
    about = About(tmp_path, "po", 0, project="p", name="n", config={})
    with pytest.raises(UserError, match="mlflow does not start"):
        MetricsLog(about, ALL)
    assert fakes.wandb.endings == [1] and not fakes.trackio.runs
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(log, "as_the_first", lambda mine: ~mine)
    with pytest.raises(UserError, match="the first process of this run says which tracker"):
        MetricsLog(about, ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_missing_package_is_one_line_before_anything_is_done(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["--config", str(write_config(tmp_path)), f"logging.trackers=[{name}]"]) == 1
    said = capsys.readouterr()
    assert f"logging.trackers: {name} needs the package {name}: install sparsepo_jax[{name}]" in said.err
    assert said.err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_tracker_that_does_not_start_is_one_line(tmp_path, fakes, capsys, monkeypatch):
    def refuse(**settings):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(fakes.wandb, "init", refuse)
    changes = {"stages": ["sft"], "sft": {"steps": 1}}
    assert main(["--config", str(write_config(tmp_path, **changes)), "logging.trackers=[wandb]"]) == 1
    error = capsys.readouterr().err
    assert (
        "logging.trackers: wandb does not start: api_key not configured" in error and "Traceback" not in error
    )


def test_a_run_sends_what_it_writes(tmp_path, fakes):
    output = run(tmp_path, "logging.trackers=[wandb]", stages=["sft"], sft={"steps": 2, "batch_size": 8})
    [points] = fakes.wandb.runs.values()
    rows = lines_of(output / "metrics.jsonl")
    assert [point["sft/loss"] for point in points] == [row["loss"] for row in rows]
    assert fakes.wandb.settings[0]["name"] == "run" and fakes.wandb.settings[0]["config"]["sft"]["steps"] == 2


@pytest.mark.parametrize(
    "before, trackers, project",
    [
        ({"tensorboard": False}, [], "sparsepo_jax"),
        ({"tensorboard": True, "wandb": None}, ["tensorboard"], "sparsepo_jax"),
        ({"wandb": {"project": "x", "name": None}}, ["tensorboard", "wandb"], "x"),
    ],
)
def test_the_settings_of_earlier_versions_say_the_same(before, trackers, project):
    logging = make_config(logging=before).logging
    assert (logging.trackers, logging.project, logging.name) == (trackers, project, None)


@pytest.mark.parametrize(
    "logging, line",
    [
        ({"trackers": ["wandb"], "tensorboard": False}, "logging: `trackers` says all: leave out"),
        ({"trackers": ["wandb", "wandb"]}, "logging.trackers: a tracker is listed twice"),
        ({"trackers": ["wand"]}, "logging.trackers.0: expected one of tensorboard, wandb, mlflow, trackio;"),
        ({"wandb": "x"}, "logging: wandb is now an entry of `trackers`"),
        ({"trackers": "wandb"}, "logging.trackers: expected a list, got 'wandb'; did you mean [wandb]?"),
    ],
)
def test_a_mistake_in_the_list_is_one_line(tmp_path, logging, line):
    path = write_config(tmp_path, logging=None)
    path.write_text(path.read_text() + f"logging: {json.dumps(logging)}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith(line)
