"""The doctor: each rule on both sides of its threshold, and real runs that are ill in a known way."""

import json
import math

import numpy as np
import pytest

from helpers.program import lines_of, run, write_config
from helpers.tiny import pair_table
from sparsepo_jax.data.facts import table_facts
from sparsepo_jax.main import main
from sparsepo_jax.report import doctor
from sparsepo_jax.report.doctor import FIRST_STEPS, FirstSteps, diagnose
from sparsepo_jax.report.doctor_learning import LN2
from sparsepo_jax.report.evidence import Evidence, read_evidence

HEALTHY = {  # of SparsePO: learns, moves a little, has zeros
    "loss": [0.69, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3, 0.3],
    "loss/l1": [0.0] * 8,
    "grad_norm": [5.0] * 8,
    "grad_norm/masks": [0.1] * 8,
    "learning_rate": [1e-4] * 8,
    "margin_unmasked": [0.01, 0.1, 0.3, 0.6, 0.8, 0.9, 1.0, 1.1],
    "rewards/margins": [0.01, 0.1, 1, 2, 3, 4, 5, 5],
    "log_ratio/chosen": [0.1] * 8,
    "log_ratio/rejected": [-1.0] * 8,
    "kl/chosen": [0.3] * 8,
    "kl/rejected": [0.3] * 8,
    "mask/reward_sparsity": [0.0, 0.1, 0.3, 0.5, 0.6, 0.8, 0.8, 0.8],
    "mask/kl_sparsity": [0.0] * 8,
}
DATA = {
    "rows": 1000,
    "responses": 2000,
    "response_tokens": 40.0,
    "prompts_cut": 0,
    "responses_cut": 0,
    "equal_pairs": 0,
    "contradicting_pairs": 0,
}
OBJECTIVE = {
    "kind": "sparsepo",
    "beta": 0.8,
    "l1_reward": 0.0,
    "l1_kl": 0.0,
    "nll_weight": 0.0,
    "mask": {"kind": "learned", "on": "both", "net": "simple_all"},
}
SUMMARY = {
    "before": {"accuracy_unmasked": 0.5},
    "after": {"accuracy": 0.9, "accuracy_unmasked": 0.9, "margin": 5.0, "margin_unmasked": 1.1, "kl": 0.3},
    "mask": {"sparsity_end": 0.8},
    "pairs": 500,
}


def evidence(
    *, objective=None, ended=True, data=None, summary=None, steps=80, peak=1e-4, config=None, **series
):
    config = {"objective": OBJECTIVE | (objective or {}), "po": {"optimizer": {"learning_rate": peak}}} | (
        config or {}
    )
    found = {
        name: dict(enumerate(values, start=1))
        for name, values in (HEALTHY | series).items()
        if values is not None
    }
    return Evidence(config, found, ended, {"steps": steps, "data": DATA | (data or {})}, summary or {})


def lines(**changes):
    return diagnose(evidence(**changes))


def one_line(**changes):
    (line,) = lines(**changes)
    assert "\n" not in line
    return line


def test_a_healthy_run_has_no_line():
    assert lines() == [] == lines(summary=SUMMARY) == lines(ended=False)
    assert diagnose(Evidence({}, {}, True)) == []  # no po at all


AT_LN2 = {
    "loss": [LN2 + x for x in (0.001, -0.002, 0.001, 0.0, 0.001, -0.001, 0.002, -0.002)],
    "margin_unmasked": [0.0] * 8,
    "rewards/margins": [0.0] * 8,
    "kl/chosen": [1e-5] * 8,
    "kl/rejected": [1e-5] * 8,
    "log_ratio/chosen": [0.0] * 8,
    "log_ratio/rejected": [0.0] * 8,
}


def test_a_loss_that_stays_at_ln2_is_said_with_its_cause():
    line = one_line(**AT_LN2)
    assert (
        line.startswith("the loss stays at ln 2 (0.69115)")
        and "raise po.optimizer.learning_rate" in line
        and "0.0001 at most" in line
    )
    at_the_end = AT_LN2 | {"learning_rate": [1e-6] * 8}  # records of a schedule's end are not its peak
    assert "0.0001 at most" in one_line(**at_the_end)
    assert "learning rate is 0" in one_line(**AT_LN2 | {"learning_rate": [0.0] * 8})
    assert "does not tell chosen from rejected" in one_line(
        **AT_LN2 | {"kl/chosen": [0.2] * 8, "kl/rejected": [0.2] * 8}
    )
    first, second = lines(**AT_LN2, data={"contradicting_pairs": 800})
    assert (
        "most pairs are equal or contradict" in first
        and "of 1000 pairs 800 are there the other way round" in second
    )
    first, second = lines(**AT_LN2 | {"mask/reward_sparsity": [1.0] * 8})
    assert "the reward mask is zero everywhere" in first and second.startswith("the reward mask is dead")


def test_l1_and_nll_do_not_hide_a_loss_at_ln2_and_a_loss_that_falls_is_none():
    high = [x + 0.05 + 0.3 for x in AT_LN2["loss"]]
    assert "stays at ln 2 (0.69115)" in one_line(
        **AT_LN2 | {"loss": high, "loss/l1": [0.05] * 8, "loss/nll": [0.3] * 8}
    )
    assert lines(**AT_LN2 | {"loss": [*AT_LN2["loss"][:6], LN2 - 0.02, LN2 - 0.03]}) == []


@pytest.mark.parametrize(
    "kind, said",
    [
        ("tdpo2", True),
        ("dpop", True),
        ("rdpo", False),
        ("ipo", False),
        ("hinge", False),
        ("simpo", False),
        ("orpo", False),
    ],
)
def test_ln2_is_spoken_of_only_where_a_loss_starts_there(kind, said):
    found = lines(**AT_LN2, objective={"kind": kind, "mask": None, "penalty": 5.0})
    assert any("ln 2" in line for line in found) == said
    other = lines(
        **AT_LN2,
        objective={"kind": kind, "mask": None, "penalty": 5.0},
        config={"reference": {"path": "another"}},
    )
    assert not any("ln 2" in line for line in other)  # whose log-probs are not the policy's


def test_other_objectives_are_held_against_their_own_first_losses():
    ipo = dict(objective={"kind": "ipo", "mask": None})
    line = one_line(**ipo, loss=[25.0, 25.1, 24.9, 25.0, 25.1, 25.0, 25.1, 25.0])
    assert line.startswith("the loss does not fall (25.0500 in the first quarter, 25.0500 in the last)")
    line = one_line(**ipo, loss=[26.0, 24.0, 24.9, 25.0, 25.1, 25.0, 24.1, 23.9])  # 1.0 with error 1.005
    assert line.startswith(
        "the loss falls no further than by chance (25.0000 in the first quarter, 24.0000 in the last, "
        "standard error of the difference 1)"
    )
    line = one_line(**ipo, loss=[30.0] * 4 + [25.0] * 4, **{"loss/nll": [5.0] * 4 + [0.0] * 4})
    assert line.startswith("the loss without its NLL does not fall (25.0000 in the first quarter")
    assert (
        lines(**ipo, loss=[25.0, 24.99, 24.98, 24.97, 24.96, 24.95, 24.94, 24.93]) == []
    )  # little, but beyond its spread
    assert lines(**ipo, loss=[25.0] * 7) == []  # seven records say nothing
    assert "does not fall" in one_line(**ipo, loss=[25.0] * 8)
    assert lines(**ipo, loss=[25.0] * 8, ended=False) == []


def test_in_warm_up_a_loss_near_ln2_is_no_fault():
    """Ten steps of a warm-up of a hundred have had 0.5 % of the rate that 1,000 steps have."""
    moved = AT_LN2 | {
        "loss": [LN2 - 1e-4 * n for n in range(8)],
        "learning_rate": [1e-6 * n / 100 for n in range(1, 9)],
    }
    assert lines(**moved, ended=False, steps=1000, peak=1e-6) == []
    assert "stays at ln 2" in one_line(
        **moved | {"loss": [LN2 - 1e-8 * n for n in range(8)]}, ended=False, steps=1000, peak=1e-6
    )


def test_the_rate_so_far_is_that_of_all_steps_whatever_a_record_stands_for():
    """Of 1,000 steps 800 are done, with a record every 100: the loss will hardly move any more.

    Kills: the sum of the records, a hundredth of it, from which the loss might still get anywhere.
    """
    moved = {"loss": [LN2 - 4e-4 * n for n in range(8)], "learning_rate": [1e-6] * 8}
    every_100 = {name: dict(zip(range(100, 900, 100), x, strict=True)) for name, x in moved.items()}
    config = {"objective": OBJECTIVE, "po": {"optimizer": {"learning_rate": 1e-6}}}
    (line,) = diagnose(Evidence(config, every_100, False, {"steps": 1000, "data": DATA}))
    assert "stays at ln 2" in line


def test_a_run_that_was_stopped_early_has_ended(tmp_path):
    """Kills: rules of the end that wait for steps which will not come."""
    (tmp_path / "po").mkdir()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"stage": "po", "step": 9, "loss": 0.5}) + "\n")
    for facts, ended in (
        ({"steps": 60}, False),
        ({"steps": 60, "steps_done": 9}, True),
        ({"steps": 9}, True),
    ):
        (tmp_path / "po" / "facts.json").write_text(json.dumps(facts))
        assert read_evidence(tmp_path).ended == ended


def test_a_gradient_of_zero_is_said_but_not_where_nothing_is_left_to_lower():
    assert "the gradient is zero (norm 0)" in one_line(grad_norm=[5.0] * 6 + [0.0] * 2)
    assert lines(grad_norm=[5.0] * 6 + [2e-8] * 2) == []
    assert lines(grad_norm=[5.0] * 6 + [0.0] * 2, loss=[0.69, 0.3, 0.1, 0.01, 1e-4, 1e-4, 1e-4, 1e-4]) == []


def test_a_mask_without_gradient_is_said():
    """At step 1 it never has one: policy = reference."""
    still = {"grad_norm/masks": [0.0] * 8}
    assert "the mask gets no gradient" in one_line(**still)
    assert lines(**{"grad_norm/masks": [0.0] + [1e-9] * 7}) == []
    assert (
        lines(**still, objective={"mask": OBJECTIVE["mask"] | {"net": "binary_all"}}) == []
    )  # a control that never learns
    assert lines(**still, learning_rate=[0.0] * 8) == []


@pytest.mark.parametrize(
    "objective, said",
    [
        ({"l1_reward": 0.1}, "lower objective.l1_reward (0.1)"),
        ({}, "objective.mask.init=ones"),
        (
            {"mask": {"kind": "given", "on": "both"}},
            "the columns chosen_weights and rejected_weights are all zero",
        ),
    ],
)
def test_a_dead_mask_is_said_with_its_knob(objective, said):
    assert said in one_line(objective=objective, **{"mask/reward_sparsity": [0.5] * 6 + [1.0] * 2})
    assert said in one_line(objective=objective, **{"mask/reward_sparsity": [0.5] * 6 + [1.0, 0.99999994]})
    assert lines(objective=objective, **{"mask/reward_sparsity": [0.5] * 6 + [1.0, 0.999]}) == []


def test_chosen_responses_that_fall_are_said_with_the_way_out():
    fallen = {"log_ratio/chosen": [0.0] * 6 + [-3.0, -3.4], "log_ratio/rejected": [-8.0] * 8}
    line = one_line(**fallen)
    assert (
        "log-ratio to the reference -3.2 nats a response; rejected -8.0" in line
        and "nll_weight" in line
        and "objective.kind=dpop" in line
    )
    assert "raise objective.nll_weight (0.2)" in one_line(**fallen, objective={"nll_weight": 0.2})
    assert "raise objective.penalty (5)" in one_line(
        **fallen, objective={"kind": "dpop", "mask": None, "penalty": 5.0}
    )
    of_responses = one_line(**fallen, **{"share/chosen": [0.5] * 8})
    assert "dpop" not in of_responses  # it needs pairs
    assert "the desirable responses have" in of_responses and "undesirable -8.0" in of_responses
    assert lines(**{"log_ratio/chosen": [0.0] * 6 + [-0.9, -0.9]}) == []
    assert lines(**{"log_ratio/chosen": [0.0] * 6 + [0.5, -3.0]}) == []  # by chance
    assert lines(**{"log_ratio/chosen": None}) == []  # a run of before there was such a number


def test_a_margin_that_grows_only_through_the_mask_is_said():
    only = SUMMARY | {"after": SUMMARY["after"] | {"accuracy_unmasked": 0.52, "margin_unmasked": 0.01}}
    assert "only through the mask (masked 5, unmasked 0.01)" in one_line(summary=only)
    assert lines(summary=only | {"after": only["after"] | {"accuracy_unmasked": 0.6}}) == []
    assert lines(summary=only | {"after": only["after"] | {"margin": 0.09}}) == []
    assert lines(summary=only, objective={"kind": "dpo", "mask": None}) == []
    assert "objective.mask.learning_rate" in one_line(summary=only)
    given = one_line(summary=only, objective={"kind": "dpo", "mask": {"kind": "given", "on": "both"}})
    assert "objective.mask" not in given  # there is no net whose rate could be lowered
    assert "depend on which answer was chosen" in given
    fixed = one_line(summary=only, objective={"kind": "dpo", "mask": {"kind": "random", "on": "both"}})
    assert fixed.endswith("raise po.optimizer.learning_rate")
    grown = only["after"] | {"margin_unmasked": 5.1}  # and told from zero by few pairs only
    assert lines(summary=only | {"after": grown}) == []
    values = [x * (-1) ** n for n, x in enumerate([0.1] * 16)]
    assert "only through the mask" in one_line(margin_unmasked=values)
    assert lines(margin_unmasked=[x + 0.2 for x in values]) == []
    assert lines(margin_unmasked=values[:8]) == []  # two records have no spread to speak of


def test_a_mask_without_zeros_is_said_where_no_l1_asks_for_any():
    full = SUMMARY | {"mask": {"sparsity_end": 0.009}}
    assert "no zeros (0.9 %)" in one_line(summary=full) and "l1_reward=1e-3" in one_line(summary=full)
    assert lines(summary=SUMMARY | {"mask": {"sparsity_end": 0.01}}) == []
    assert lines(summary=full, objective={"l1_kl": 1e-3}) == []
    assert lines(summary=full, objective={"mask": {"kind": "activation", "on": "both"}}) == []
    assert lines(summary=full, ended=False) == []  # it starts without any
    assert "no zeros (0 %)" in one_line(**{"mask/reward_sparsity": [0.0] * 8})


@pytest.mark.parametrize(
    "kl, tokens, said",
    [
        (20.5, 30, True),
        (19.5, 30, False),
        (60, 200, False),
        (101, 200, True),
        (49, None, False),
        (51, None, True),
    ],
)
def test_a_kl_beyond_any_frontier_is_said_by_the_length_of_the_responses(kl, tokens, said):
    found = lines(**{"kl/chosen": [kl] * 8, "kl/rejected": [kl] * 8}, data={"response_tokens": tokens})
    assert found == lines(
        summary=SUMMARY | {"after": SUMMARY["after"] | {"generated_kl": kl}}, data={"response_tokens": tokens}
    )
    assert len(found) == said and (not said or "raise objective.beta (0.8)" in found[0])


def test_what_was_cut_is_said_from_one_in_a_hundred_on():
    assert lines(data={"responses_cut": 19, "prompts_cut": 9}) == []
    first, second = lines(data={"responses_cut": 20, "prompts_cut": 10}, config={"data": {"max_length": 64}})
    assert first.startswith("20 of 2000 responses are cut") and "raise data.max_length (64 tokens)" in first
    assert (
        second.startswith("10 of 1000 pairs are longer than the limit") and "data.max_prompt_length" in second
    )


def test_rows_as_long_as_the_model_allows_are_not_to_be_made_longer():
    """Kills: an advice that would be refused, since max_length is the model's positions."""
    cut = evidence(data={"responses_cut": 20, "prompts_cut": 10})
    limits = {"max_length": 64, "max_prompt_length": 32}
    for positions, raised in ((64, False), (65, True)):
        found = diagnose(cut._replace(facts=cut.facts | {"limits": limits | {"positions": positions}}))
        assert [("data.max_length" in line) for line in found] == [raised, raised], found
        assert "raise data.max_prompt_length (32 tokens)" in found[1]


def test_pairs_that_teach_nothing_are_counted():
    assert lines(data={"equal_pairs": 99}) == []
    assert "of 1000 pairs 60 have equal responses and 40 are there the other way round, too" in one_line(
        data={"equal_pairs": 60, "contradicting_pairs": 40}
    )
    table = pair_table([([1, 2], [3, 4], [5]), ([1, 2], [5], [3, 4]), ([1, 3], [5], [3, 4]), ([7], [8], [9])])
    found = table_facts(table)
    assert (found["rows"], found["responses"], found["contradicting_pairs"], found["equal_pairs"]) == (
        4,
        8,
        2,
        0,
    )
    same = table.with_columns(responses=table.responses.take(np.array([0, 0, 2, 3, 4, 5, 6, 7])))
    assert table_facts(same)["equal_pairs"] == 1


def test_the_first_steps_are_watched_and_spoken_of_once():
    watch = FirstSteps({"objective": OBJECTIVE, "po": {"optimizer": {"learning_rate": 0.0}}}, {"steps": 100})
    row = {name: values[0] for name, values in HEALTHY.items()} | {
        "loss": LN2,
        "learning_rate": 0.0,
        "kl/chosen": 0.0,
        "kl/rejected": 0.0,
    }
    said = [watch(step, row | {"skipped": math.nan}) for step in range(1, 2 * FIRST_STEPS)]
    assert "learning rate is 0" in said[FIRST_STEPS - 1][0] and not any(
        said[: FIRST_STEPS - 1] + said[FIRST_STEPS:]
    )
    later = FirstSteps({}, {})  # a run that is continued after its first steps
    assert later(FIRST_STEPS + 5, row) == []


def test_files_that_are_missing_or_broken_are_no_evidence(tmp_path):
    assert diagnose(read_evidence(tmp_path)) == []
    (tmp_path / "po").mkdir()
    rows = [{"stage": "po", "step": 10, "loss": None, "grad_norm": "x", "kl/chosen": 1e999}, {"stage": "po"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for content in (
        "{",
        "[]",
        '{"steps": "many", "data": [1], "limits": 3}',
        '{"data": {"rows": null, "responses_cut": "x"}}',
    ):
        (tmp_path / "po" / "facts.json").write_text(content)
        (tmp_path / "summary.json").write_text(content)
        (tmp_path / "config.yaml").write_text("objective: [dpo]\npo: 3\n")
        assert diagnose(read_evidence(tmp_path)) == []


def test_every_rule_is_in_the_list():
    named = {
        name
        for name, x in vars(doctor).items()
        if getattr(x, "__annotations__", {}) == {"evidence": Evidence, "return": str | None}
    }
    assert {rule.__name__ for rule in doctor.RULES} == named - {
        "loss_does_not_fall",
        "_mask_without_gradient",
    }  # these two are called by others


# ---------------------------------------------------------------- real runs

LONG = {
    "po": {"steps": 12, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.0}},
    "logging": {"every_steps": 50, "trackers": []},
    "evaluation": {"batch_size": 8, "sampled_prompts": None},
}


def doctor_lines(text):
    return [line.split("doctor: ", 1)[1] for line in text.splitlines() if "doctor: " in line]


def test_a_rate_of_zero_is_said_after_ten_steps_at_the_end_and_in_the_report(tmp_path, capsys):
    output = run(tmp_path, stages=["po", "eval", "report"], **LONG)
    said = capsys.readouterr()
    assert (
        "po: the loss stays at ln 2 (0.69315): the learning rate is 0" in said.err
    )  # log_every_steps is 50: no record yet
    assert any(
        line.startswith("the loss stays at ln 2 (0.69315): the learning rate is 0")
        for line in doctor_lines(said.out)
    )
    assert "the loss stays at ln 2" in (output / "report.html").read_text()
    words = json.loads((output / "summary.json").read_text())["words"]
    assert (
        words.startswith("Not learnt: 0.50 of the 9 held-out pairs")
        and words in said.out
        and "the policy is where it was" in words
    )


@pytest.mark.slow
def test_pairs_of_ids_that_are_cut_dead_and_contradict_each_other(tmp_path, capsys):
    """Weights of zero in the data give policy and mask no gradient; half the pairs are swapped copies."""
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(0, 40, n).tolist() for n in (30, 20, 25)] for _ in range(8)]
    pairs += [[prompt, rejected, chosen] for prompt, chosen, rejected in pairs]
    rows = [
        dict(
            prompt_ids=p,
            chosen_ids=c,
            rejected_ids=r,
            chosen_weights=[0.0] * len(c),
            rejected_weights=[0.0] * len(r),
        )
        for p, c, r in pairs
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = run(
        tmp_path,
        stages=["po"],
        objective={"kind": "sparsepo", "mask": {"kind": "given"}},
        policy={
            "config": {
                "model_type": "gpt2",
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 8,
                "n_positions": 64,
                "vocab_size": 40,
            }
        },
        tokenizer={"kind": "auto"},
        evaluation={"batch_size": 8},
        data={
            "sft": [],
            "eval": [],
            "train": [{"path": str(data)}],
            "max_length": 32,
            "max_prompt_length": 16,
        },
        **{k: LONG[k] for k in ("po", "logging")},
    )
    said = capsys.readouterr()
    facts = json.loads((output / "po" / "facts.json").read_text())
    assert (
        facts["data"]["responses_cut"] == 32
        and facts["data"]["prompts_cut"] == 16 == facts["data"]["contradicting_pairs"]
    )
    assert (
        facts["steps"] == 12
        and facts["machine"]["products"] == "float32"
        and facts["limits"] == {"max_length": 32, "max_prompt_length": 16, "positions": 64}
    )
    begins = [
        "the loss stays at ln 2 (0.69315): the reward mask is zero everywhere",
        "the gradient is zero (norm 0)",
        "the reward mask is dead",
        "32 of 32 responses are cut",
        "16 of 16 pairs are longer than the limit",
        "of 16 pairs 16 are there the other way round",
    ]
    found = doctor_lines(said.out)  # at the end, without eval or report
    assert len(found) == len(begins) and all(
        line.startswith(start) for line, start in zip(found, begins, strict=True)
    ), found
    assert all(f"po: {start}" in said.err for start in begins)


def test_equal_pairs_never_come_as_far_as_training(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a ", "chosen": "b", "rejected": "b"}\n')
    config = write_config(
        tmp_path,
        stages=["po"],
        tokenizer={"kind": "bytes"},
        data={"sft": [], "eval": [], "train": [{"path": str(data)}]},
    )
    assert main(["--config", str(config)]) != 0
    assert f"{data}:1: chosen and rejected are the same" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_run_that_learns_says_nothing_after_its_first_steps(tmp_path, capsys):
    """A rate that is still warming up is no fault, and a mask begins without zeros."""
    output = run(
        tmp_path,
        "po.steps=30",
        "po.optimizer.learning_rate=0.003",
        stages=["po"],
        evaluation={"batch_size": 8},
    )
    rows = [row for row in lines_of(output / "metrics.jsonl") if row["stage"] == "po"]
    assert rows[-1]["loss"] < LN2 - 0.01 and {"log_ratio/chosen", "log_ratio/rejected"} <= rows[-1].keys()
    assert [line for line in capsys.readouterr().err.splitlines() if "po: the " in line] == []
