"""A grid of runs: what it is made of, and that every run is one of its own, kept apart and continued."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

from helpers.program import lines_of, write_config
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import short_names
from sparsepo_jax.core.stop import Terminated
from sparsepo_jax.main import RUN_AGAIN, main
from sparsepo_jax.run import free_programs
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.run.sweep import parse_axes, plan_sweep, run_name


@pytest.mark.parametrize(
    "text, values",
    [
        ("0.1,0.4", [0.1, 0.4]),
        ("0", [0]),
        ("{kind: dpo, beta: 0.1},{kind: tdpo1}", [{"kind": "dpo", "beta": 0.1}, {"kind": "tdpo1"}]),
        ("[sft, po], [po]", [["sft", "po"], ["po"]]),
        ("[[1, 2], {a: [3, 4]}],5", [[[1, 2], {"a": [3, 4]}], 5]),
        ('"a,b",c', ["a,b", "c"]),
        (r'"a\",b",c', ['a",b', "c"]),
        ("'it''s, so',c", ["it's, so", "c"]),
        ("it's,that's", ["it's", "that's"]),  # a quote within a word begins nothing
        ("{a: 'x}, y'},b", [{"a": "x}, y"}, "b"]),
        ("1e-6,null,2024-01-01", [1e-6, None, "2024-01-01"]),
        ("0.1,", [0.1]),  # YAML's lists may end in a comma
    ],
)
def test_the_values_of_an_axis_are_a_yaml_list_without_its_brackets(text, values):
    (axis,) = parse_axes([f"seed={text}"])
    assert axis == ("seed", values)


@pytest.mark.parametrize("text", ["[1, 2", "{a: 1", "'a,b", '"a', "[1},(2", "a],b", "1,,2", "", "], ["])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_axes([f"seed={text}"])
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith("--sweep seed: ")


def test_mistakes_of_the_grid_are_said_all_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_axes(
            [
                "seed",
                "output_dir=a,b",
                "seed=1,1.0",
                "seed=2",
                "objective.beta=",
                "po.clip_norm=0.1,0.10",
                "po.steps=[1",
            ]
        )
    assert caught.value.lines == [
        "--sweep seed: expected section.field=value,value,...",
        "--sweep output_dir: every run of a sweep gets a directory of its own; other values of the "
        "config go before --sweep",
        "--sweep seed: 1.0 is there twice",
        "--sweep seed: given twice",
        "--sweep objective.beta: no value; write null if that is meant, and '' for empty text",
        "--sweep po.clip_norm: 0.1 is there twice",
        "--sweep po.steps: '[1' is no list of YAML values (expected ',' or ']', but got '<stream end>')",
    ]


def test_a_run_is_named_by_its_values():
    assert run_name({"objective.beta": 0.1, "seed": 2}) == "beta=0.1,seed=2"
    assert run_name({"po.optimizer.learning_rate": 1e-6}) == "learning_rate=1e-06"
    assert (
        run_name({"objective.kind": "dpo", "checkpoint.best": None, "reference.cached": True})
        == "kind=dpo,best=null,cached=true"
    )
    assert short_names(["objective.kind", "tokenizer.kind", "seed"]) == {
        "objective.kind": "objective.kind",
        "tokenizer.kind": "tokenizer.kind",
        "seed": "seed",
    }
    assert (
        run_name({"objective.kind": "dpo", "tokenizer.kind": "bytes"})
        == "objective.kind=dpo,tokenizer.kind=bytes"
    )


def test_names_are_safe_and_tell_all_values_apart():
    values = [
        "a/b",
        "a-b",
        "a b",
        "0.1",
        0.1,
        "true",
        True,
        None,
        "null",
        {"a": 1, "b": "c"},
        {"a": "1", "b": "c"},
        {"a": "1+b-c"},
        ["a", "b"],
        "a+b",
        "",
        "..",
        "x" * 300,
        "x" * 299,
        0.1 + 2e-17,
        1 / 3,
        0.333333,
        "\u202eé\n",
    ]
    names = [run_name({"key": value}) for value in values]
    assert len(set(names)) == len(set(map(repr, values)))
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,=+~-")
        and len(name) < 60
        for name in names
    )
    many = {f"section.a_rather_long_field_{n}": "x" * 30 for n in range(20)}
    assert len(run_name(many)) <= 160 and run_name(many) != run_name(
        many | {"section.a_rather_long_field_19": "y"}
    )


def test_the_grid_is_the_product_in_the_order_given(tmp_path):
    path = write_config(tmp_path)
    base, planned, _ = plan_sweep(
        str(path), ["po.steps=3", "seed=7"], parse_axes(["objective.beta=0.1,0.4", "seed=0,1"])
    )
    assert base == tmp_path / "run"
    assert [run.name for run in planned] == [
        "beta=0.1,seed=0",
        "beta=0.1,seed=1",
        "beta=0.4,seed=0",
        "beta=0.4,seed=1",
    ]
    assert [(run.config.objective.beta, run.config.seed, run.config.po.steps) for run in planned] == [
        (0.1, 0, 3),
        (0.1, 1, 3),
        (0.4, 0, 3),
        (0.4, 1, 3),
    ]
    assert planned[1].config.output_dir == str(tmp_path / "run/beta=0.1,seed=1")
    assert planned[1].values == {"objective.beta": 0.1, "seed": 1}
    _, planned, _ = plan_sweep(str(path), [], parse_axes(["objective={kind: dpo, beta: 0.1},{kind: tdpo1}"]))
    assert [run.config.objective.kind for run in planned] == ["dpo", "tdpo1"] and planned[
        0
    ].config.objective.beta == 0.1


def test_all_configs_are_checked_first_and_mistakes_name_their_runs(tmp_path, capsys, stages):
    path = str(write_config(tmp_path))
    assert main(["--config", path, "po.stepps=3", "--sweep", "objective.beta=0.1,much", "seed=0,-1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and said[1].startswith("po.stepps: unknown key")
    assert {line.partition(": ")[0] for line in said[2:]} == {
        "beta=0.1,seed=-1 and beta=much,seed=-1",
        "beta=much,seed=0 and beta=much,seed=-1",
    }
    assert stages.ran == [] and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- running, with a stand-in for the stages


@pytest.fixture
def stages(monkeypatch):
    """A module in place of the stages.

    It notes the runs in `ran`, and raises what `errors` holds for a (beta, seed).
    """
    module = ModuleType("sparsepo_jax.stages.runner")
    module.ran, module.errors = [], {}

    def run_stages(config, stop, began_s):
        key = (config.objective.beta, config.seed)
        module.ran.append(key)
        if key in module.errors:
            raise module.errors[key]
        return 0

    module.run_stages = run_stages
    monkeypatch.setitem(sys.modules, "sparsepo_jax.stages.runner", module)
    return module


def book_of(tmp_path):
    book = json.loads((tmp_path / "run/sweep.json").read_text())
    return {run["name"]: (run["status"], run["error"]) for run in book["runs"]}


GRID = ["--sweep", "objective.beta=0.1,0.4", "seed=0,1"]


def test_a_failure_is_kept_apart_and_the_same_command_tries_it_again(tmp_path, stages, capsys):
    path = str(write_config(tmp_path))
    stages.errors = {
        (0.1, 1): UserError("no data; mend it"),
        (0.4, 0): ZeroDivisionError("nobody foresaw this"),
    }
    assert main(["--config", path, *GRID]) == 1
    assert stages.ran == [(0.1, 0), (0.1, 1), (0.4, 0), (0.4, 1)]
    wrong = {
        "beta=0.1,seed=1": ("failed", "no data; mend it"),
        "beta=0.4,seed=0": ("failed", "ZeroDivisionError: nobody foresaw this"),
    }
    assert book_of(tmp_path) == {"beta=0.1,seed=0": ("done", None), "beta=0.4,seed=1": ("done", None)} | wrong
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith(
        "2 of 4 runs failed:\n  beta=0.1,seed=1: no data; mend it\n  beta=0.4,seed=0: "
        "ZeroDivisionError: nobody foresaw this\n"
    )
    stages.errors = {}
    assert main(["--config", path, *GRID]) == 0
    assert set(book_of(tmp_path).values()) == {("done", None)}


@pytest.mark.parametrize("error, status", [(Terminated(), RUN_AGAIN), (KeyboardInterrupt(), 130)])
def test_a_stop_ends_the_sweep_and_a_larger_grid_keeps_what_there_is(tmp_path, stages, capsys, error, status):
    path = str(write_config(tmp_path))
    stages.errors = {(0.1, 1): error}
    assert main(["--config", path, *GRID]) == status
    assert stages.ran == [(0.1, 0), (0.1, 1)]
    assert capsys.readouterr().err.endswith(
        "the sweep stopped in run 2 of 4; the same command continues it\n"
    )
    assert [found for found, _ in book_of(tmp_path).values()] == ["done", "to do", "to do", "to do"]
    stages.errors = {}
    for name in book_of(tmp_path):
        (tmp_path / "run" / name).mkdir(exist_ok=True)
    assert main(["--config", path, "--sweep", "objective.beta=0.8", "seed=0"]) == 0
    assert len(book_of(tmp_path)) == 5 and book_of(tmp_path)["beta=0.8,seed=0"] == ("done", None)


def test_a_signal_between_two_runs_ends_the_sweep_too(tmp_path, stages, capsys, monkeypatch):
    monkeypatch.setattr("sparsepo_jax.run.sweep.gc.collect", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["--config", str(write_config(tmp_path)), *GRID]) == RUN_AGAIN
    assert stages.ran == [(0.1, 0)] and list(book_of(tmp_path).values())[:2] == [
        ("done", None),
        ("to do", None),
    ]
    assert capsys.readouterr().err == "stopped between two runs; the same command continues the sweep\n"


@pytest.mark.parametrize("most_maps, freed", [("65530", False), ("1", True)])
def test_programs_are_let_go_before_there_are_too_many(tmp_path, stages, monkeypatch, most_maps, freed):
    """Kills: a sweep over many objectives that keeps every program and ends in a segmentation fault."""
    (tmp_path / "max_map_count").write_text(most_maps)
    (tmp_path / "maps").write_text("a piece of memory\n" * 10)
    monkeypatch.setattr(free_programs, "MAPS", tmp_path / "maps")
    monkeypatch.setattr(free_programs, "MOST_MAPS", tmp_path / "max_map_count")
    program = jax.jit(lambda x: x + 1)
    program(np.float32(1))
    assert program._cache_size() == 1
    assert main(["--config", str(write_config(tmp_path)), *GRID]) == 0
    assert program._cache_size() == (0 if freed else 1)


@pytest.mark.parametrize("options", [["--aot", "v5e-16"], ["--output", "x.html"]])
def test_options_that_do_not_go_with_a_sweep_run_nothing(tmp_path, stages, options):
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(write_config(tmp_path)), *GRID, *options])
    assert caught.value.code == 2 and stages.ran == []


def test_check_prints_the_grid_and_runs_nothing(tmp_path, stages, capsys):
    path = str(write_config(tmp_path))
    assert main(["--config", path, *GRID, "--check"]) == 0
    said = capsys.readouterr().out
    assert "4 runs" in said and "  beta=0.4,seed=1  to do" in said and "objective   sparsepo" in said
    assert stages.ran == [] and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- --metric


@pytest.fixture
def evaluated(stages):
    """Runs that leave a summary.json; where the mask is, a null."""
    plain = stages.run_stages

    def run_stages(config, stop, began_s):
        output = Path(config.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        (output / "summary.json").write_text(
            json.dumps(
                {
                    "after": {"accuracy_unmasked": 0.5, "kl": 1.0},
                    "mask": {"auroc_reward": None, "deletion": None},
                }
            )
        )
        return plain(config, stop, began_s)

    stages.run_stages = run_stages
    return stages


def test_a_wrong_metric_ends_the_sweep_after_the_first_run_that_is_done_and_the_right_one_goes_on(
    tmp_path, evaluated, capsys
):
    path = str(write_config(tmp_path))
    evaluated.errors = {(0.1, 0): UserError("no data; mend it")}
    assert main(["--config", path, *GRID, "--metric", "kl", "--metric", "acuracy_unmasked"]) == 2
    assert evaluated.ran == [(0.1, 0), (0.1, 1)]
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        "error: --metric: no number is called acuracy_unmasked; the nearest of 4 are "
        "accuracy_unmasked, auroc_reward, kl; "
        "run 2 of 4 is done, and the same command with another name goes on"
    )
    assert [status for status, _ in book_of(tmp_path).values()] == [
        "failed",
        "done",
        "to do",
        "to do",
    ] and not (tmp_path / "run/comparison.html").exists()
    evaluated.errors = {}
    assert main(["--config", path, *GRID, "--metric", "kl", "--metric", "accuracy_unmasked"]) == 0
    assert len(evaluated.ran) == 2 + 4 and set(book_of(tmp_path).values()) == {("done", None)}
    assert (tmp_path / "run/comparison.html").exists()


@pytest.mark.slow
def test_a_metric_that_only_some_runs_have_ends_nothing(tmp_path, evaluated):
    for name in ("mask.auroc_reward", "auroc_reward", "deletion.0.1.accuracy_top"):
        assert main(["--config", str(write_config(tmp_path)), *GRID, "--metric", name]) == 0
    assert len(evaluated.ran) == 12


def test_a_metric_of_runs_without_numbers_is_said_after_the_first(tmp_path, stages, capsys):
    assert main(["--config", str(write_config(tmp_path)), *GRID, "--metric", "kl"]) == 2
    assert stages.ran == [(0.1, 0)] and "there are no numbers in" in capsys.readouterr().err


# ---------------------------------------------------------------- one sft for many runs


@pytest.fixture
def trainers(stages):
    """Runs that leave the marks of an sft.

    `sft`: run -> the run whose sft it took, None: it trained; `failing`: runs whose sft fails.
    """
    plain, stages.sft, stages.failing = stages.run_stages, {}, set()

    def run_stages(config, stop, began_s):
        output, marks = Path(config.output_dir), Marks(config)
        output.mkdir(parents=True, exist_ok=True)
        if not marks.finished("sft"):
            taken_from = config.sft.taken_from
            stages.sft[output.name] = taken_from and Path(taken_from).name
            if taken_from is None:
                marks.begin("sft", {}, {})
            if output.name in stages.failing:
                raise UserError("no memory; buy some")
            if taken_from is None:
                (output / "sft/final").mkdir(exist_ok=True)
            marks.mark("sft", 1.0, None if taken_from is None else marks.sft_to_take())
        return plain(config, stop, began_s)

    stages.run_stages = run_stages
    return stages


FIRST = {"beta=0.1,seed=0": None, "beta=0.1,seed=1": None}


def test_runs_whose_sft_would_be_the_same_train_it_once(tmp_path, trainers):
    path = str(write_config(tmp_path))
    assert main(["--config", path, *GRID]) == 0
    assert trainers.sft == FIRST | {
        "beta=0.4,seed=0": "beta=0.1,seed=0",
        "beta=0.4,seed=1": "beta=0.1,seed=1",
    }
    trainers.sft.clear()
    assert main(["--config", path, "--sweep", "objective.beta=0.05,0.4", "seed=0"]) == 0, (
        "a larger grid, without the run that trained it"
    )
    assert trainers.sft == {"beta=0.05,seed=0": "beta=0.1,seed=0"}
    trainers.sft.clear()
    assert (
        main(
            ["--config", path, f"output_dir={tmp_path / 'other'}", "--sweep", "sft.steps=4,5", "po.steps=7,8"]
        )
        == 0
    )
    assert trainers.sft == {
        "sft.steps=4,po.steps=7": None,
        "sft.steps=4,po.steps=8": "sft.steps=4,po.steps=7",
        "sft.steps=5,po.steps=7": None,
        "sft.steps=5,po.steps=8": "sft.steps=5,po.steps=7",
    }


def test_where_the_first_sft_failed_the_next_run_trains_it(tmp_path, trainers):
    path, trainers.failing = str(write_config(tmp_path)), {"beta=0.1,seed=0"}
    grid = ["--sweep", "objective.beta=0.1,0.4,0.8", "seed=0"]
    assert main(["--config", path, *grid]) == 1
    assert trainers.sft == {
        "beta=0.1,seed=0": None,
        "beta=0.4,seed=0": None,
        "beta=0.8,seed=0": "beta=0.4,seed=0",
    }
    trainers.failing.clear()
    trainers.sft.clear()
    assert main(["--config", path, *grid]) == 0
    assert trainers.sft == {"beta=0.1,seed=0": None}, "what it has begun it goes on with"


def test_a_run_that_has_begun_its_own_sft_goes_on_with_it(tmp_path, trainers):
    path = write_config(tmp_path)
    config, _ = load_config(path, ["objective.beta=0.4", f"output_dir={tmp_path}/run/beta=0.4,seed=0"])
    Marks(config).begin("sft", {}, {})
    assert main(["--config", str(path), *GRID]) == 0
    assert trainers.sft == FIRST | {"beta=0.4,seed=0": None, "beta=0.4,seed=1": "beta=0.1,seed=1"}


def test_an_sft_that_is_named_is_taken_by_all_runs(tmp_path, trainers):
    path = str(write_config(tmp_path))
    assert main(["--config", path, f"output_dir={tmp_path / 'alone'}"]) == 0
    assert (
        main(["--config", path, f"sft.taken_from={tmp_path / 'alone'}", "--sweep", "objective.beta=0.1,0.4"])
        == 0
    )
    assert trainers.sft == {"alone": None, "beta=0.1": "alone", "beta=0.4": "alone"}


def test_check_says_which_run_trains_the_sft(tmp_path, trainers, capsys):
    path = str(write_config(tmp_path))

    def lines():
        return {
            line.split()[0]: line.split("  ")[-1].strip()
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("  beta")
        }

    assert main(["--config", path, *GRID, "--check"]) == 0
    others = {"beta=0.4,seed=0": "sft of beta=0.1,seed=0", "beta=0.4,seed=1": "sft of beta=0.1,seed=1"}
    assert lines() == dict.fromkeys(FIRST, "trains sft") | others
    assert main(["--config", path, *GRID]) == 0
    capsys.readouterr()
    assert main(["--config", path, *GRID, "--check"]) == 0
    assert lines() == dict.fromkeys(FIRST, "has trained sft") | others


# ---------------------------------------------------------------- the real program


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two betas, two seeds."""
    directory = tmp_path_factory.mktemp("swept")
    command = [
        "--config",
        str(
            write_config(
                directory,
                po={"steps": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.001}},
                evaluation={"sampled_prompts": None},
            )
        ),
        "objective.kind=dpo",
        *GRID,
    ]
    assert main(command) == 0
    return directory / "run", command


def test_every_run_is_as_if_it_had_run_alone(swept):
    base, command = swept

    def first_loss(run):
        return next(row["loss"] for row in lines_of(run / "metrics.jsonl") if row["stage"] == "po")

    losses = {run.name: first_loss(run) for run in base.iterdir() if run.is_dir()}
    assert (
        losses.keys() == {"beta=0.1,seed=0", "beta=0.1,seed=1", "beta=0.4,seed=0", "beta=0.4,seed=1"}
        and len(set(losses.values())) == 4
    )
    alone = base.parent / "alone"
    assert main([*command[:3], f"output_dir={alone}", "objective.beta=0.4", "seed=1"]) == 0
    assert (alone / "sft/final").exists() and not (base / "beta=0.4,seed=1/sft").exists(), (
        "alone it trains the sft that it took in the sweep"
    )
    assert first_loss(alone) == losses["beta=0.4,seed=1"]
    assert (
        json.loads((alone / "summary.json").read_text())["after"]
        == json.loads((base / "beta=0.4,seed=1/summary.json").read_text())["after"]
    )


def test_a_sweep_ends_with_one_report_of_its_runs(swept):
    found = json.loads((swept[0] / "comparison.json").read_text())
    assert [(group["label"], list(group["runs"])) for group in found["groups"]] == [
        ("beta 0.1", ["0", "1"]),
        ("beta 0.4", ["0", "1"]),
    ]
    assert "after.accuracy_unmasked" in found["groups"][0]["metrics"] and found["left_out"] == []
    assert (swept[0] / "comparison.html").read_text().count("<html") == 1


def test_a_stage_beside_the_runs_of_a_sweep_reads_none_of_them(swept, capsys):
    """Kills: an export of the policy that all runs began with."""
    base, command = swept
    config = command[: command.index("--sweep")]
    assert main([*config, "stages=[export]"]) == 1
    assert f"output_dir: {base} holds a sweep" in capsys.readouterr().err and not (base / "export").exists()
    cell = base / "beta=0.1,seed=0"
    assert main(["--config", str(cell / "config.yaml"), "stages=[export]"]) == 0
    assert "Trained with sparsepo_jax" in (cell / "export" / "README.md").read_text()
    shutil.rmtree(cell / "export")


def test_what_is_finished_is_not_run_again(swept, capsys):
    base, command = swept
    before = {path: path.stat().st_mtime_ns for path in base.rglob("summary.json")}
    seconds = [run["seconds"] for run in json.loads((base / "sweep.json").read_text())["runs"]]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("po: finished before") == said.count("sft: finished before") == 4
    assert f"sft: finished before, that of {base / 'beta=0.1,seed=1'}\n" in said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert [
        run["seconds"] for run in json.loads((base / "sweep.json").read_text())["runs"]
    ] == seconds and min(seconds) > 0


# ---------------------------------------------------------------- the sft of another run


@pytest.fixture
def trained(swept, tmp_path):
    """A run that has finished its sft and no more, and the command that takes it for others."""
    first, directory = swept[0] / "beta=0.1,seed=0", tmp_path / "trained"
    shutil.copytree(first / "sft", directory / "sft")
    marks = json.loads((first / "stages.json").read_text())
    (directory / "stages.json").write_text(json.dumps({"sft": marks["sft"]}))
    config = swept[1][:2]

    def take(name, *overrides):
        settings = {"output_dir": tmp_path / name, "sft.taken_from": directory, "stages": "[sft]"}
        settings |= dict(override.split("=", 1) for override in overrides)
        return main([*config, *(f"{key}={value}" for key, value in settings.items())])

    return directory, take


def test_an_sft_of_other_settings_or_rows_or_none_is_refused_in_one_line(trained, tmp_path, capsys):
    directory, take = trained

    def refused(said):
        return capsys.readouterr().err == f"error: {said}\n" and not (tmp_path / "new/stages.json").exists()

    assert take("new", "sft.steps=9", "seed=3") == 1
    assert refused(
        f"{directory} holds stage sft with other settings: seed, sft.steps; set them back, or leave "
        f"out sft.taken_from"
    )
    assert take("new", f"sft.taken_from={tmp_path}/absent") == 1
    none = f"found none in {tmp_path}/absent; run it first, or leave out sft.taken_from"
    assert refused(
        f"sft.taken_from: expected the output_dir of a run that has finished its stage sft, {none}"
    )
    (directory / "sft/data.json").write_text(json.dumps({"reviews(seed=1)": "other"}))
    assert take("new") == 1
    assert refused(
        f"reviews(seed=1): other rows than those that stage sft in {directory} began with; bring the "
        f"old file back, or leave out sft.taken_from; if no file has changed, a newer version reads it "
        f"otherwise: responses of several turns (data.train_on), token weights (CHANGELOG)"
    )
    (directory / "stages.json").write_text("[")
    assert take("new") == 1
    assert refused(
        f"{directory}/stages.json: expected what a run has finished, found something else; bring the "
        f"old file back, or leave out sft.taken_from"
    )
    shutil.rmtree(directory / "sft")
    assert take("new", "stages=[po]") == 1
    assert refused(
        f"sft.taken_from: the stage sft takes what {directory} has trained, and has not been run "
        f"here: add it to stages"
    )


def test_an_sft_is_taken_where_it_lies_from_run_to_run(trained, tmp_path, capsys):
    """b takes from a what a has taken.

    Moved, it is found by the setting; gone, runs that took it still have it finished, and say what lacks.
    """
    from safetensors.numpy import load_file

    directory, take = trained
    assert take("a") == take("b", f"sft.taken_from={tmp_path / 'a'}") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"sft: that of {directory}",
        f"sft: that of {tmp_path / 'a'}",
    ]
    assert not list((tmp_path / "b").glob("**/final"))
    directory.rename(tmp_path / "moved")
    assert take("b") == 0 and f"sft: finished before, that of {directory}\n" == capsys.readouterr().out
    assert take("b", "stages=[sft, export]") == 1
    gone = f"the sft that {tmp_path / 'b'} has taken is not in {directory} any more"
    assert capsys.readouterr().err == f"error: {gone}; bring it back, or take another output_dir\n"
    assert take("b", "stages=[sft, export]", f"sft.taken_from={tmp_path / 'moved'}") == 0
    assert (
        take("moved", "stages=[sft, export]") == take("random", "stages=[export]", "sft.taken_from=null") == 0
    )
    found, own, random = (
        load_file(tmp_path / name / "export/model.safetensors") for name in ("b", "moved", "random")
    )
    assert all(np.array_equal(found[name], own[name]) for name in own) and any(
        not np.array_equal(found[name], random[name]) for name in own
    )
