"""Early stopping and the best weights: by a metric of the evaluations, and the same after a kill."""

import json
import math
import shutil

import numpy as np
import pytest

from helpers.interrupt import Interrupted, stop_before
from helpers.program import lines_of, merged, run, weights_of, write_config
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.main import main
from sparsepo_jax.stages import po
from sparsepo_jax.train.best import Best, Watched

# ---------------------------------------------------------------- what the best is, and when to stop


def seen(values, **settings) -> Best:
    """After evaluations at steps 10, 20, ..., as far as patience lets them come."""
    best = Best(Watched("setting", "x", **settings))
    for n, value in enumerate(values, start=1):
        if best.should_stop:
            break
        best.see(10 * n, {"x": value})
    return best


@pytest.mark.parametrize(
    "values, settings, best_step, last_step, stops",
    [
        ([1, 3, 2, 1, 9], {"patience": 2}, 20, 40, True),
        ([1, 3, 2, 4, 1, 1], {"patience": 2}, 40, 60, True),
        ([3, 1, 2, 2, 9], {"patience": 3, "mode": "min"}, 20, 50, True),
        ([1, 1, 1], {"patience": 2}, 10, 30, True),  # the first of equals
        ([1, 1, 1], {}, 10, 30, False),
        # Gains of 0.4 are more than 0.5 two at a time: from the last improvement on, not from the last value.
        ([0, 0.4, 0.8, 1.2, 1.4, 1.4], {"patience": 2, "min_delta": 0.5}, 50, 60, False),
        ([0, 0.1, 0.2, 9], {"patience": 2, "min_delta": 0.5}, 30, 30, True),
        ([math.nan, math.nan, 1], {"patience": 2}, None, 20, True),
        ([math.nan, 1, math.nan, math.inf], {"patience": 2}, 20, 40, True),
    ],
)
def test_the_best_and_the_end_of_patience(values, settings, best_step, last_step, stops):
    best = seen(values, **settings)
    assert (best.step, best.should_stop) == (best_step, stops) and best.has_seen(last_step)


def test_a_record_goes_on_as_if_nothing_had_been_interrupted():
    """Kills: a record that lacks the level, the count or the step. Any cut gives the same."""
    values, settings = [0.0, 0.6, 0.7, 1.0, 0.9], {"patience": 3, "min_delta": 0.5}
    whole = seen(values, **settings)
    for cut in range(len(values)):
        record = json.loads(json.dumps(seen(values[:cut], **settings).record()))
        resumed = Best(whole.watched)
        resumed.restore(record)
        for n in range(cut, len(values)):
            resumed.see(10 * (n + 1), {"x": values[n]})
        assert resumed.record() == whole.record()
    other = Best(whole.watched._replace(metric="y"))
    other.restore(whole.record())
    assert other.step is None, "the record is of another metric"


# ---------------------------------------------------------------- runs

# The KL grows from step to step: the first evaluation is the best, and the third ends patience.
STOPPING = {
    "steps": 6,
    "eval_every_steps": 1,
    "early_stopping": {"metric": "eval_first/kl/chosen", "mode": "min", "patience": 2},
    "keep": "best",
    "schedule": {"kind": "constant", "warmup_steps": 0},
}
CHANGES = {
    "stages": ["po"],
    "data": {
        "eval": {
            "main": [{"kind": "reviews", "rows": 8, "seed": 4}],
            "first": [{"kind": "reviews", "rows": 8, "seed": 3}],
        }
    },
    "po": STOPPING,
    "checkpoint": {"every_steps": 2, "keep": 1},
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return run(tmp_path_factory.mktemp("stopped"), **CHANGES)


def saved_steps(output):
    return sorted(int(path.name) for path in (output / "po" / "checkpoints").iterdir() if path.name.isdigit())


def same_weights(output, expected):
    ours, theirs = weights_of(output / "po"), weights_of(expected / "po")
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_a_run_stops_early_and_leaves_its_best_weights(stopped, tmp_path):
    """The best are those of step 1: what a run of one step leaves."""
    facts = json.loads((stopped / "po" / "facts.json").read_text())
    assert (facts["steps"], facts["steps_done"], facts["weights_of_step"]) == (6, 3, 1)
    assert saved_steps(stopped) == [1, 3]
    evaluated = [row for row in lines_of(stopped / "metrics.jsonl") if "eval/loss" in row]
    kl = [row["eval_first/kl/chosen"] for row in evaluated]
    windows = [row["step"] for row in lines_of(stopped / "metrics.jsonl") if "loss" in row]
    assert windows[-1] == 3, "the steps since the last window are written when po stops"
    assert [row["step"] for row in evaluated] == [1, 2, 3] and kl == sorted(kl) and kl[0] < kl[1]
    changes = {"stages": ["po"], "po": STOPPING | {"steps": 1, "early_stopping": None, "keep": "last"}}
    same_weights(run(tmp_path, **merged(CHANGES, changes)), stopped)


@pytest.mark.parametrize("steps_before", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_stops_at_the_same_step_with_the_same_weights(
    stopped, tmp_path, monkeypatch, steps_before
):
    """Kills: a count of evaluations that begins anew; a best that is forgotten."""
    config = write_config(tmp_path, **CHANGES)
    with monkeypatch.context() as patched:
        stop_before(patched, steps_before + 1)
        with pytest.raises(Interrupted):
            main(["--config", str(config)])
    assert main(["--config", str(config)]) == 0
    assert saved_steps(tmp_path / "run") == [1, 3]
    same_weights(tmp_path / "run", stopped)


def test_a_run_that_was_killed_after_it_stopped_trains_no_further(stopped, tmp_path, capsys):
    """After the last checkpoint and before the weights were kept. Kills: a stop that is not kept."""
    shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "po" / "final")
    (tmp_path / "run" / "stages.json").unlink()
    assert main(["--config", str(write_config(tmp_path, **CHANGES))]) == 0
    assert "continues after step 3 of 6" in capsys.readouterr().out
    assert saved_steps(tmp_path / "run") == [1, 3]
    same_weights(tmp_path / "run", stopped)


def test_a_damaged_best_is_removed_and_the_last_weights_are_kept(stopped, tmp_path, capsys):
    """Kills: hours of training that only a copy of the best could save."""
    shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "po" / "final")
    (tmp_path / "run" / "stages.json").unlink()
    best = tmp_path / "run" / "po" / "checkpoints" / "1"
    for path in best.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    config = str(write_config(tmp_path, **CHANGES))
    assert main(["--config", config]) == 1
    assert "is damaged" in (said := capsys.readouterr().err) and "or remove 1 from there" in said
    shutil.rmtree(best)
    assert main(["--config", config]) == 0
    assert "the last weights are kept" in capsys.readouterr().out


@pytest.mark.slow
def test_an_evaluation_that_was_interrupted_is_made_up_for(stopped, tmp_path, monkeypatch):
    """Ctrl-C within the evaluation of step 2 saves step 2; patience must not lose that evaluation."""
    config = write_config(tmp_path, **CHANGES)
    calls, evaluate = [], po._evaluate

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(po, "_evaluate", interrupted)
        assert main(["--config", str(config)]) == 130
    assert main(["--config", str(config)]) == 0
    steps = [row["step"] for row in lines_of(tmp_path / "run" / "metrics.jsonl") if "eval/loss" in row]
    assert steps == [1, 2, 3]
    same_weights(tmp_path / "run", stopped)


def test_the_rows_that_decide_belong_to_the_run(stopped, capsys):
    """Kills: other evaluation rows, or another way to the best, in a run that goes on."""
    config = str(stopped.parent / "config.yaml")
    for override in ("data.eval.first.0.seed=5", "po.eval_every_steps=2", "po.early_stopping.patience=3"):
        assert main(["--config", config, override]) == 1
        assert f"with other settings: {override.split('=')[0].split('.0')[0]}" in capsys.readouterr().err


def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(tmp_path, capsys):
    """That of sft, too: po must not find the mistake hours later."""
    changes = merged(CHANGES, {"stages": ["sft", "po"], "po": {"early_stopping": {"metric": "eval/acuracy"}}})
    assert main(["--config", str(write_config(tmp_path, **changes))]) == 1
    error = capsys.readouterr().err
    assert "po.early_stopping.metric: no metric 'eval/acuracy'; there are eval/" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize(
    "po, checkpoint, line",
    [
        ({"early_stopping": {}}, {}, "po.early_stopping: it goes by evaluations while training: set po.eval"),
        ({"keep": "best", "eval_every_steps": 1}, {}, "po.keep: best by which metric?"),
        (
            {"early_stopping": {"metric": "eval/loss"}, "eval_every_steps": 1},
            {"best": {}},
            "checkpoint.best: po.early_stopping goes by another metric or mode",
        ),
        ({}, {"best": {}}, "checkpoint.best: it goes by evaluations while training: set po.eval_every_steps"),
        (
            {"eval_every_steps": 1},
            {"best": {"metric": "foo/bar"}},
            "checkpoint.best.metric: expected one of an evaluation set (eval/...), got 'foo/bar'",
        ),
        (
            {"early_stopping": {"metric": "eval_easy/loss"}, "eval_every_steps": 1},
            {},
            "po.early_stopping.metric: expected one of an evaluation set (eval/...), got 'eval_easy/loss'",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, po, checkpoint, line):
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, po=po, checkpoint=checkpoint))
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith(line)
