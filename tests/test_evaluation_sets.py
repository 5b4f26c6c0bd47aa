"""Several evaluation sets by name: each has figures of its own, and one of them is the main one."""

import json

import pytest

from helpers.configs import make_config
from helpers.program import lines_of, run, write_config
from sparsepo_jax.config.derive import main_set
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.main import main
from sparsepo_jax.report.sets import sets_table
from sparsepo_jax.run.check import make_plan_text

EASY = {"kind": "reviews", "rows": 9, "seed": 3}
HARD = {"kind": "reviews", "rows": 7, "seed": 4}
SETS = {"easy": [EASY], "hard": [HARD]}
STAGES = "stages=[po, score, eval, report]"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The same training, evaluated on two named sets, and on the second alone without a name."""
    named, alone = tmp_path_factory.mktemp("named"), tmp_path_factory.mktemp("alone")
    changes = {
        "po": {"steps": 3, "eval_every_steps": 3},
        "evaluation": {"main": "hard", "sampled_prompts": None},
    }
    data = {"holdout": {"share": 0.2}}
    of_named = run(named, STAGES, data=data | {"eval": SETS}, **changes)
    changes["evaluation"] = {"sampled_prompts": None}
    return of_named, run(alone, STAGES, data=data | {"eval": [HARD]}, **changes)


def test_each_set_has_its_own_metrics_and_the_main_one_is_the_headline(outputs):
    named, _ = outputs
    [row] = [row for row in lines_of(named / "metrics.jsonl") if "eval/loss" in row]
    losses = {name: row[f"eval_{name}/loss"] for name in ("easy", "hard", "holdout")}
    assert row["eval/loss"] == losses["hard"] and len(set(losses.values())) == 3
    summary = json.loads((named / "summary.json").read_text())
    assert summary["main"] == "hard" and list(summary["sets"]) == ["easy", "hard", "holdout"]
    assert [of["pairs"] for of in summary["sets"].values()] == [9, 7, summary["sets"]["holdout"]["pairs"]]
    assert summary["pairs"] == 7 and summary["after"]["kl"] == summary["sets"]["hard"]["after"]["kl"]
    assert len({of["after"]["margin_unmasked"] for of in summary["sets"].values()}) == 3
    assert all(
        of["mask"]["auroc_reward"] > 0 and "preferred rightly" in of["words"]
        for of in summary["sets"].values()
    )


def test_a_set_has_the_figures_that_it_has_alone(outputs):
    """The held-out part is joined to a list without names: rows 8 and later of the second run."""
    named, alone = outputs
    ours = [row for row in lines_of(named / "scores.jsonl") if row["set"] == "hard"]
    theirs = lines_of(alone / "scores.jsonl")
    assert all("set" not in row for row in theirs) and len(ours) == 7 < len(theirs)
    assert [{name: x for name, x in row.items() if name != "set"} for row in ours] == theirs[:7]
    counts = {name: 0 for name in ("easy", "hard", "holdout")}
    for row in lines_of(named / "scores.jsonl"):
        counts[row["set"]] += 1
    assert (counts["easy"], counts["hard"], counts["hard"] + counts["holdout"]) == (9, 7, len(theirs))


def test_report_and_terminal_show_all_sets_where_they_have_names(outputs):
    named, alone = outputs
    page = (named / "report.html").read_text()
    assert "Evaluation sets" in page and "hard (main)" in page
    assert "Evaluation sets" not in (alone / "report.html").read_text()
    lines = sets_table(json.loads((named / "summary.json").read_text())).splitlines()
    assert [line.split()[0] for line in lines] == ["set", "easy", "hard", "holdout"]
    assert sets_table(json.loads((alone / "summary.json").read_text())) == ""


def test_evaluation_is_done_again_when_another_set_is_the_main_one(outputs, capsys):
    """Kills: a stage record that does not know which set headlines are about."""
    named, _ = outputs
    config = str(named.parent / "config.yaml")
    for name, again in (("hard", False), ("easy", True)):
        assert main(["--config", config, "stages=[eval]", f"evaluation.main={name}"]) == 0
        assert ("finished before" in capsys.readouterr().out) == (not again)
    summary = json.loads((named / "summary.json").read_text())
    assert summary["main"] == "easy" and summary["pairs"] == 9


def test_the_first_set_is_the_main_one_unless_another_is_named():
    assert main_set(make_config(data={"train": [EASY], "eval": SETS})) == "easy"
    assert main_set(make_config(data={"train": [EASY], "eval": [EASY]})) is None


@pytest.mark.parametrize(
    "data, evaluation, line",
    [
        ({"eval": {"a b": [EASY]}}, {}, "data.eval.a b: expected a name of at most 40 letters"),
        ({"eval": {"path": "a.jsonl"}}, {}, "data.eval.path: expected a list, got 'a.jsonl'"),
        ({"eval": {"a": [{"kind": "revews"}]}}, {}, "data.eval.a.0.kind: expected one of file, reviews"),
        ({"eval": {"a": [{"kind": "file"}]}}, {}, "data.eval.a.0.path: required, but missing"),
        ({"eval": SETS}, {"main": "soft"}, "evaluation.main: expected one of easy, hard; got 'soft'"),
        ({"eval": [EASY]}, {"main": "easy"}, "evaluation.main: data.eval has no names: leave it out; got"),
        ({"eval": {"holdout": [EASY]}, "holdout": {"share": 0.1}}, {}, "data.eval.holdout: this is what"),
    ],
)
def test_a_mistake_in_the_sets_is_one_line_at_its_place(tmp_path, data, evaluation, line):
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, data=data, evaluation=evaluation))
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith(line)


def test_an_entry_of_a_set_is_overridden_by_its_place(tmp_path):
    path = write_config(tmp_path, data={"eval": SETS})
    config, notes = load_config(path, ["data.eval.hard.0.kind=file", "data.eval.hard.0.path=x.jsonl"])
    assert config.data.eval["hard"][0].path == "x.jsonl" and "dropped rows, seed" in notes[0]


def test_the_plan_counts_each_set():
    data = {"train": [EASY], "eval": SETS, "holdout": {"share": 0.5}}
    text = make_plan_text(make_config(stages=["po", "eval"], data=data))
    assert "evaluation  easy: 9 pairs; hard: 7 pairs; holdout: about 4 pairs" in text
