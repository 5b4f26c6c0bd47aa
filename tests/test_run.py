"""The program from config to report, interrupted and continued."""

import contextlib
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from helpers.files_page import unexplained_metrics
from helpers.interrupt import Interrupted, stop_before
from helpers.program import lines_of, run, weights_of, write_config
from helpers.quick import slow_but
from sparsepo_jax.build.tokenizer import make_tokenizer
from sparsepo_jax.config.load import load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.stages import po as po_stage


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, evaluated while training, with all its files. Its output_dir is a relative path, as most
    are."""
    directory = tmp_path_factory.mktemp("finished")
    changes = {"output_dir": os.path.relpath(directory / "run"), "logging": {"trackers": ["tensorboard"]}}
    return directory, run(
        directory, "stages=[sft, po, score, eval, export, report]", "po.eval_every_steps=3", **changes
    )


def test_a_run_leaves_summary_metrics_scores_pairs_and_report(finished):
    _, output = finished
    summary = json.loads((output / "summary.json").read_text())
    assert summary["before"]["accuracy_unmasked"] == 0.5 and summary["before"]["kl"] == 0.0
    assert summary["after"]["kl"] > 0
    assert (
        set(summary["before"])
        == set(summary["after"])
        == {
            "accuracy",
            "accuracy_unmasked",
            "margin",
            "margin_unmasked",
            "kl",
            "generated_preferred",
            "generated_kl",
        }
    )
    assert summary["before"]["generated_kl"] == 0.0 != summary["after"]["generated_kl"]
    assert 0 <= summary["after"]["generated_preferred"] <= 1
    samples = lines_of(output / "samples.jsonl")
    assert [row["index"] for row in samples] == list(range(5)) and all(
        row["prompt"].startswith("review of") for row in samples
    )
    assert any(row["before"] != row["after"] for row in samples) or summary["after"]["generated_kl"] < 0.1
    left = summary["mask"].pop("deletion")
    assert set(summary["mask"]) == {
        f"auroc_{name}"
        for name in (
            "reward",
            "kl",
            "logratio",
            "token_kl",
            "random",
            "shuffled",
            "positional",
            "confidence",
            "ceiling",
            "position",
            "untrained",
        )
    } | {"sparsity_start", "sparsity_end", "precision_reward", "precision_ceiling", "decisive_share"}
    assert all(0 <= value <= 1 for value in summary["mask"].values())
    assert (
        list(left) == ["0", "0.05", "0.1", "0.2", "0.4"]
        and left["0"]["margin_top"] == left["0"]["margin_random"] != left["0.4"]["margin_top"]
    )
    assert summary["mask"]["auroc_reward"] <= summary["mask"]["auroc_ceiling"]
    assert summary["seconds"] > 0
    metrics = lines_of(output / "metrics.jsonl")
    assert {(row["stage"], row["step"]) for row in metrics} >= {
        ("sft", 2),
        ("sft", 4),
        ("po", 2),
        ("po", 3),
        ("po", 6),
    }
    assert unexplained_metrics(metrics) == set()
    last = [row for row in metrics if row["stage"] == "po"][-1]
    assert {"eval/rewards/accuracies", "eval/kl/chosen"} <= set(last) | set(metrics[-2])
    for row in metrics:
        if "loss" in row:
            # One shape, one program (none if another test's run had the same one). Kills a second step that
            # is compiled anew because its state has other shardings.
            assert row["programs"] <= 1 and 0 < row["real_token_share"] <= 1 and row["tokens_per_s"] > 0, row
    assert len(lines_of(output / "scores.jsonl")) == len(lines_of(output / "pairs.jsonl")) == 9
    assert (output / "report.html").read_text().count("<html") == 1
    for stage in ("sft", "po"):
        assert list((output / "tensorboard" / stage).glob("events*"))


def test_scores_have_the_agreed_form(finished):
    """Index in the order of the data; lists over the same tokens; floats with all their digits."""
    rows = lines_of(finished[1] / "scores.jsonl")
    assert [row["index"] for row in rows] == list(range(9))
    for row in rows:
        for name in ("chosen", "rejected"):
            columns = [
                row[name][key] for key in ("token_ids", "logp", "ref_logp", "kl", "reward_mask", "kl_mask")
            ]
            assert len({len(column) for column in columns}) == 1
            assert min(row[name]["kl"]) >= 0 and max(row[name]["logp"]) < 0
        margin = sum(
            s
            * (
                np.dot(row[n]["reward_mask"], np.subtract(row[n]["logp"], row[n]["ref_logp"]))
                + np.dot(row[n]["kl_mask"], row[n]["kl"])
            )
            for n, s in (("chosen", 1), ("rejected", -1))
        )
        np.testing.assert_allclose(row["margin"], 0.8 * margin, atol=1e-5)
        np.testing.assert_allclose(row["loss"], np.log1p(np.exp(-row["margin"])), atol=1e-5)


def test_scores_are_pairs_with_weights_when_read_again(finished, tmp_path):
    """A learned mask, written down, can be given with the data: the same tokens, the same log-probs, that
    mask."""
    _, output = finished
    scores, pairs = lines_of(output / "scores.jsonl"), tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps(
                {"prompt_ids": score["prompt_ids"]}
                | {
                    f"{name}_{column}": score[name][key]
                    for name in ("chosen", "rejected")
                    for column, key in (("ids", "token_ids"), ("weights", "reward_mask"))
                }
            )
            + "\n"
            for score in scores
        )
    )
    again = run(
        tmp_path,
        stages=["score"],
        policy={"config": None, "path": str(output / "export")},
        tokenizer={"kind": "auto"},
        objective={"kind": "sparsepo", "mask": {"kind": "given"}},
        data={"sft": [], "train": [], "eval": [{"path": str(pairs)}]},
    )
    for ours, expected in zip(lines_of(again / "scores.jsonl"), scores, strict=True):
        assert ours["prompt_ids"] == expected["prompt_ids"]
        for name in ("chosen", "rejected"):
            np.testing.assert_allclose(ours[name]["logp"], expected[name]["logp"], atol=1e-5)
            np.testing.assert_allclose(ours[name]["reward_mask"], expected[name]["reward_mask"], atol=1e-7)


def test_a_finished_stage_is_not_repeated(finished, capsys):
    directory, output = finished
    files = {
        path: path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "report.html")
    }
    stages = ["sft", "po", "score", "eval", "export"]
    assert (
        main(
            [
                "--config",
                str(directory / "config.yaml"),
                f"stages=[{', '.join(stages)}, report]",
                "po.eval_every_steps=3",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert all(f"{stage}: finished before" in printed for stage in stages)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_a_stage_that_reads_is_done_again_when_its_output_or_a_setting_is_another(finished, capsys):
    directory, output = finished
    command = ["--config", str(directory / "config.yaml"), "stages=[score]"]
    before = (output / "scores.jsonl").read_text()
    (output / "scores.jsonl").unlink()
    assert main(command) == 0 and (output / "scores.jsonl").read_text() == before
    assert main([*command, "evaluation.max_pairs=4"]) == 0 and len(lines_of(output / "scores.jsonl")) == 4
    assert "finished before" not in capsys.readouterr().out
    assert main(command) == 0 and (output / "scores.jsonl").read_text() == before


def test_changed_settings_are_refused_by_name(finished, capsys):
    directory, output = finished
    marks = (output / "stages.json").read_text()
    assert main(["--config", str(directory / "config.yaml"), "objective.beta=0.3", "po.steps=9"]) == 1
    errors = capsys.readouterr().err
    assert "stage po with other settings: objective.beta, po.steps;" in errors and errors.count("\n") == 1
    assert (output / "stages.json").read_text() == marks


def test_evaluation_does_not_depend_on_the_batch_size(finished, tmp_path):
    directory, output = finished
    assert (
        main(["--config", str(directory / "config.yaml"), "stages=[score]", "evaluation.batch_size=16"]) == 0
    )
    for ours, expected in zip(
        lines_of(output / "scores.jsonl"), lines_of(output / "pairs.jsonl"), strict=True
    ):
        np.testing.assert_allclose(ours["margin"], expected["margin"], atol=1e-5)
        np.testing.assert_allclose(
            ours["chosen"]["reward_mask"], expected["chosen"]["reward_mask"], atol=1e-5
        )


def test_the_export_scores_the_same(finished, tmp_path):
    """Policy and masks come back from the export, the reference from a path; transformers loads the
    directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, output = finished
    model = AutoModelForCausalLM.from_pretrained(output / "export").eval()
    assert len(AutoTokenizer.from_pretrained(output / "export")) == model.config.vocab_size
    again = run(
        tmp_path,
        stages=["score"],
        policy={"config": None, "path": str(output / "export")},
        tokenizer={"kind": "auto"},
    )
    for ours, expected in zip(
        lines_of(again / "scores.jsonl"), lines_of(output / "pairs.jsonl"), strict=True
    ):
        np.testing.assert_allclose(ours["chosen"]["logp"], expected["chosen"]["logp"], atol=1e-5)
        np.testing.assert_allclose(
            ours["rejected"]["kl"], 0, atol=1e-6
        )  # no reference is named: the policy itself
    ids = torch.tensor([expected["chosen"]["token_ids"]])
    assert model(ids).logits.shape[-1] == model.config.vocab_size


@pytest.mark.parametrize(
    ("stage", "steps"), slow_but([("sft", 3), ("po", 5)], [("sft", 3), ("po", 1), ("po", 5)])
)
def test_an_interrupted_run_continues_bit_for_bit(tmp_path, monkeypatch, stage, steps):
    """Dies before the first checkpoint and after it, starts again with the same command. The mask has
    dropout: draws are keyed by step."""
    changes = {
        "stages": [stage],
        "checkpoint": {"every_steps": 2},
        "objective": {"mask": {"kind": "learned", "init": "ones", "dropout": 0.2}},
    }
    whole, _ = undisturbed_and_interrupted(tmp_path, monkeypatch, stage, steps, changes)
    assert any(path.startswith("masks/") for path in weights_of(whole / stage)) == (stage == "po")


@pytest.mark.parametrize(
    "stage, began, continued, says",
    slow_but(
        [("po", [], ["compute.dtype=bfloat16"], "compute.dtype, float32 when it began and bfloat16 now")],
        [
            ("po", [], ["compute.dtype=bfloat16"], "compute.dtype, float32 when it began and bfloat16 now"),
            ("sft", [], ["compute.dtype=bfloat16"], "compute.dtype, float32 when it began"),
            (
                "po",
                ["compute.dtype=bfloat16"],
                ["compute.dtype=auto"],
                "compute.dtype, bfloat16 when it began and float32 now",
            ),
            ("po", [], ["compute.precision=tf32"], "compute.precision, float32 when it began and tf32 now"),
            ("po", ["po.lora={dropout: 0.1}"], ["compute.layout=plain"], "compute.layout, shared when"),
            ("po", [], ["compute.weights=bfloat16"], "compute.weights; set them back"),
            ("po", [], ["reference.dtype=bfloat16"], "reference.dtype; set them back"),
        ],
    ),
)
def test_an_interrupted_run_does_not_go_on_in_other_numbers(
    tmp_path, monkeypatch, capsys, stage, began, continued, says
):
    """Kills: settings that are not compared (it went on in bfloat16), or compared as set: auto is float32."""
    command = ["--config", str(write_config(tmp_path, stages=[stage])), *began]
    with monkeypatch.context() as patched:
        stop_before(patched, 2)
        with pytest.raises(Interrupted):
            main(command)
    capsys.readouterr()
    assert main([*command, *continued]) == 1
    errors = capsys.readouterr().err
    assert f"holds stage {stage} with other settings: {says}" in errors and errors.count("\n") == 1
    same = ["compute.precision=float32", "compute.layout=plain", "compute.attention=xla"]
    if not began:
        assert main([*command, "compute.dtype=float32", *same]) == 0  # what auto was here, and rounding alone


def test_a_finished_run_is_read_in_other_numbers(finished, capsys):
    directory, output = finished
    command = ["--config", str(directory / "config.yaml"), "stages=[po, score]"]
    assert main(command) == 0  # other tests score here with other settings
    before = (output / "scores.jsonl").read_text()
    assert main([*command, "compute.dtype=bfloat16"]) == 0
    assert (
        "po: finished before" in capsys.readouterr().out and (output / "scores.jsonl").read_text() != before
    )
    assert main(command) == 0 and (output / "scores.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_an_interrupted_run_of_bco_continues_bit_for_bit(tmp_path, monkeypatch, steps):
    """Kills: a running mean of rewards that begins anew, or that the checkpoint has of another step."""
    changes = {
        "stages": ["po"],
        "objective": {"kind": "bco", "mask": None, "beta": 0.5},
        "checkpoint": {"every_steps": 2},
        "logging": {"every_steps": 1, "trackers": []},
    }
    directories = undisturbed_and_interrupted(tmp_path, monkeypatch, "po", steps, changes)
    rows = [lines_of(directory / "metrics.jsonl") for directory in directories]
    expected, resumed = ({row["step"]: row["rewards/anchor"] for row in of_run} for of_run in rows)
    assert resumed == expected and len(set(expected.values())) == 6


@pytest.mark.parametrize("stage", slow_but(["po"], ["sft", "po"]))
def test_a_run_that_met_too_little_memory_goes_on_with_more_micro_steps(tmp_path, monkeypatch, stage):
    """As its message says. Updates are the same but for rounding, with the same draws of dropout."""
    changes = {
        "stages": [stage],
        "data": {"buckets": 2},
        stage: {"batch_size": 16},
        "checkpoint": {"every_steps": 2},
        "objective": {"mask": {"kind": "learned", "init": "ones", "dropout": 0.2}},
    }
    smaller = ["data.buckets=1", f"{stage}.accumulation=2"]
    undisturbed_and_interrupted(tmp_path, monkeypatch, stage, 3, changes, smaller)


def undisturbed_and_interrupted(tmp_path, monkeypatch, stage, steps, changes, more=()):
    """The directories of a run, and of one that dies before a step and goes on; their weights agree.

    more: settings with which it goes on; then weights agree but for rounding.
    """
    undisturbed = run(tmp_path / "whole", **changes)
    config = write_config(tmp_path / "parts", **changes)
    with monkeypatch.context() as patched:
        stop_before(patched, steps)
        with pytest.raises(Interrupted):
            main(["--config", str(config)])
    resumed = tmp_path / "parts" / "run"
    assert not (resumed / stage / "final").exists()
    assert main(["--config", str(config), *more]) == 0
    expected, ours = weights_of(undisturbed / stage), weights_of(resumed / stage)
    assert expected.keys() == ours.keys()
    for path in expected:
        np.testing.assert_allclose(ours[path], expected[path], rtol=0, atol=1e-5 if more else 0, err_msg=path)
    return undisturbed, resumed


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    output = run(
        tmp_path,
        "stages=[po]",
        "po.eval_every_steps=1",
        "checkpoint.keep=1",
        "checkpoint.best={metric: eval/kl/chosen, mode: min}",
    )  # the KL grows: the first evaluation is the best
    steps = sorted(
        int(path.name) for path in (output / "po" / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert steps == [1, 6]


def test_an_unknown_best_metric_names_the_known_ones(tmp_path, capsys):
    config = write_config(tmp_path)
    assert (
        main(
            [
                "--config",
                str(config),
                "stages=[po]",
                "po.eval_every_steps=1",
                "checkpoint.best.metric=eval/acuracy",
            ]
        )
        == 1
    )
    assert "checkpoint.best.metric: no metric 'eval/acuracy'; there are eval/" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dead_mask_is_said_with_what_to_do(tmp_path, capsys):
    """Last-layer net with the official start, its relu shut by a checkpoint: see the message."""
    from safetensors.numpy import load_file, save_file

    output = run(tmp_path / "made", "stages=[export]", sft=None)
    masks = {
        "common_mask.w.weight": np.zeros((1, 16), np.float32),
        "common_mask.w.bias": np.full(1, -1, np.float32),
    }
    save_file(
        load_file(output / "export" / "model.safetensors"),
        output / "export" / "model.safetensors",
        metadata={"format": "pt"},
    )
    save_file(masks, output / "export" / "masks.safetensors")
    config = write_config(
        tmp_path / "dead",
        stages=["po"],
        policy={"config": None, "path": str(output / "export")},
        objective={"mask": {"kind": "learned", "net": "simple_last"}},
    )
    assert main(["--config", str(config)]) == 1
    errors = capsys.readouterr().err
    assert "the reward mask starts at zero on every token" in errors and "objective.mask.init=ones" in errors
    assert main(["--config", str(config), "objective.mask.kind=ones", "po.steps=1"]) == 0, (
        "who mends it is not held to the settings that failed"
    )


@pytest.mark.parametrize("zeros, scored", [([0.0], [16]), ([1.0, 0.9], [16, 256]), ([1.0, 1.0], [16, 256])])
def test_a_mask_that_is_alive_is_seen_on_the_first_batch(monkeypatch, zeros, scored):
    """All 256 pairs took two minutes of a real model before its first step."""
    sizes = []
    shares = iter(zeros)
    for name in ("adapted", "reference_weights"):
        monkeypatch.setattr(po_stage, name, lambda run, start: start)
    monkeypatch.setattr(po_stage, "score_table", lambda run, table, *weights: sizes.append(len(table)))
    monkeypatch.setattr(po_stage, "mask_sparsity", lambda scores: next(shares))
    config = SimpleNamespace(evaluation=SimpleNamespace(batch_size=16))
    with pytest.raises(UserError) if zeros[-1] == 1 else contextlib.nullcontext():
        po_stage._refuse_dead_masks(SimpleNamespace(config=config), np.zeros(300), {"masks": {"net": 1}})
    assert sizes == scored


@pytest.mark.parametrize(
    "mask, looked_at",
    [
        ("{kind: learned}", True),
        ("{kind: learned, mixer_activation: hard_concrete}", False),
        ("{kind: activation}", False),
        ("null", False),
    ],
)
def test_which_masks_may_be_dead(tmp_path, mask, looked_at):
    """At its start hard_concrete's median is zero on all tokens, and its draws are not."""
    config, _ = load_config(str(write_config(tmp_path)), ["objective={kind: dpo}", f"objective.mask={mask}"])
    run_of = SimpleNamespace(config=config, output_dir=tmp_path)
    assert po_stage._masks_may_be_dead(run_of) == looked_at
    (tmp_path / "po" / "start").mkdir(parents=True)
    assert not po_stage._masks_may_be_dead(run_of), "a run that has begun has looked"


def test_scoring_without_stored_masks_is_an_error(tmp_path, capsys):
    output = run(tmp_path / "made", "stages=[export]", sft=None)
    config = write_config(
        tmp_path / "score", stages=["score"], policy={"config": None, "path": str(output / "export")}
    )
    assert main(["--config", str(config)]) == 1
    assert f"policy.path: {output}/export holds no mask nets; run the stage po" in capsys.readouterr().err
    assert main(["--config", str(write_config(tmp_path / "none")), "stages=[score]"]) == 1
    assert "po has not run here: there are no mask nets; run the stage po first" in capsys.readouterr().err


def test_a_batch_that_the_mesh_cannot_cut_is_refused(tmp_path, capsys):
    assert main(["--config", str(write_config(tmp_path)), "stages=[po]", "po.batch_size=12"]) == 1
    assert (
        f"po.batch_size: 12 rows in 1 micro-step(s) cannot be cut over {jax.device_count()} shards"
        in capsys.readouterr().err
    )


def test_inspect_shows_rows_of_every_source_without_a_model(tmp_path, capsys):
    run(tmp_path, stages=["inspect"], policy=None, data={"inspect_rows": 2})
    printed = capsys.readouterr().out
    assert all(line in printed for line in ("data.sft: 40 rows", "data.train: 30 rows", "data.eval: 9 rows"))
    assert (
        printed.count("  prompt ") == 6
        and printed.count("  chosen ") == printed.count("  rejected ") == 4
        and "*" in printed
    )


def test_generate_answers_the_distinct_prompts(finished, capsys):
    directory, output = finished
    settings = [
        "stages=[generate]",
        "generation.samples=2",
        "generation.max_prompts=3",
        "generation.stop=['the', '.']",
        "generation.top_p=0.9",
        "generation.max_new_tokens=6",
    ]
    assert main(["--config", str(directory / "config.yaml"), *settings]) == 0
    rows = lines_of(output / "generations.jsonl")
    assert [row["index"] for row in rows] == [0, 1, 2] and all(len(row["samples"]) == 2 for row in rows)
    answers = [answer for row in rows for answer in row["samples"]]
    assert {answer["finish"] for answer in answers} <= {"eos", "stop", "length"} and all(
        1 <= len(answer["token_ids"]) <= 6 for answer in answers
    )
    assert not any("the" in answer["text"] or "." in answer["text"] for answer in answers)
    assert "6 responses to 3 prompts" in capsys.readouterr().out
    assert main(["--config", str(directory / "config.yaml"), *settings]) == 0
    assert "generate: finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_padded_vocabulary_is_kept(tmp_path):
    """The model has more entries than the tokenizer, as Pythia has: trained, sampled, exported."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = run(
        tmp_path,
        "stages=[po, generate, export]",
        "policy.config.vocab_size=400",
        "generation.max_prompts=8",
        "po.steps=1",
    )
    exported = AutoModelForCausalLM.from_pretrained(output / "export")
    assert (
        exported.config.vocab_size
        == 400
        == exported.get_input_embeddings().num_embeddings
        > len(AutoTokenizer.from_pretrained(output / "export"))
    )
    answers = [answer for row in lines_of(output / "generations.jsonl") for answer in row["samples"]]
    assert any(max(answer["token_ids"]) >= 200 for answer in answers), (
        "an untrained model draws from all entries"
    )
    assert all(isinstance(answer["text"], str) for answer in answers)


def test_responses_that_do_not_fit_the_model_are_refused(finished, capsys):
    assert (
        main(
            [
                "--config",
                str(finished[0] / "config.yaml"),
                "stages=[generate]",
                "generation.max_new_tokens=60",
            ]
        )
        == 1
    )
    assert "generation.max_new_tokens: 60 tokens after the longest prompt" in capsys.readouterr().err


def test_a_learned_tokenizer_stays_while_its_settings_and_files_do_or_once_a_stage_has_begun(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    kept = tmp_path / "run" / "tokenizer" / "tokenizer.json"

    def write(text: str) -> None:
        pairs.write_text(json.dumps({"prompt": text, "chosen": " yes", "rejected": " no"}) + "\n")

    def merges(size: int) -> set[str]:
        changes = {"stages": ["po"], "sft": None, "tokenizer": {"kind": "bpe", "vocab_size": size}}
        data = {"sft": [], "train": [{"path": str(pairs)}], "eval": []}
        config, _ = load_config(write_config(tmp_path, **changes, data=data))
        return {token for token in make_tokenizer(config).get_vocab() if 1 < len(token) < 9}

    write("ab" * 9)
    assert merges(258) == {"ab"}
    written = kept.stat().st_ino
    assert merges(258) == {"ab"} and kept.stat().st_ino == written
    assert merges(259) == {"ab", "abab"}  # the run with 258 went no further than this
    write("xy" * 10)
    assert merges(258) == {"xy"}
    (tmp_path / "run" / "po").mkdir()
    (tmp_path / "run" / "po" / "settings.json").write_text("{}")
    write("ab" * 9)
    assert merges(258) == {"xy"}


@pytest.mark.slow
def test_a_tokenizer_learned_from_the_data_is_kept_with_the_run(tmp_path):
    rows = [
        {"prompt": f"Is {n} good?", "chosen": " Yes, it is.", "rejected": f" No, {n} is not."}
        for n in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = dict(
        stages=["po", "eval"],
        tokenizer={"kind": "bpe", "vocab_size": 270},
        sft=None,
        po={"steps": 1},
        data={
            "sft": [],
            "train": [{"path": str(tmp_path / "pairs.jsonl")}],
            "eval": [],
            "holdout": {"share": 0.4},
        },
    )
    output = run(tmp_path, **changes)
    kept = (output / "tokenizer" / "tokenizer.json").read_text()
    assert (
        run(tmp_path, **changes) == output and (output / "tokenizer" / "tokenizer.json").read_text() == kept
    )
    summary = json.loads((output / "summary.json").read_text())
    assert 0 < summary["pairs"] < 20 and summary["mask"]["auroc_ceiling"] is None


def test_models_of_other_vocabularies_are_no_reference(tmp_path, capsys):
    other = run(tmp_path / "other", "stages=[export]", "policy.config.vocab_size=400", sft=None)
    config = write_config(tmp_path / "run", stages=["po"], reference={"path": str(other / "export")})
    assert main(["--config", str(config)]) == 1
    assert "has a vocabulary of 400" in capsys.readouterr().err


def test_models_of_other_tokenizers_are_no_reference(finished, tmp_path, capsys):
    """The same size, two words exchanged."""
    import shutil

    export = finished[1] / "export"
    shutil.copytree(export, tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text()
    assert '"film"' in text and '"plot"' in text
    swapped = text.replace('"film"', '"@"').replace('"plot"', '"film"').replace('"@"', '"plot"')
    (tmp_path / "other" / "tokenizer.json").write_text(swapped)
    config = write_config(
        tmp_path / "run",
        stages=["po"],
        policy={"config": None, "path": str(export)},
        tokenizer={"kind": "auto"},
        reference={"path": str(tmp_path / "other")},
    )
    assert main(["--config", str(config)]) == 1
    assert "differ (token 'film' is" in capsys.readouterr().err
