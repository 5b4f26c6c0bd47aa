"""What settings, and the files that are there, tell of a run's end before its beginning."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.configs import make_config
from helpers.program import SMALL, write_config
from helpers.tiny import GPT2
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.run.beforehand import rounded_reference, unmade_mistakes
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.po import check_po

IDS = {"tokenizer": {"kind": "auto"}, "policy": {"config": GPT2}}
PAIRS = [{"kind": "reviews", "rows": 9}]
DPO = {"kind": "dpo", "mask": None}
SCORER = {"kind": "function", "function": "module:function"}
TESTS = [{"path": "problems.jsonl"}]


def checked(directory: Path, **changes) -> list[str]:
    """The lines of --check's refusal; none if it has none."""
    path = write_config(directory, **changes)
    try:
        make_plan_text(load_config(str(path), [])[0])
    except ConfigError as error:
        return list(error.lines)
    return []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (IDS | {"stages": ["eval"], "scorer": SCORER}, "scorer: it reads text: set tokenizer"),
        (
            IDS | {"stages": ["pairs"], "scorer": SCORER, "generation": {"samples": 2}},
            "scorer: it reads text: set tokenizer",
        ),
        (
            IDS | {"stages": ["generate", "measure"], "measure": {"text": {}}},
            "measure: it reads text, and stage generate would write token ids alone",
        ),
        (
            {"stages": ["po", "eval"], "scorer": {"kind": "tests"}},
            "scorer.kind: tests are columns of data.prompts",
        ),
        (
            {"stages": ["generate", "measure"], "measure": {"code": {"k": [1]}}},
            "measure.code: tests are columns of data.prompts, which is empty",
        ),
        (
            {"stages": ["generate", "measure"], "measure": {"text": {"reference": "answer"}}},
            "measure.text.reference: the prompts are those of the evaluation pairs, with chosen or rejected",
        ),
        (
            {
                "stages": ["generate", "measure"],
                "measure": {"code": {"k": [5]}},
                "generation": {"samples": 2},
            },
            "measure.code.k: pass@5 needs as many samples",
        ),
    ],
)
def test_what_answers_will_lack_is_refused_by_the_settings(tmp_path, changes, said):
    """Each of them once ended a run when its policy was trained, or its answers were written."""
    data = {"data": {"train": PAIRS, "eval": PAIRS, "prompts": PAIRS if "pairs" in changes["stages"] else []}}
    assert any(line.startswith(said) for line in checked(tmp_path, **data | changes))


@pytest.mark.parametrize(
    "changes",
    [
        IDS | {"stages": ["score"], "scorer": SCORER},
        IDS | {"stages": ["eval"], "scorer": SCORER, "evaluation": {"sampled_prompts": None}},
        {"stages": ["eval"], "scorer": {"kind": "tests"}, "evaluation": {"sampled_prompts": None}},
        {"stages": ["generate", "measure"], "measure": {"text": {"reference": "rejected"}}},
        {"stages": ["generate", "measure"], "measure": {"text": {"reference": "x", "rouge": False}}},
        {
            "stages": ["generate", "measure"],
            "measure": {"code": {"k": [2]}},
            "generation": {"samples": 2},
            "prompts": PAIRS,
        },
    ],
)
def test_what_is_not_read_may_lack(tmp_path, changes):
    data = {"train": [], "sft": [], "eval": PAIRS, "prompts": changes.get("prompts", [])}
    changes = changes | {"objective": DPO, "data": data, "prompts": None}
    assert checked(tmp_path, **changes) == []


def test_masks_and_baselines_that_nobody_has_trained_are_said_before_pairs_are_scored(tmp_path):
    """The run says it in `stored_masks`; here, that --check does, and where it does not know."""
    scoring = {"stages": ["score"], "data": {"eval": PAIRS}}
    assert "score and eval read its mask nets" in checked(tmp_path, **scoring)[0]
    assert (
        "score and eval read its baseline"
        in checked(tmp_path, **scoring, objective=DPO | {"kind": "tbpo_q"})[0]
    )
    assert checked(tmp_path, **scoring, objective=DPO) == []
    assert (
        checked(tmp_path, **scoring | {"stages": ["po", "score"], "data": {"train": PAIRS, "eval": PAIRS}})
        == []
    )
    (tmp_path / "run/po/start").mkdir(parents=True)
    assert checked(tmp_path, **scoring) == [], "a run that has begun says itself how far it came"
    stored = tmp_path / "model"
    stored.mkdir()
    (stored / "masks.safetensors").touch()
    elsewhere = {"output_dir": str(tmp_path / "other"), "stages": ["score"]}
    for path in (str(stored), "owner/name"):
        assert not list(
            unmade_mistakes(make_config(**elsewhere, policy={"path": path}, data={"eval": TESTS}))
        )
    (stored / "masks.safetensors").unlink()
    for name, said in (("transformer.wte.weight", 1), ("common_mask.layers.0.weight", 0)):
        save_file({name: np.zeros((2, 2), np.float32)}, stored / "model.safetensors")
        config = make_config(**elsewhere, policy={"path": str(stored)}, data={"eval": TESTS})
        assert len(list(unmade_mistakes(config))) == said, "mask nets beside the model's tensors"
    config = make_config(
        **elsewhere, policy={"path": str(stored)}, data={"eval": TESTS}, objective={"kind": "tbpo_q"}
    )
    assert "brings none" in "".join(unmade_mistakes(config))


def test_a_measure_without_generations_is_said(tmp_path):
    asked = {"stages": ["measure"], "measure": {"text": {}}}
    assert "run the stage generate first" in checked(tmp_path, **asked)[0]
    config = make_config(output_dir=str(tmp_path), **asked)
    (tmp_path / "generations.jsonl").touch()
    assert not list(unmade_mistakes(config))


def test_a_reference_that_would_be_rounded_is_refused_before_sft(tmp_path):
    """Kills: the refusal of `reference_weights` alone, which a run meets when its sft is trained."""
    rounded = {"reference": {"dtype": "bfloat16"}, "stages": ["sft", "po"]}
    assert "bfloat16 would round" in checked(tmp_path, **rounded, compute={"dtype": "float32"})[0]
    assert checked(tmp_path, **rounded) == [], "a GPU would compute in bfloat16"
    with pytest.raises(UserError, match="bfloat16 would round"):
        check_po(Run(load_config(str(write_config(tmp_path, **rounded)), [])[0], Stop()))
    config = make_config(**rounded, data=SMALL["data"])
    for changes in (
        {"stages": ["sft"]},
        {"compute": config.compute.model_copy(update={"weights": "bfloat16"})},
        {"po": make_config(po={"lora": {}}).po},
        {"stages": ["po"], "policy": make_config(policy={"path": "owner/name"}).policy},
    ):
        assert rounded_reference(config.model_copy(update=changes), "float32") is None
    assert rounded_reference(config, "float32") and rounded_reference(config, "bfloat16") is None


def test_a_gate_that_epochs_leave_warm_is_refused(tmp_path):
    """30 pairs in batches of 8: 4 steps an epoch. Kills: a look at po.steps alone."""
    po = SMALL["po"] | {"steps": None}
    mask = {"kind": "learned", "mixer_activation": "budget", "temperature_start": 3.0, "temperature_steps": 5}
    warm = {"stages": ["po"], "objective": {"mask": mask}}
    said = "objective.mask.temperature_steps: 5 steps, and po ends after 4"
    assert checked(tmp_path, **warm, po=po)[0].startswith(said)
    with pytest.raises(UserError, match=said):
        check_po(Run(load_config(str(write_config(tmp_path, **warm, po=po)), [])[0], Stop()))
    check_po(Run(load_config(str(write_config(tmp_path, **warm, po=po | {"epochs": 2})), [])[0], Stop()))
    assert checked(tmp_path, **warm, po=po | {"epochs": 2}) == []


def test_a_run_that_an_older_version_began_with_a_warm_gate_goes_on(tmp_path):
    """Kills: a refusal whose remedy, another gate, is refused in a run that has begun."""
    mask = {"kind": "learned", "mixer_activation": "budget", "temperature_start": 3.0, "temperature_steps": 5}
    warm = {"stages": ["po"], "objective": {"mask": mask}, "po": SMALL["po"] | {"steps": None}}
    run = Run(load_config(str(write_config(tmp_path, **warm)), [])[0], Stop())
    run.begin("po", run.training_pairs.file_digests())
    check_po(run)
    assert checked(tmp_path, **warm) == []


def test_single_responses_held_out_beside_pairs_are_said(tmp_path):
    """A set is of one kind. Kills: a refusal that the run alone has."""
    held_out = {"stages": ["po"], "objective": DPO | {"kind": "kto"}}
    data = {"train": PAIRS, "eval": PAIRS, "holdout": {"share": 0.3}}
    said = "data.holdout: the rows held out are single responses, and those of data.eval pairs"
    evaluated = held_out | {"stages": ["po", "eval"]}
    assert checked(tmp_path, **evaluated, data=data)[0].startswith(said)
    with pytest.raises(UserError, match=said):
        _ = Run(
            load_config(str(write_config(tmp_path, **evaluated, data=data)), [])[0], Stop()
        ).evaluation_sets
    assert checked(tmp_path, **evaluated, data=data | {"eval": {"pairs": PAIRS}}) == []
    assert checked(tmp_path, **evaluated | {"objective": DPO}, data=data) == []
