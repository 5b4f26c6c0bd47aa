"""Rounds of sampling, scoring, pairing and training, each from the policy of the one before."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.interrupt import Interrupted
from helpers.program import lines_of, run, weights_of, write_config
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.config.rounds import parts_of
from sparsepo_jax.main import main
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.stages import training
from sparsepo_jax.stages.rounds import say_rounds
from sparsepo_jax.stages.runner import STAGES

CHANGES = {
    "stages": ["sft", "pairs", "po", "eval"],
    "rounds": 2,
    "data": {"train": [], "prompts": [{"kind": "reviews", "rows": 16, "seed": 5}]},
    "sft": {"steps": 2, "batch_size": 8},
    "po": {"steps": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01}},
    "evaluation": {"sampled_prompts": None},
    "generation": {"samples": 3, "max_new_tokens": 8, "batch_size": 8},
    "scorer": {"kind": "function", "function": "lengths_for_rounds:f"},
}
SCORER = "def f(prompts, completions, rows):\n    return [len(text) % 7 for text in completions]\n"


@pytest.fixture(scope="module", autouse=True)
def scorer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scorer")
    (directory / "lengths_for_rounds.py").write_text(SCORER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"), **CHANGES)


def same_weights(ours, theirs):
    expected, got = weights_of(theirs), weights_of(ours)
    assert expected.keys() == got.keys()
    for path in expected:
        np.testing.assert_array_equal(got[path], expected[path], err_msg=path)


def test_each_round_goes_on_from_the_one_before(finished):
    """Kills: rounds that all start from the first policy, that draw the same answers, or train on the same
    pairs."""
    rounds = json.loads((finished / "rounds.json").read_text())
    assert [of["round"] for of in rounds] == [1, 2] and all(of["made"]["pairs"] > 0 for of in rounds)
    assert all(of["after"]["kl"] > 0 for of in rounds)
    pairs = [lines_of(finished / f"round_{n}_pairs" / "pairs_made.jsonl") for n in (1, 2)]
    assert pairs[0] != pairs[1]
    policy = {
        "before 1": weights_of(finished / "start" / "sft"),
        "after 1": weights_of(finished / "round_1" / "po"),
        "after 2": weights_of(finished / "round_2" / "po"),
    }
    name = next(iter(path for path in policy["after 1"] if path.startswith("policy/")))
    values = [weights[name] for weights in policy.values()]
    assert not np.array_equal(values[0], values[1]) and not np.array_equal(values[1], values[2])


def test_a_round_begins_where_the_last_one_ended_to_the_bit(finished):
    """Kills: an export between rounds that rounds."""
    from safetensors.numpy import load_file

    exported = load_file(finished / "round_1" / "export" / "model.safetensors")
    reference = json.loads((finished / "round_2" / "summary.json").read_text())["reference"]
    assert all(x.dtype == np.float32 for name, x in exported.items() if "mask" not in name)
    assert reference["is"]
    first = lines_of(finished / "round_2" / "metrics.jsonl")[0]
    assert first["step"] == 2 and first["stage"] == "po"


def die_in(patched, stage):
    """The run dies after the first step of a stage's training, wherever it comes first."""
    run_training = training.run_training

    def first_alone(batches):
        yield next(iter(batches))
        raise Interrupted

    def dying(work, *rest, **parts):
        if work.stage == stage:
            work = work._replace(batches=first_alone(work.batches))
        return run_training(work, *rest, **parts)

    patched.setattr(training, "run_training", dying)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["po", pytest.param("sft", marks=pytest.mark.slow)])
def test_a_killed_chain_ends_in_the_same_bits(finished, tmp_path, monkeypatch, stage):
    """Killed in training, then by Ctrl-C before the second round's pairs, then run to its end. Kills: a round
    that is done again, or left out."""
    config = str(write_config(tmp_path, **CHANGES))
    with monkeypatch.context() as patched:
        die_in(patched, stage)
        with pytest.raises(Interrupted):
            main(["--config", config])
    make_pairs = STAGES["pairs"]

    def interrupted(part_run):
        if "round_2" in str(part_run.output_dir):
            raise KeyboardInterrupt
        return make_pairs(part_run)

    with monkeypatch.context() as patched:
        patched.setitem(STAGES, "pairs", interrupted)
        assert main(["--config", config]) == 130
    assert not (tmp_path / "run" / "round_2").exists()
    assert main(["--config", config]) == 0
    same_weights(tmp_path / "run" / "round_2" / "po", finished / "round_2" / "po")
    assert (tmp_path / "run" / "rounds.json").read_text() == (finished / "rounds.json").read_text()


@pytest.mark.slow
def test_what_is_finished_is_not_repeated_and_more_rounds_are_added(finished, capsys):
    config = str(finished.parent / "config.yaml")
    assert main(["--config", config]) == 0
    said = capsys.readouterr().out
    assert said.count("po: finished before") == said.count("pairs: finished before") == 2
    assert said.count("sft: finished before") == 1 and "steps of" not in said
    assert main(["--config", config, "rounds=3"]) == 0
    assert "round_3" in (said := capsys.readouterr().out) and said.count("po: finished before") == 2
    assert len(json.loads((finished / "rounds.json").read_text())) == 3


@pytest.mark.parametrize(
    ("reference", "said"),
    [("previous", "against the policy that a round began with"), ("first", "against one reference in all")],
)
def test_the_table_says_what_accuracy_and_kl_are_against(tmp_path, capsys, reference, said):
    """Kills: a KL that falls from round to round, read as one that comes back to the first policy."""
    config, _ = load_config(write_config(tmp_path, **CHANGES, round_reference=reference))
    for rounds in (1, 2):
        directory = Path(config.output_dir) / f"round_{rounds}"
        directory.mkdir(parents=True)
        (directory / "summary.json").write_text('{"after": {"accuracy_unmasked": 0.6, "kl": 0.1}}')
        say_rounds(config, [part for part in parts_of(config) if (part.round or 0) <= rounds])
        assert (said in capsys.readouterr().out) == (rounds == 2)


def test_a_stage_beside_the_rounds_is_no_stage_of_them(finished, capsys):
    """Kills: answers of the first policy where those of the last round were meant."""
    config = ["--config", str(finished.parent / "config.yaml"), "rounds=null", "stages=[generate]"]
    for more in ([], ["--check"]):
        assert main([*config, *more]) != 0
        assert f"{finished} holds rounds" in capsys.readouterr().err
    assert not (finished / "generations.jsonl").exists()
    assert main(["--config", str(finished / "round_2" / "config.yaml"), "stages=[generate]"]) == 0


def test_the_runs_of_a_chain_are_what_the_settings_say(tmp_path):
    changes = CHANGES | {"rounds": 3, "round_reference": "first", "export": {"dtype": "bfloat16"}}
    changes["stages"] = ["sft", "pairs", "po", "eval", "export", "report"]
    config, _ = load_config(write_config(tmp_path, **changes))
    parts = parts_of(config)
    assert [part.name for part in parts] == [
        "start",
        *(f"round_{n}{end}" for n in (1, 2, 3) for end in ("_pairs", "")),
    ]
    start, rounds = parts[0].config, [part.config for part in parts[2::2]]
    assert start.stages == ["sft", "export"] and rounds[0].stages == ["po", "export", "eval", "report"]
    first = str(tmp_path / "run" / "start" / "export")
    assert {of.reference.path for of in rounds} == {first} == {rounds[0].policy.path}
    assert rounds[2].policy.path == str(tmp_path / "run" / "round_2" / "export")
    assert rounds[1].data.train[0].path == str(tmp_path / "run" / "round_2_pairs" / "pairs_made.jsonl")
    assert [of.seed for of in rounds] == [0, 1, 2]
    assert [of.export.dtype for of in rounds] == ["float32", "float32", "bfloat16"]
    previous = [part.config for part in parts_of(config.model_copy(update={"round_reference": "previous"}))]
    assert all(of.reference.path is None for of in previous)
    assert "rounds      3, each of pairs and po; reference: the first policy" in make_plan_text(config)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"stages": ["po"]}, "rounds: each makes pairs and trains on them"),
        ({"data": {"train": [{"kind": "reviews"}]}}, "data.train: the rounds make it themselves"),
        ({"reference": {"path": "x"}}, "round_reference: reference.path names one reference"),
        (
            {"objective": {"kind": "dpo", "mask": {"kind": "given"}}},
            "objective.mask.kind: pairs that a round makes bring no token weights",
        ),
        ({"round_reference": "first", "po": {"lora": {}}}, "round_reference: first does not go with po.lora"),
    ],
)
def test_what_does_not_go_with_rounds_is_one_line(tmp_path, changes, line):
    changes = CHANGES | changes
    changes["data"] = CHANGES["data"] | changes["data"]
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, **changes))
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith(line)
