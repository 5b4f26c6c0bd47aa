"""Configs and rows of TRL, Axolotl, LLaMA-Factory and open-instruct: translated, or refused by name."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from helpers.chat import CHATML, chat_tokenizer
from helpers.foreign import AXOLOTL, FACTORY, OPEN_INSTRUCT, PUBLISHED, TRL, refused, translated, write
from helpers.loading import Load, texts
from sparsepo_jax.build.sources import open_source
from sparsepo_jax.config.foreign import llama_factory, trl_losses
from sparsepo_jax.config.foreign.axolotl_rows import TYPES
from sparsepo_jax.config.foreign.convert import convert
from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.main import main

# ---------------------------------------------------------------- whole configs


@pytest.mark.parametrize("program", PUBLISHED)
def test_a_published_config_becomes_one_that_loads_and_names_all_it_leaves_out(program, tmp_path, capsys):
    content = PUBLISHED[program]
    config, text = translated(tmp_path, content, devices=8)
    micro_batch = content.get("per_device_train_batch_size", content.get("micro_batch_size"))
    accumulation = content["gradient_accumulation_steps"]
    assert config.po.batch_size == 8 * accumulation * micro_batch and config.po.accumulation == accumulation
    assert config.po.optimizer.learning_rate == float(content["learning_rate"])
    assert config.seed == 42 and "po" in config.stages and f"From {program}'s" in text
    assert main(["--from-trl", str(tmp_path / "theirs.yaml"), "--devices", "8"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("program", PUBLISHED)
def test_no_setting_is_passed_over(program, tmp_path):
    """Each is moved to another value: our config changes, or a comment or a refusal names it."""
    content = PUBLISHED[program]
    plain = translated(tmp_path, content)[1]
    for name, value in content.items():
        if value is None or name in ("rl", "stage", "base_model", "loss_type"):
            continue
        other = (
            not value if isinstance(value, bool) else value * 2 if isinstance(value, int | float) else "xyz"
        )
        try:
            moved = translated(tmp_path, content | {name: other})[1]
        except ConfigError as error:
            assert name.split("_")[0] in "\n".join(error.lines), name
        else:
            assert moved != plain, name


def test_trl_by_hand(tmp_path):
    config, text = translated(tmp_path, TRL)
    assert config.objective.model_dump(exclude_defaults=True) == {"kind": "dpo", "beta": 0.05}
    assert config.stages == ["po", "eval", "export"] and config.po.eval_every_steps == 100
    assert (config.data.train[0].split, config.data.eval[0].split) == ("train_prefs", "test_prefs")
    assert (config.data.max_length, config.data.max_prompt_length) == (1536, 1535)
    assert config.po.schedule.warmup_share == 0.1 and config.po.clip_norm == 1.0 and config.po.epochs == 1
    lora = config.po.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (
        16,
        32.0,
        0.05,
        ["attention.query", "down"],
    ), "TRL's defaults are written out"
    assert config.compute.dtype == "bfloat16" and "# Without a meaning here" in text


def test_a_chat_template_is_taken_over(tmp_path):
    """As in the alignment handbook's configs, whose base models have none."""
    jinja = "{% for m in messages %}\n<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    changes = {"chat_template": jinja, "chat_template_kwargs": {"tone": "low"}}
    config, text = translated(tmp_path, TRL | changes)
    assert config.data.template_arguments == {"tone": "low", "chat_template": jinja}
    assert "exports keep the tokenizer's own" in text
    config, _ = translated(tmp_path, AXOLOTL | {"chat_template": "jinja", "chat_template_jinja": jinja})
    assert config.data.template_arguments == {"chat_template": jinja}
    config, text = translated(tmp_path, TRL | {"chat_template": "chatml"})
    assert config.data.template_arguments == {} and "put this one into its directory" in " ".join(
        text.split()
    )


def test_what_trl_takes_by_default_is_written_out(tmp_path):
    """Linear and without warm-up, beta 0.1, 1e-6, 3 epochs of 8, bf16: ours are other values."""
    config, text = translated(tmp_path, {"loss_type": "sigmoid", "beta": 0.1})
    assert config.po.schedule.model_dump() == {
        "kind": "linear",
        "warmup_share": 0.0,
        "warmup_steps": None,
        "end": 0.0,
    }
    assert (config.po.epochs, config.po.batch_size, config.po.optimizer.learning_rate) == (3.0, 8, 1e-6)
    assert config.compute.dtype == "bfloat16" and config.data.max_length == 1024
    assert config.policy.path == "MODEL" and "set policy.path" in text


def test_axolotl_by_hand(tmp_path):
    config, text = translated(tmp_path, AXOLOTL)
    (source,) = config.data.train
    assert source.columns == {"prompt": "conversation", "chosen": "better"}
    assert config.data.holdout.share == 0.05 and config.po.schedule.warmup_steps == 10
    assert (config.po.lora.base, config.po.lora.targets, config.po.lora.rank) == ("int8", ["."], 32)
    assert "8 bits" in text and "evals_per_epoch" in text
    simpo = AXOLOTL | {"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}
    objective = translated(tmp_path, simpo)[0].objective
    assert (objective.kind, objective.beta, objective.gamma, objective.nll_weight) == ("simpo", 2.0, 1.0, 0.0)
    assert translated(tmp_path, AXOLOTL | {"rl": "ipo"})[0].objective.kind == "ipo"
    assert translated(tmp_path, AXOLOTL | {"rl": "orpo"})[0].objective.odds_weight == 0.1
    said = refused(tmp_path, AXOLOTL | {"sample_packing": True, "rl": "grpo", "lora_modules_to_save": ["x"]})
    assert "sample_packing" in said and "rl: 'grpo'" in said and "lora_modules_to_save" in said


def test_llama_factory_by_hand(tmp_path):
    (tmp_path / "data").mkdir()
    info = {
        "dpo_en_demo": {
            "file_name": "pairs.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "chosen", "rejected": "worse"},
        }
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    config, _ = translated(tmp_path, FACTORY | {"dataset_dir": str(tmp_path / "data")})
    (source,) = config.data.train
    assert source.path == str(tmp_path / "data" / "pairs.json") and source.split == "train[:1000]"
    assert source.columns == {"conversations": "talk", "rejected": "worse"}
    assert (config.objective.kind, config.objective.beta, config.objective.gamma) == ("simpo", 0.1, 0.3)
    assert (config.po.lora.rank, config.po.lora.alpha, config.po.lora.dropout) == (8, 16.0, 0.0)
    smoothed = translated(tmp_path, FACTORY | {"pref_loss": "sigmoid", "dpo_label_smoothing": 0.2})[
        0
    ].objective
    assert (smoothed.kind, smoothed.label_smoothing) == ("cdpo", 0.2)
    assert "finetuning_type: 'freeze'" in refused(tmp_path, FACTORY | {"finetuning_type": "freeze"})


def test_llama_factorys_rows_with_a_tag_are_rows_with_a_label(tmp_path):
    info = {"talks": {"file_name": "t.json", "columns": {"response": "answer", "kto_tag": "good"}}}
    fields = Fields({}, "LLaMA-Factory")
    source = llama_factory._source(fields, tmp_path, info, "talks", "train")
    assert source["columns"] == {"output": "answer", "label": "good"}


def test_open_instruct_by_hand(tmp_path):
    config, _ = translated(tmp_path, OPEN_INSTRUCT)
    assert [source.split for source in config.data.train] == ["train", "train[:50%]"]
    assert config.po.clip_norm is None and config.objective.kind == "dpo_norm"
    assert config.checkpoint.every_steps == 1000 and config.checkpoint.keep == 3
    listed = OPEN_INSTRUCT | {
        "dataset_mixer": None,
        "dataset_mixer_list": ["org/one", "1.0", "org/two", "100"],
    }
    assert [source.split for source in translated(tmp_path, listed)[0].data.train] == ["train", "train[:100]"]
    simpo = OPEN_INSTRUCT | {"dpo_loss_type": "simpo", "dpo_beta": 2.0, "dpo_gamma_beta_ratio": 0.5}
    assert translated(tmp_path, simpo)[0].objective.gamma == 1.0


SFT = {"datasets": [{"path": "org/talks", "type": "chat_template"}], "base_model": "org/model"}
FACTORY_SFT = {
    "stage": "sft",
    "finetuning_type": "full",
    "dataset": "talks",
    "model_name_or_path": "org/model",
}


@pytest.mark.parametrize(
    ("content", "turns"),
    [
        ({"assistant_only_loss": True, "dataset_name": "org/talks"}, "assistant"),
        ({"completion_only_loss": True, "dataset_name": "org/talks"}, "last"),
        (SFT, "assistant"),
        (
            SFT | {"datasets": [{"path": "x", "roles_to_train": ["assistant"], "train_on_eos": "turn"}]},
            "assistant",
        ),
        (SFT | {"datasets": [{"path": "org/texts", "type": "alpaca"}]}, "last"),
        (FACTORY_SFT, "assistant"),
        (FACTORY_SFT | {"mask_history": True}, "last"),
    ],
)
def test_the_turns_that_the_other_program_trains_on_are_trained_on(content, turns, tmp_path):
    assert translated(tmp_path, content)[0].data.train_on == turns


def test_other_turns_are_refused(tmp_path):
    entry = {"path": "org/talks", "roles_to_train": ["user"], "train_on_eos": "last"}
    said = refused(tmp_path, SFT | {"datasets": [entry]})
    assert "roles_to_train: ['user']" in said and "train_on_eos: 'last'" in said


def test_best_weights_trackers_and_the_hub(tmp_path):
    config, text = translated(
        tmp_path,
        TRL
        | {"load_best_model_at_end": True, "metric_for_best_model": "eval_rewards/accuracies"}
        | {"report_to": ["wandb", "swanlab"], "run_name": "first", "project": "mine"}
        | {"push_to_hub": True, "hub_model_id": "me/it"},
    )
    assert config.po.keep == "best" and config.checkpoint.best.model_dump() == {
        "metric": "eval/rewards/accuracies",
        "mode": "max",
    }
    log = config.logging
    assert (log.trackers, log.project, log.name) == (["wandb"], "mine", "first") and "swanlab" in text
    assert (config.export.hub, config.export.hub_private) == ("me/it", False), "as there by default"
    config, text = translated(tmp_path, TRL | {"report_to": "none", "push_to_hub": True})
    assert config.logging.trackers == [] and config.export.hub is None and "set export.hub" in text
    loss = translated(tmp_path, TRL | {"load_best_model_at_end": True})[0].checkpoint.best
    assert (loss.metric, loss.mode) == ("eval/loss", "min")
    said = refused(tmp_path, TRL | {"load_best_model_at_end": True, "eval_strategy": "epoch"})
    assert "set eval_steps" in said
    watched = {"load_best_model_at_end": True, "metric_for_best_model": "bleu"}
    assert "metric_for_best_model: 'bleu'" in refused(tmp_path, TRL | watched)
    assert "eval_steps: 0.1: a share" in refused(tmp_path, TRL | {"eval_steps": 0.1})


def test_early_stopping_and_the_hub_of_axolotl(tmp_path):
    settings = {"early_stopping_patience": 4, "eval_steps": 50, "hub_model_id": "me/it"}
    config = translated(tmp_path, AXOLOTL | settings)[0]
    stopping = config.po.early_stopping
    assert (stopping.patience, stopping.metric, stopping.mode) == (4, "eval/loss", "min")
    assert config.po.eval_every_steps == 50 and config.po.keep == "last"
    assert (config.export.hub, config.export.hub_private) == ("me/it", True)
    assert "early_stopping_patience" in refused(tmp_path, AXOLOTL | {"early_stopping_patience": 4})
    said = refused(tmp_path, SFT | settings)
    assert "take it out" in said and "set eval_steps" not in said, "which would not help"


def test_trackers_of_axolotl(tmp_path):
    """wandb logs where a project is named, unless it is switched off."""
    project = {"wandb_project": "mine", "wandb_name": "first"}
    log = translated(tmp_path, AXOLOTL | project | {"use_tensorboard": True})[0].logging
    assert (log.trackers, log.project, log.name) == (["tensorboard", "wandb"], "mine", "first")
    log = translated(tmp_path, AXOLOTL | project | {"use_wandb": False})[0].logging
    assert "wandb" not in log.trackers and log.name == "first"


def test_llama_factorys_mix_with_bco(tmp_path):
    """Its mean of both: (DPO + w BCO) / (1 + w)."""
    settings = {"pref_loss": "sigmoid", "pref_bco_weight": 0.25, "pref_ftx": 0.5}
    objective = translated(tmp_path, FACTORY | settings)[0].objective
    parts = [(part.weight, part.objective.kind) for part in objective.parts]
    assert (objective.kind, objective.nll_weight, parts) == ("mix", 0.5, [(0.8, "dpo"), (0.2, "bco_pair")])
    assert "pref_bco_weight" in refused(tmp_path, FACTORY | settings | {"pref_loss": "ipo"})
    config, text = translated(tmp_path, FACTORY | {"pref_bco_weight": 0.25})
    assert config.objective.kind == "simpo" and "pref_bco_weight" in text


# ---------------------------------------------------------------- TRL's losses and trainers


def trl_file(name: str) -> str:
    spec = importlib.util.find_spec("trl")
    if spec is None:
        pytest.skip("trl is not installed")
    return (Path(spec.origin).parent / name).read_text()


def test_every_loss_of_trl_has_its_objective_or_is_refused_by_name(tmp_path):
    """Read from TRL's own file: a loss that a later version adds fails here."""
    theirs = set(re.findall(r'loss_type == "(\w+)"', trl_file("trainer/dpo_trainer.py")))
    assert theirs == {*trl_losses.LOSSES, *trl_losses.SORTED, "sft"}
    kinds = members(Objective)
    for loss in sorted(theirs - {"sft"}):
        content = {"loss_type": loss, "beta": 0.3, "label_smoothing": 0.01, "discopop_tau": 0.07}
        kind = trl_losses.LOSSES[loss][0] if loss in trl_losses.LOSSES else trl_losses.SORTED[loss]
        if kind not in kinds:
            assert f"loss_type: '{loss}'" in refused(tmp_path, content)
            continue
        objective = translated(tmp_path, content)[0].objective
        assert objective.kind == kind and objective.beta == 0.3
        values = {"label_smoothing": 0.01, "temperature": 0.07}
        assert all(getattr(objective, name, value) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"f_divergence_type": "forward_kl"}, {"kind": "fdpo", "beta": 0.1, "alpha": 0.0}),
        ({"f_divergence_type": "js_divergence"}, {"kind": "fdpo", "beta": 0.1, "alpha": None}),
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
            {"kind": "fdpo", "beta": 0.1, "alpha": 0.7},
        ),
        ({"ld_alpha": 0.4}, {"kind": "ldpo", "beta": 0.1, "alpha": 0.4}),
        ({"use_weighting": True}, {"kind": "dpo", "beta": 0.1, "policy_weight": "aligned"}),
        (
            {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]},
            {"kind": "ipo", "beta": 0.1, "nll_weight": 0.5},
        ),
    ],
)
def test_options_of_trls_losses(changes, expected, tmp_path):
    objective = translated(tmp_path, {"beta": 0.1} | changes)[0].objective
    assert {name: getattr(objective, name) for name in expected} == expected


def test_sums_of_trls_losses(tmp_path):
    """MPO's: sigmoid, BCO and the likelihood of the chosen answer."""
    losses = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.1}
    if "mix" not in members(Objective):
        assert "one loss, or one and sft, is translated" in refused(tmp_path, losses)
        return
    objective = translated(tmp_path, losses)[0].objective
    parts = [(part.weight, part.objective.kind) for part in objective.parts]
    assert (objective.kind, objective.nll_weight, parts) == ("mix", 1.0, [(0.8, "dpo"), (0.2, "bco_pair")])


def test_other_trainers_of_trl(tmp_path):
    cpo = translated(tmp_path, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0})[0]
    assert (cpo.objective.kind, cpo.objective.gamma) == ("simpo", 1.0)
    orpo = translated(tmp_path, {"beta": 0.2}, trainer="orpo")[0]
    assert (orpo.objective.kind, orpo.objective.odds_weight) == ("orpo", 0.2)
    sft, _ = translated(tmp_path, {"completion_only_loss": True, "dataset_name": "org/texts"})
    assert sft.stages == ["sft", "export"] and sft.sft.optimizer.learning_rate == 2e-5
    assert sft.data.sft[0].path == "org/texts"
    assert "completion_only_loss" in refused(tmp_path, {"packing": False, "dataset_name": "org/texts"})
    kto = {"desirable_weight": 2.0, "beta": 0.2}
    if "kto" in members(Objective):
        assert translated(tmp_path, kto)[0].objective.desirable_weight == 2.0
    else:
        assert "unpaired rows" in refused(tmp_path, kto)
    fields = Fields(kto | {"precompute_ref_log_probs": True}, "TRL")
    trl_losses._kto(fields, {"kto"})
    assert fields.config["reference"] == {"cached": True}


def test_the_shape_of_alphapos_reward_is_taken_or_refused(tmp_path):
    """TRL applies alpha to every loss of CPOTrainer. Kills: one that is dropped; its loss_type unknown."""
    alphapo = {"loss_type": "alphapo", "alpha": 0.3, "simpo_gamma": 1.0, "beta": 2.0}
    written_out = alphapo | {"loss_type": "simpo", "cpo_alpha": 0.0}
    objectives = [translated(tmp_path, content)[0].objective for content in (alphapo, written_out)]
    assert objectives[0] == objectives[1]
    assert (objectives[0].kind, objectives[0].alpha, objectives[0].nll_weight) == ("alphapo", 0.3, 0.0)
    assert "alpha: 0.3: it shapes rewards" in refused(tmp_path, {"cpo_alpha": 0.0, "alpha": 0.3, "beta": 2.0})


@pytest.mark.slow
def test_a_trainers_config_as_json_is_known_to_its_last_field(tmp_path):
    """As `to_json_string` writes all 150 fields. Kills: a field whose default has nowhere to go."""
    trl_package = pytest.importorskip("trl")
    for trainer, name in (("dpo", "DPOConfig"), ("sft", "SFTConfig")):
        settings = {"completion_only_loss": True} if trainer == "sft" else {}
        config = getattr(trl_package, name)(
            output_dir="x", bf16=False, use_cpu=True, report_to="none", **settings
        )
        path = tmp_path / f"{trainer}.json"
        path.write_text(config.to_json_string())
        assert "stages:" in convert(str(path), trainer, 1)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sync_ref_model": True}, "sync_ref_model: true: there is nothing like it here"),
        ({"optim": "galore_adamw"}, "optim: 'galore_adamw': expected one of adamw_torch"),
        ({"lr_scheduler_type": "polynomial"}, "expected linear, cosine or constant"),
        (
            {"lora_target_modules": None},
            "lora_target_modules: which projections PEFT would choose depends on the model",
        ),
        ({"lora_target_modules": ["c_attn"]}, "lora_target_modules: c_attn: expected q_proj"),
        ({"use_dora": True}, "use_dora: true: LoRA of projections alone"),
        ({"truncation_mode": "keep_end"}, "truncation_mode: 'keep_end': of a response the start is kept"),
        ({"loss_type": "new_loss"}, "loss_type: 'new_loss': expected one of sigmoid"),
        ({"a_new_setting": 3}, "a_new_setting: 3: what this setting of TRL would be here is not known"),
        ({"beta": "much"}, "beta: expected a number, got 'much'"),
        ({"loss_type": ["sft"]}, "alone it is supervised training"),
        ({"loss_weights": [1.0, 2.0]}, "expected a weight for each of sigmoid"),
    ],
)
def test_what_would_train_something_else_is_refused_by_name(changes, said, tmp_path):
    assert said in refused(tmp_path, TRL | changes)


def test_files_that_are_no_configs(tmp_path, capsys):
    (tmp_path / "training_args.bin").write_bytes(b"\x80")
    assert main(["--from-trl", str(tmp_path / "training_args.bin")]) == 2
    assert "a pickle, which is a program, and is not read" in capsys.readouterr().err
    assert "fits several of TRL's trainers" in refused(tmp_path, {"learning_rate": 1e-6})
    assert "no config of TRL" in refused(tmp_path, {"name": "x"})
    assert "a config of ours already" in refused(tmp_path, {"stages": ["po"]})
    with pytest.raises(SystemExit):
        main(["--config", "x.yaml", "--devices", "2"])


def test_another_programs_config_says_how_it_becomes_ours(tmp_path):
    with pytest.raises(ConfigError, match="a config of TRL: --from-trl in place of --config"):
        load_config(write(tmp_path, TRL))


# ---------------------------------------------------------------- rows

HI, GOOD, BAD = "Hi", "Hello", "What"
CHAT = [{"role": "user", "content": HI}]
SHARED = [{"from": "human", "value": HI}]
ROWS = {
    "TRL, messages": ({"prompt": CHAT, "chosen": [{"role": "assistant", "content": GOOD}]}, {}),
    "Axolotl, chat_template.default": (
        {"conversation": CHAT, "better": {"role": "assistant", "content": GOOD}},
        {"prompt": "conversation", "chosen": "better"},
    ),
    "Axolotl, chatml.intel": ({"system": None, "question": HI, "chosen": GOOD}, TYPES["intel"]),
    "Axolotl, chatml.icr": ({"system": "", "input": HI, "chosen": GOOD}, TYPES["icr"]),
    "Axolotl, llama3.prompt_pairs": ({"prompt": HI, "chosen": GOOD}, TYPES["prompt_pairs"]),
    "Axolotl, argilla_chat": ({"chosen": [*CHAT, {"role": "assistant", "content": GOOD}]}, {}),
    "Axolotl, chatml.argilla": (
        {"instruction": HI, "chosen_response": GOOD, "rejected_response": BAD},
        TYPES["argilla"],
    ),
    "Axolotl, ultra": ({"prompt": HI, "chosen": [*CHAT, {"role": "assistant", "content": GOOD}]}, {}),
    "LLaMA-Factory, sharegpt": ({"conversations": SHARED, "chosen": {"from": "gpt", "value": GOOD}}, {}),
    "LLaMA-Factory, alpaca": ({"instruction": HI, "input": "", "chosen": GOOD}, {}),
    "open-instruct": ({"chosen": [*CHAT, {"role": "assistant", "content": GOOD}]}, {}),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_other_programs_become_the_same_tokens(name, tmp_path):
    """With the columns that a translated config gives its sources."""
    row, columns = ROWS[name]
    theirs = columns.get("chosen", "chosen")
    other = json.loads(json.dumps(row[theirs]).replace(GOOD, BAD))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"rejected": other}) + "\n")
    source = Config.model_validate(
        {
            "stages": ["inspect"],
            "output_dir": "x",
            "data": {"train": [{"path": str(path), "columns": columns}]},
        }
    ).data.train[0]
    tokenizer = chat_tokenizer(CHATML, eos="<|im_end|>")
    table = Load(tmp_path)([open_source(source, "pairs")], tokenizer)
    prompt, chosen, rejected = texts(table, 0, tokenizer)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (chosen, rejected) == (f"{GOOD}<|im_end|>\n", f"{BAD}<|im_end|>\n")
