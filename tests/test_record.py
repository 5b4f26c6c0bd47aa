"""A run's record says what that run did: settings, steps, and who is at work in a directory."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.configs import make_config
from helpers.interrupt import Interrupted, stop_before
from helpers.program import lines_of, run, write_config
from sparsepo_jax.core import lock as locks
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.lock import DirectoryLock
from sparsepo_jax.main import main
from sparsepo_jax.report.compare.groups import find_groups
from sparsepo_jax.report.files import read_settings
from sparsepo_jax.stages.context import Run
from sparsepo_jax.train.log import MetricsLog
from sparsepo_jax.train.trackers import About


def silent(text: str) -> None:
    """For notes that a test does not look at."""


def files_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    return directory, run(
        directory, "objective.beta=0.1", stages=["sft", "po", "eval"], evaluation={"sampled_prompts": None}
    )


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "stages",
    ["sft, po, eval", "eval", "score", "generate", "export", "measure", "harness", "pairs", "inspect"],
)
def test_a_run_with_other_settings_leaves_the_record_as_it_is(finished, stages, capsys):
    """Reading stages, too: their figures would stand beside a beta that nothing was trained with."""
    directory, output = finished
    before = files_of(output)
    settings = [
        "measure.text={}",
        "harness.tasks=[arc_easy]",
        "data.prompts=[{kind: reviews}]",
        "scorer={kind: function, function: 'm:f'}",
        "generation.samples=2",
    ]
    status = main(
        ["--config", str(directory / "config.yaml"), f"stages=[{stages}]", "objective.beta=0.9", *settings]
    )
    shown = capsys.readouterr()
    if stages == "inspect":
        assert status == 0
    else:
        assert (
            status == 1
            and "holds stage po with other settings: objective.beta;" in shown.err
            and shown.err.count("\n") == 1
        )
    assert files_of(output) == before


def test_inspecting_with_another_model_leaves_the_record_as_it_is(finished):
    directory, output = finished
    before = files_of(output)
    assert (
        main(["--config", str(directory / "config.yaml"), "stages=[inspect]", "policy.config.n_embd=32"]) == 0
    )
    assert files_of(output) == before


def test_a_comparison_reads_what_was_trained_and_evaluated_not_what_was_typed_last(finished):
    _, output = finished
    config = output / "config.yaml"
    text = config.read_text()
    try:
        config.write_text(
            text.replace("beta: 0.1", "beta: 0.9")
            .replace("n_embd: 16", "n_embd: 32")
            .replace("max_pairs: null", "max_pairs: 3")
        )
        assert config.read_text() != text
        settings = read_settings(output)
        assert (
            settings["objective"]["beta"] == 0.1
            and settings["policy"]["config"]["n_embd"] == 16
            and settings["evaluation"]["max_pairs"] is None
        )
        (group,), _ = find_groups([output])
        assert group.beta == 0.1
    finally:
        config.write_text(text)


def test_answers_sampled_in_another_way_do_not_change_how_the_evaluation_was_sampled(tmp_path):
    """Kills: figures of eval under the temperature of generate, run later."""
    marks = {
        "eval": {"depends": {"generation": {"temperature": 1.0, "top_k": None}}},
        "generate": {"depends": {"generation": {"temperature": 0.2, "top_k": None}}},
    }
    runs = [tmp_path / name for name in ("one", "other")]
    for path, temperature in zip(runs, (0.2, 1.0), strict=True):
        path.mkdir()
        marks["generate"]["depends"]["generation"]["temperature"] = temperature
        (path / "stages.json").write_text(json.dumps(marks))
        (path / "config.yaml").write_text(
            f"objective: {{kind: dpo}}\ngeneration: {{temperature: {temperature}}}"
        )
        (path / "summary.json").write_text('{"after": {"accuracy": 0.5}}')
    assert read_settings(runs[0])["generation"]["temperature"] == 1.0
    groups, left_out = find_groups(runs)
    assert [group.label for group in groups] == ["temperature 0.2", "temperature as in eval"]
    assert not left_out
    (group,), _ = find_groups(runs[:1])
    assert group.label == "dpo"


def test_a_kind_that_was_typed_last_leaves_nothing_in_the_settings(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "objective: {kind: sparsepo, mask: {kind: learned}}\ndata: {cache_dir: c, train: [1]}"
    )
    (tmp_path / "stages.json").write_text(
        json.dumps(
            {"po": {"depends": {"objective": {"kind": "dpo"}, "data": {"train": [2]}}, "finished": 1.0}}
        )
    )
    assert read_settings(tmp_path) == {"objective": {"kind": "dpo"}, "data": {"cache_dir": "c", "train": [2]}}


@pytest.mark.parametrize("record", ["[1]", "{", '{"po": 3}', '{"po": {"depends": [1]}}', "[" * 2000])
def test_a_record_that_is_none_of_ours_is_passed_over(tmp_path, record):
    (tmp_path / "config.yaml").write_text("seed: 3")
    (tmp_path / "stages.json").write_text(record)
    assert read_settings(tmp_path) == {"seed": 3}


def test_a_stage_that_reads_is_recorded_with_its_own_settings(finished):
    directory, output = finished
    command = [
        "--config",
        str(directory / "config.yaml"),
        "objective.beta=0.1",
        "generation.max_prompts=2",
        "generation.max_new_tokens=4",
    ]
    assert main([*command, "stages=[generate]", "generation.temperature=0.5"]) == 0
    marks = json.loads((output / "stages.json").read_text())
    assert (
        marks["generate"]["depends"]["generation"]["temperature"] == 0.5
        and marks["eval"]["depends"]["generation"]["temperature"] == 1.0
    )


def test_what_a_model_leaves_to_transformers_is_recorded(tmp_path):
    """Of the policy with each stage that trains, of the reference beside its digest. It was only said."""
    made = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16}
    made |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    steps = {"steps": 1, "batch_size": 8}
    changes = {"stages": ["sft", "po"], "sft": steps, "po": steps, "evaluation": {"sampled_prompts": None}}
    output = run(tmp_path, policy={"config": made}, **changes)
    taken = {"rms_norm_eps": 1e-6}
    for name in ("sft/facts.json", "po/facts.json", "po/reference.json"):
        assert json.loads((output / name).read_text())["config_defaults"] == taken, name


def test_a_run_that_fails_before_anything_happened_leaves_nothing(tmp_path, capsys):
    for wrong in (
        "data.sft=[{path: nowhere.jsonl}]",
        "sft.batch_size=12",
        "policy={path: ./nowhere}",
        "sft.taken_from=nowhere",
    ):
        assert (
            main(
                [
                    "--config",
                    str(write_config(tmp_path, output_dir=str(tmp_path / "a" / "b"))),
                    "stages=[sft]",
                    wrong,
                ]
            )
            == 1
        ), wrong
        assert not (tmp_path / "a").exists(), wrong
    (tmp_path / "a").mkdir()
    assert (
        main(
            [
                "--config",
                str(write_config(tmp_path, output_dir=str(tmp_path / "a"))),
                "stages=[sft]",
                "sft.batch_size=12",
            ]
        )
        == 1
    )
    assert list((tmp_path / "a").iterdir()) == [], "a directory that was there stays"


# ---------------------------------------------------------------- steps


def steps_of(path: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in lines_of(path)]


def test_steps_behind_the_checkpoint_are_written_once(tmp_path):
    def log(stage, after, steps):
        return write_steps(tmp_path, stage, after, steps)

    log("sft", 0, (2, 4))
    log("po", 0, (2, 4, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "po", "st')  # killed
    log("po", 2, (4, 6, 8))
    assert steps_of(tmp_path / "metrics.jsonl") == [
        ("sft", 2),
        ("sft", 4),
        ("po", 2),
        ("po", 4),
        ("po", 6),
        ("po", 8),
    ]
    log("po", 0, (2,))
    assert steps_of(tmp_path / "metrics.jsonl") == [("sft", 2), ("sft", 4), ("po", 2)]


def test_an_evaluation_that_is_made_up_for_stands_there_once(tmp_path):
    """Of the step that a run continues after; its window, and other stages' evaluations, stay."""
    path = tmp_path / "metrics.jsonl"
    rows = [("sft", 2, "eval/loss"), ("po", 2, "loss"), ("po", 2, "eval/loss"), ("po", 2, "eval_easy/loss")]
    lines = [json.dumps({"stage": stage, "step": step, name: 1.0}) + "\n" for stage, step, name in rows]
    path.write_text("".join(lines))
    about = About(tmp_path, "po", 2, project="p", name="n", config={})
    with MetricsLog(about, []):
        assert path.read_text() == "".join(lines)
    with MetricsLog(about, [], evaluates_again=True):
        assert path.read_text() == "".join(lines[:2])


def test_the_time_of_a_stage_goes_on_where_a_run_does(tmp_path):
    """From the last step that stays, of that stage alone; a stage that begins anew counts from 0."""
    path = tmp_path / "metrics.jsonl"
    times = [("sft", 2, 900.0), ("po", 2, 100.0), ("po", 4, 200.0), ("po", 6, 300.0), ("sft", 4, 950.0)]
    rows = [{"stage": stage, "step": step, "time_s": time_s} for stage, step, time_s in times]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_steps(tmp_path, "po", 4, (6,))
    assert 200.0 <= lines_of(path)[-1]["time_s"] < 300.0
    write_steps(tmp_path, "po", 0, (2,))
    assert lines_of(path)[-1]["time_s"] < 100.0


def test_steps_since_the_last_line_are_written_when_a_run_is_stopped(tmp_path, monkeypatch):
    """In the middle of a window. Kills: steps that no line is about, since the next begins behind them."""
    looks = iter([None, None, KeyboardInterrupt])  # before the stage, and after two steps
    monkeypatch.setattr("sparsepo_jax.stages.context.make_should_stop", lambda stop: lambda: next(looks))
    config = write_config(tmp_path, stages=["po"], logging={"every_steps": 3, "trackers": []})
    assert main(["--config", str(config)]) != 0
    assert steps_of(tmp_path / "run" / "metrics.jsonl") == [("po", 2)]
    monkeypatch.undo()
    assert main(["--config", str(config)]) == 0
    assert steps_of(tmp_path / "run" / "metrics.jsonl") == [("po", 2), ("po", 3), ("po", 6)]


def test_weights_are_said_to_be_trained_where_they_are():
    """Kills: a policy that is only read, or stands under adapters, "trained in float32"."""

    def said(stages, **sections):
        rows = [{"path": "rows.jsonl"}]
        data = {"sft": rows, "train": rows, "eval": rows}
        return Run._how_trained(SimpleNamespace(config=make_config(stages=stages, data=data, **sections)))

    adapters = {"po": {"lora": {}}}
    assert said(["eval"]) == said(["score", "report"], **adapters) == ""
    assert said(["po"]) == said(["sft", "po"], **adapters) == "; they are trained in float32"
    assert said(["po", "eval"], **adapters) == "; adapters on them are trained in float32"


def test_how_long_a_run_took_counts_all_of_its_parts(tmp_path, monkeypatch):
    """An sft that was finished before, and a po that was killed: 5,000 and 700 s of other days.

    Kills: only the stages that are not named again; only the time since the last start.
    """
    stages = ["sft", "po", "eval"]
    changes = {"evaluation": {"sampled_prompts": None}, "checkpoint": {"every_steps": 2}}
    config = write_config(tmp_path, stages=stages, **changes)
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_before(patched, 5)  # of each stage; sft has 4
        with pytest.raises(Interrupted):
            main(["--config", str(config)])
    marks = json.loads((output / "stages.json").read_text())
    marks["sft"]["seconds"] = 5000.0
    (output / "stages.json").write_text(json.dumps(marks))
    rows = lines_of(output / "metrics.jsonl")
    assert rows[-1]["stage"] == "po" and rows[-1]["step"] >= 4
    rows = [row | {"time_s": 700.0} for row in rows]
    (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--config", str(config)]) == 0
    assert 5700.0 < json.loads((output / "summary.json").read_text())["seconds"] < 6700.0
    assert 700.0 < json.loads((output / "stages.json").read_text())["po"]["seconds"] < 1700.0
    assert lines_of(output / "metrics.jsonl")[-1]["time_s"] > 700.0


def write_steps(directory: Path, stage: str, after: int, steps: tuple[int, ...]) -> None:
    with MetricsLog(About(directory, stage, after, project="p", name="n", config={}), []) as log:
        for step in steps:
            log.write(stage, step, {"loss": 1.0})


# ---------------------------------------------------------------- one run a directory

HOLD = """
import sys, time
from pathlib import Path
from sparsepo_jax.core.lock import DirectoryLock

DirectoryLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock on tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_in_a_directory_is_refused_in_one_line_and_takes_over_when_the_first_is_killed(
    holder, tmp_path, capsys
):
    config = write_config(tmp_path, stages=["sft"])
    before = files_of(tmp_path / "run")
    assert main(["--config", str(config)]) == 1
    err = capsys.readouterr().err
    assert f"process {holder.pid} on " in err and "is in use" in err and err.count("\n") == 1
    assert files_of(tmp_path / "run") == before, "nothing of the loser stays behind"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began_s = time.monotonic()
    lock = DirectoryLock(tmp_path / "run", silent)
    lock.take()
    assert time.monotonic() - began_s < 5
    lock.release()
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_looking_at_a_directory_in_use_is_allowed(holder, tmp_path, capsys):
    assert main(["--config", str(write_config(tmp_path)), "stages=[inspect]"]) == 0


def sign(directory: Path, **changes) -> dict:
    """The lock file of an owner that we cannot see; changes: of what it says of itself."""
    directory.mkdir(parents=True, exist_ok=True)
    owner = (
        locks._this_process(0)
        | {"pid": 7, "host": "elsewhere", "kernel": "another", "alive": time.time(), "run": "theirs"}
        | changes
    )
    (directory / locks.FILE).write_text(json.dumps(owner))
    os.utime(directory / locks.FILE, (owner["alive"], owner["alive"]))
    return owner


def test_an_owner_on_another_host_that_gives_signs_of_life_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "GONE_AFTER_S", 30.0)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: sign(tmp_path, alive=time.time()))
    sign(tmp_path, alive=time.time() - 5)
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        DirectoryLock(tmp_path, silent).take()
    assert json.loads((tmp_path / locks.FILE).read_text())["run"] == "theirs"


@pytest.mark.parametrize("silent_s", [0.0, 1e6])
def test_an_owner_on_another_host_that_is_silent_is_gone(tmp_path, monkeypatch, silent_s):
    monkeypatch.setattr(locks, "GONE_AFTER_S", 0.5)
    sign(tmp_path, alive=time.time() - silent_s)
    notes = []
    lock = DirectoryLock(tmp_path, notes.append)
    lock.take()
    assert re.search("process 7 on elsewhere .* is gone", notes[-1]) and len(notes) == (1 if silent_s else 2)
    lock.release()
    assert not (tmp_path / locks.FILE).exists()


def test_a_process_id_that_is_used_again_is_not_the_owner(tmp_path, monkeypatch):
    """Without locks of the file system: our own process id, started at another time."""
    monkeypatch.setattr(locks, "_lock_file", lambda file: None)
    here = locks._this_process(0)
    sign(tmp_path, pid=os.getpid(), kernel=here["kernel"], started="1")
    lock = DirectoryLock(tmp_path, silent)
    lock.take()
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        DirectoryLock(tmp_path, silent).take()
    lock.release()


def test_who_was_taken_over_stops_and_leaves_the_lock_of_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SIGN_EVERY_S", 0.01)
    sent, notes = [], []
    monkeypatch.setattr(locks.os, "kill", lambda pid, number: sent.append((pid, number)))
    lock = DirectoryLock(tmp_path, notes.append)
    lock.take()
    sign(tmp_path)
    until_s = time.monotonic() + 10
    while not sent and time.monotonic() < until_s:
        time.sleep(0.01)
    assert sent == [(os.getpid(), signal.SIGTERM)] and "process 7 on elsewhere" in notes[0]
    lock.release()
    assert json.loads((tmp_path / locks.FILE).read_text())["run"] == "theirs"
