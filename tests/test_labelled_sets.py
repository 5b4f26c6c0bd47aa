"""Evaluation sets of single responses with a label, for KTO and its relatives."""

import json

import numpy as np
import pytest

from helpers.configs import make_config
from helpers.files_page import unexplained_metrics
from helpers.program import lines_of, run, weights_of, write_config
from helpers.report_files import visible_words
from sparsepo_jax.core.files import write_jsonl
from sparsepo_jax.data.reviews import make_review_pairs
from sparsepo_jax.main import main
from sparsepo_jax.report.sets import sets_table
from sparsepo_jax.report.table import number, summary_table
from sparsepo_jax.run.check import make_plan_text

BETA = 0.5
REVIEWS = make_review_pairs(16, 5)
PAIRS = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in REVIEWS]
ROWS = [  # three of four are desirable
    {"prompt": row["prompt"], "completion": row["rejected" if n % 4 == 0 else "chosen"], "label": n % 4 > 0}
    for n, row in enumerate(PAIRS)
]
TRAIN, ONE_PROMPT = ROWS[:11], [row | {"prompt": ROWS[11]["prompt"]} for row in ROWS[11:]]
PAIRS_OF_ONE_PROMPT = [row | {"prompt": PAIRS[13]["prompt"]} for row in PAIRS[13:]]
MIXED = [*PAIRS[11:13], *ROWS[13:16]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each list of rows, by name."""
    directory = tmp_path_factory.mktemp("rows")
    lists = {
        "train": TRAIN,
        "one": ONE_PROMPT,
        "single": ROWS[12:13],
        "pairs": PAIRS_OF_ONE_PROMPT,
        "mixed": MIXED,
    }
    for name, rows in lists.items():
        write_jsonl(directory / f"{name}.jsonl", rows)
    return {name: {"path": str(directory / f"{name}.jsonl")} for name in lists}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run of KTO, evaluated on sets of all kinds; its configuration beside it."""
    sets = {name: [files[name]] for name in ("one", "single", "pairs", "mixed")}
    changes = {
        "stages": ["po", "score", "eval", "export", "report"],
        "data": {"sft": [], "train": [files["train"]], "eval": sets},
        "objective": {"kind": "kto", "beta": BETA, "mask": None},
        "po": {"steps": 4, "batch_size": 8, "eval_every_steps": 4},
        "evaluation": {"sampled_prompts": None, "main": "one"},
    }
    changes["po"]["optimizer"] = {"kind": "adamw", "learning_rate": 0.01}
    return run(tmp_path_factory.mktemp("kto"), **changes)


def log_ratios(path):
    """Of each response in a file of scores."""
    rows = [row.get("chosen", row.get("rejected")) for row in lines_of(path)]
    return [np.sum(row["logp"]) - np.sum(row["ref_logp"]) for row in rows]


# ---------------------------------------------------------------- sets of one prompt


def test_the_baseline_of_one_prompt_is_that_of_training_responses_behind_it(files, finished, tmp_path):
    """KTO's z of five rows of one prompt, from the scores of the first five training responses behind it.

    Kills: responses of the set itself, and responses behind the prompts that they come with.
    """
    matched = [row | {"prompt": ONE_PROMPT[0]["prompt"]} for row in TRAIN[: len(ONE_PROMPT)]]
    write_jsonl(tmp_path / "matched.jsonl", matched)
    config = str(finished.parent / "config.yaml")
    sets = f'data.eval={{"one": [{{"path": "{tmp_path / "matched.jsonl"}"}}]}}'
    scores = (finished / "scores.jsonl").read_text()
    assert main(["--config", config, "stages=[score]", sets]) == 0
    direct = BETA * np.mean(log_ratios(finished / "scores.jsonl"))
    (finished / "scores.jsonl").write_text(scores)
    anchor = json.loads((finished / "summary.json").read_text())["sets"]["one"]["after"]["anchor"]
    assert direct > 1e-3
    np.testing.assert_allclose(anchor, direct, rtol=1e-4)


def test_without_any_other_prompt_there_is_one_line(files, tmp_path, capsys):
    data = {"sft": [], "train": [files["one"]], "eval": [files["train"]]}
    config = write_config(tmp_path, stages=["po"], data=data, objective={"kind": "kto", "mask": None})
    assert main(["--config", str(config)]) == 1
    assert "data.train: all 5 rows have the same prompt, and KTO's baseline" in capsys.readouterr().err


# ---------------------------------------------------------------- a cached reference, LoRA


@pytest.fixture(scope="module")
def trains(files):
    """Trains on the labelled rows for three steps, each with a line of metrics."""

    def train(directory, *overrides, stages=("po",), **changes):
        return run(
            directory,
            *overrides,
            stages=list(stages),
            data={"sft": [], "train": [files["train"]], "eval": [files["one"]]},
            objective={"kind": "kto", "beta": BETA, "mask": None},
            po={"steps": 3, "batch_size": 8} | changes.pop("po", {}),
            evaluation={"sampled_prompts": None},
            logging={"every_steps": 1, "trackers": []},
            **changes,
        )

    return train


def test_a_cached_reference_gives_the_same_training(trains, tmp_path):
    """Kills: mismatched responses without log-probs of the reference, or with those of the row's own."""
    fast = {"po": {"optimizer": {"kind": "adamw", "learning_rate": 0.01}}}
    plain = trains(tmp_path / "plain", **fast)
    cached = trains(tmp_path / "cached", **fast, reference={"cached": True, "cache_dir": str(tmp_path)})
    ours, theirs = (lines_of(directory / "metrics.jsonl") for directory in (cached, plain))
    assert [row["step"] for row in ours] == [1, 2, 3] and theirs[-1]["rewards/anchor"] > 1e-3
    for row, expected in zip(ours, theirs, strict=True):
        for name in ("loss", "rewards/anchor", "rewards/chosen", "rewards/rejected"):
            pair = np.array(
                [row[name], expected[name]], float
            )  # NaN for a class that the batch has no row of
            np.testing.assert_allclose(*pair, rtol=2e-4, atol=1e-6, err_msg=name)
    before, after = weights_of(plain / "po"), weights_of(cached / "po")
    for path in before:
        np.testing.assert_allclose(after[path], before[path], atol=1e-4, err_msg=path)


def test_adapters_are_trained_and_exported(trains, tmp_path, capsys):
    """Kills: a baseline whose policy is the base without its adapters: it would stay at 0."""
    lora = {"rank": 4, "alpha": 8}
    rate = {"kind": "adamw", "learning_rate": 0.05}
    po = {"lora": lora, "optimizer": rate, "steps": 4}
    output = trains(tmp_path, stages=["po", "eval", "export"], po=po)
    rows = lines_of(output / "metrics.jsonl")
    assert rows[-1]["rewards/anchor"] > 1e-3 and rows[-1]["loss"] < rows[0]["loss"]
    exported = [path.name for path in (output / "export").rglob("*.safetensors")]
    assert "adapter_model.safetensors" in exported, exported
    assert json.loads((output / "summary.json").read_text())["after"]["kl"] > 0
    said = capsys.readouterr().out
    assert "po: 11 responses, 4 steps of 8" in said and "eval: 5 responses in" in said
    assert "pairs" not in said.replace("pairs.jsonl", "")


# ---------------------------------------------------------------- what a set is read as


def test_a_set_with_a_label_anywhere_is_one_of_responses(finished):
    """Two pairs and three rows with labels, pairs first. Kills: a set that is told by its first row."""
    sets = json.loads((finished / "summary.json").read_text())["sets"]
    assert {name: of["pairs"] for name, of in sets.items()} == {"one": 5, "single": 1, "pairs": 3, "mixed": 7}
    assert {name for name, of in sets.items() if of.get("rows") == "responses"} == {"one", "single", "mixed"}
    assert sets["mixed"]["desirable"] == round((2 + sum(row["label"] for row in MIXED[2:])) / 7, 4)


def test_the_plan_says_what_rows_are(files, finished):
    """Kills: "rows" of pairs under KTO; pairs of a mixed set counted once."""
    kto = {"kind": "kto", "mask": None}
    sets = {name: [files[name]] for name in ("one", "pairs", "mixed")}
    data = {"train": [files["mixed"]], "eval": sets, "holdout": {"share": 0.5}}
    text = make_plan_text(make_config(stages=["po", "eval"], objective=kto, data=data))
    evaluated = "one: 5 responses; pairs: 3 pairs; mixed: 7 responses; holdout: about 4 responses"
    assert f"evaluation  {evaluated}" in text
    assert "about 3 responses an epoch" in text and "rows" not in text
    assert "response(s) of a device" in text and "pair" not in text.replace("pairs: 3 pairs", "")


def test_the_report_and_the_card_say_what_each_set_holds(finished):
    """The main set has responses. Kills: a column of pairs over counts of responses."""
    lines = sets_table(json.loads((finished / "summary.json").read_text())).splitlines()
    assert {" ".join(line.split()[:4]) for line in lines} == {
        "set rows accuracy before",
        "one (main) 5 responses",
        "single 1 responses 0.500",
        "pairs 3 pairs 0.500",
        "mixed 7 responses 0.500",
    }
    words = visible_words((finished / "report.html").read_text())
    assert "on\n5 held-out responses" in words and "responses, token by token" in words
    card = (finished / "export" / "README.md").read_text().partition("## Configuration")[0]
    assert "| pairs | 3 pairs |" in card and "of the 5 held-out responses" in card
    assert "pair" not in card.replace("| pairs | 3 pairs |", "")


def test_the_table_has_the_rewards_of_both_classes_and_their_baseline(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {"reward_desirable", "reward_undesirable", "anchor", "auroc"} <= summary["after"].keys()
    table = {line[:24].strip(): line.split()[-2:] for line in summary_table(summary).splitlines()}
    for label, name in (
        ("reward, desirable", "reward_desirable"),
        ("reward, undesirable", "reward_undesirable"),
        ("baseline", "anchor"),
        ("AUROC of rewards", "auroc"),
    ):
        assert table[label] == [number(summary[when][name]) for when in ("before", "after")]
        assert f">{label}<" in (finished / "report.html").read_text()


def test_single_responses_are_not_weighed_and_the_line_says_why(finished, tmp_path, capsys):
    weigh = {"kind": "log_ratio", "run": str(finished)}
    changes = {"stages": ["weigh"], "policy": None, "weigh": weigh, "objective": None, "data": None}
    config = write_config(tmp_path, **changes)
    assert main(["--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert "no scored pair; run the stage score again, on pairs, not on single responses" in error


# ---------------------------------------------------------------- metrics by name


def test_an_objective_without_masks_reports_nothing_of_them(finished):
    """Kills: means and zeros of weights that are ones because nothing weighs tokens."""
    names = {name for row in lines_of(finished / "metrics.jsonl") for name in row}
    assert "loss" in names and "eval_pairs/loss" in names
    assert not [name for name in names if "mask/" in name]
    html = (finished / "report.html").read_text()
    assert "Mask sparsity" not in html and "zeros in the" not in html


def test_metrics_are_known_by_the_names_that_each_set_reports(files, finished, capsys):
    """Kills: the names of the first set, taken for those of all."""
    rows = lines_of(finished / "metrics.jsonl")
    assert unexplained_metrics(rows) == set()
    [row] = [row for row in rows if "eval/loss" in row]
    reported = {name for name in row if name.startswith(("eval/", "eval_"))}
    again = f"output_dir={finished}_again"
    config = str(finished.parent / "config.yaml")
    overrides = [again, "stages=[po]", "checkpoint.best.metric=eval_pairs/share/chosen"]
    assert main(["--config", config, *overrides]) == 1
    error = capsys.readouterr().err.strip()
    start = "error: checkpoint.best.metric: no metric 'eval_pairs/share/chosen'; there are "
    assert error.startswith(start) and set(error.removeprefix(start).split(", ")) == reported
    assert "eval_mixed/share/chosen" in reported and "eval/share/chosen" in reported
    overrides[-1] = "checkpoint.best.metric=eval_mixed/share/chosen"
    assert main(["--config", config, *overrides, "po.steps=1", "po.eval_every_steps=1"]) == 0
