"""Configs as people have them: what is left over in them, what they leave out, and whose they are."""

import json

import pytest

from helpers.foreign import (
    AXOLOTL,
    FACTORY,
    HANDBOOK,
    OPEN_INSTRUCT,
    TRL,
    from_text,
    refused,
    translated,
    write,
)
from sparsepo_jax.config.foreign.convert import convert
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.main import main

AXOLOTL_SFT = {"base_model": "org/model", "datasets": [{"path": "org/talks", "type": "chat_template"}]}


# ---------------------------------------------------------------- data of the alignment handbook


def test_a_mixer_takes_the_first_part_of_each_data_set_and_all_of_its_test_splits(tmp_path):
    mixer = {
        "dataset_mixer": {"org/one": 1.0, "org/two": 0.25},
        "dataset_splits": ["train_prefs", "test_prefs"],
        "dataset_configs": ["plain", "full"],
    }
    config, text = translated(tmp_path, HANDBOOK | mixer)
    assert [(source.path, source.split, source.subset) for source in config.data.train] == [
        ("org/one", "train_prefs", "plain"),
        ("org/two", "train_prefs[:25%]", "full"),
    ]
    assert [source.split for source in config.data.eval] == ["test_prefs", "test_prefs"]
    assert config.stages == ["po", "eval", "export"] and "empty system message" in text
    assert (
        "empty system"
        not in translated(tmp_path, HANDBOOK | mixer | {"auto_insert_empty_system_msg": False})[1]
    )
    assert "org/two: expected a share" in refused(
        tmp_path, HANDBOOK | mixer | {"dataset_mixer": {"org/one": 1.0, "org/two": 2}}
    )
    assert "dataset_configs" in refused(tmp_path, HANDBOOK | mixer | {"dataset_configs": ["plain"]})


def test_a_mixture_names_its_data_sets_and_what_is_held_out(tmp_path):
    part = {"id": "org/one", "config": "plain", "split": "train_prefs", "columns": ["chosen", "rejected"]}
    mixture = {
        "datasets": [part | {"weight": 1.0}, part | {"weight": 0.5}],
        "test_split_size": 0.1,
        "seed": 0,
    }
    config, text = translated(tmp_path, HANDBOOK | {"dataset_mixture": mixture})
    assert [(source.path, source.subset, source.weight) for source in config.data.train] == [
        ("org/one", "plain", 1.0),
        ("org/one", "plain", 0.5),
    ]
    assert config.data.holdout.share == 0.1 and "eval" in config.stages and "drawn once there" in text
    said = refused(tmp_path, HANDBOOK | {"dataset_mixture": {"datasets": [part | {"text_key": "x"}]}})
    assert "dataset_mixture: text_key: not translated" in said


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (TRL | {"test_split_size": 2000}, "test_split_size"),
        (AXOLOTL | {"val_set_size": 2000}, "val_set_size"),
        (FACTORY | {"val_size": 2000}, "val_size"),
    ],
)
def test_a_number_of_rows_held_out_becomes_a_number_of_prompts(content, name, tmp_path):
    config, text = translated(tmp_path, content)
    assert config.data.holdout.prompts == 2000 and config.data.holdout.share is None
    assert f"{name}: 2000 prompts are held out, with all their rows" in text


def test_a_number_of_rows_held_out_is_whole(tmp_path):
    assert "test_split_size: expected a share or a number of rows, got 1.5" in refused(
        tmp_path, TRL | {"test_split_size": 1.5}
    )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (AXOLOTL_SFT | {"val_set_size": 0.1}, "val_set_size"),
        (FACTORY | {"stage": "sft", "val_size": 0.1}, "val_size"),
        ({"completion_only_loss": True, "dataset_name": "a/b", "test_split_size": 0.1}, "test_split_size"),
    ],
)
def test_that_sft_trains_on_all_rows_is_said(content, name, tmp_path):
    config, text = translated(tmp_path, content)
    assert config.data.holdout is None and f"{name}: 0.1: all rows are trained on here" in text


# ---------------------------------------------------------------- whose they are


@pytest.mark.parametrize("name", ["Mistral-ORPO-v1", "runs/kto", "cpo_simpo"])
def test_a_beta_in_a_run_that_is_called_otherwise_asks_for_the_trainer(name, tmp_path):
    """beta is DPO's, and KTO's, CPO's and ORPO's too. Kills: a config of ORPO that trains DPO."""
    content = {"model_name_or_path": "org/model", "dataset_name": "org/pairs", "beta": 0.05}
    for plain in ("runs/x", "base-sft-dpo", "orpo-then-dpo"):
        assert translated(tmp_path, content | {"output_dir": plain})[0].objective.kind == "dpo"
    assert translated(tmp_path, content | {"loss_type": "simpo"})[0].objective.kind == "simpo"
    assert "add --trainer" in refused(tmp_path, content | {"output_dir": name})
    assert (
        translated(tmp_path, content | {"output_dir": name}, trainer="orpo")[0].objective.odds_weight == 0.05
    )


def test_settings_of_sft_beside_a_loss_of_dpo_are_dpos(tmp_path):
    content = {"loss_type": "sigmoid", "beta": 0.1, "packing": True}
    assert refused(tmp_path, content).startswith("TRL: packing: true: what this setting")


def test_simpos_own_trainer(tmp_path):
    content = HANDBOOK | {"beta": 10, "gamma_beta_ratio": 0.3, "sft_weight": 0.5}
    config, text = translated(tmp_path, content)
    objective = config.objective
    assert (objective.kind, objective.beta, objective.gamma, objective.nll_weight) == ("simpo", 10, 3.0, 0.5)
    assert "sft_weight: averaged over each chosen response" in text


def test_a_config_that_fits_fine_tuning_and_dpo_asks_for_the_trainer(tmp_path):
    content = {name: value for name, value in OPEN_INSTRUCT.items() if not name.startswith("dpo_")}
    assert "add --trainer dpo" in refused(tmp_path, content)
    assert translated(tmp_path, content, trainer="dpo")[0].objective.beta == 0.1


WHOLE = {
    "TRL": {"model_name_or_path": "org/model", "dataset_name": "org/pairs"},
    "LLaMA-Factory": FACTORY,
    "LLaMA-Factory:": {"finetuning_type": "lora", "model_name_or_path": "org/model"},
    "open-instruct": OPEN_INSTRUCT,
    "Axolotl": AXOLOTL,
    "ms-swift, which --from-trl does not translate": {"rlhf_type": "dpo", "model": "a/b", "beta": 0.1},
}


@pytest.mark.parametrize("program", WHOLE)
def test_a_config_of_another_program_is_named_by_it(program, tmp_path):
    """Kills: two lists of marks, by which LLaMA-Factory's and open-instruct's files were TRL's."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, WHOLE[program]))
    (line,) = caught.value.lines
    assert line.startswith(f"this is a config of {program}")


def test_a_config_of_a_program_that_is_not_known_is_one_line(tmp_path):
    content = {"dpo": {"seed": 1}, "policy": {"model_name": "a/b"}, "cluster": {}, "logger": {}, "data": {}}
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    (line,) = caught.value.lines
    assert line.startswith(
        "no config of this program: it has no stages, and unknown keys (cluster, dpo, logger)"
    )
    with pytest.raises(ConfigError) as caught:  # ours, with two mistakes
        load_config(write(tmp_path, {"output_dir": "x", "data": {}, "stage": ["po"]}))
    assert caught.value.lines[-1] == "stage: unknown key; did you mean stages?"


# ---------------------------------------------------------------- left over, left out


@pytest.mark.parametrize("content", [TRL, AXOLOTL | {"adapter": "qlora"}])
def test_bits_that_are_off_beside_bits_that_are_on(content, tmp_path):
    bits = {"load_in_4bit": True, "load_in_8bit": False}
    assert translated(tmp_path, content | bits)[0].po.lora.base == "nf4"


def test_what_is_neither_true_nor_false_is_refused(tmp_path):
    assert "bf16: expected true or false, got 'ture'" in refused(tmp_path, TRL | {"bf16": "ture"})
    assert translated(tmp_path, TRL | {"bf16": "True"})[0].compute.dtype == "bfloat16"


def test_lengths_of_versions_with_a_length_of_prompts(tmp_path):
    both = {"max_prompt_length": 512, "truncation_mode": "keep_end"}
    assert translated(tmp_path, TRL | both)[0].data.max_prompt_length == 512
    assert "truncation_mode" in refused(tmp_path, TRL | both | {"truncation_mode": "keep_start"})
    assert translated(tmp_path, TRL | {"max_length": None, "max_seq_length": 77})[0].data.max_length == 77


@pytest.mark.parametrize("least", [{"min_lr_rate": 0.1}, {"min_lr": 5e-8}])
def test_where_a_cosine_ends(least, tmp_path):
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": least}
    assert translated(tmp_path, TRL | schedule)[0].po.schedule.end == pytest.approx(0.1)
    assert "lr_scheduler_kwargs" in refused(tmp_path, TRL | schedule | {"lr_scheduler_kwargs": {"power": 2}})


def test_what_axolotl_takes_by_default_is_written_out(tmp_path):
    left_out = ("bf16", "warmup_steps", "sequence_len")
    config, text = translated(
        tmp_path, {name: value for name, value in AXOLOTL.items() if name not in left_out}
    )
    assert config.compute.dtype == "bfloat16" and config.po.schedule.warmup_share == 0.03
    assert config.data.max_length == 512 and "at most 100 steps" in text
    for settings, share in (
        ({"warmup_steps": None, "warmup_ratio": 0.2}, 0.2),
        ({"warmup_steps": None, "warmup_ratio": 0}, 0.0),
        ({"warmup_steps": 0, "warmup_ratio": 0.2}, 0.0),
    ):
        assert translated(tmp_path, AXOLOTL | settings)[0].po.schedule.warmup_share == share
    assert translated(tmp_path, AXOLOTL | {"bf16": None, "float32": True})[0].compute.dtype == "float32"


def test_settings_of_axolotl_that_its_examples_have(tmp_path):
    tokens = {"special_tokens": {"pad_token": "<pad>", "eos_token": "<eos>"}, "eval_max_new_tokens": 128}
    text = translated(tmp_path, AXOLOTL | tokens)[1]
    assert "eos_token '<eos>': the tokenizer's own" in text and "pad_token '<pad>': padding is inert" in text
    ending = {"cosine_min_lr_ratio": 0.1, "trl": {"beta": 0.3}, "precompute_ref_log_probs": True}
    config = translated(tmp_path, AXOLOTL | ending)[0]
    assert (config.po.schedule.end, config.objective.beta, config.reference.cached) == (0.1, 0.3, True)
    sizes = {"batch_size": 8, "gradient_accumulation_steps": None}
    config = translated(tmp_path, AXOLOTL | sizes, devices=2)[0]
    assert (config.po.batch_size, config.po.accumulation) == (16, 4)
    assert "trl: use_vllm" in refused(tmp_path, AXOLOTL | {"trl": {"use_vllm": True}})


def test_settings_of_the_own_method_are_not_put_aside(tmp_path):
    """Kills: DPO of sums from a config of means, with a line that the setting is of another method."""
    for rl in ("dpo", "ipo"):
        assert "dpo_norm_loss: true: set" in refused(tmp_path, AXOLOTL | {"rl": rl, "dpo_norm_loss": True})
        assert "dpo_new: 1: what" in refused(tmp_path, AXOLOTL | {"rl": rl, "dpo_new": 1})
    translated(tmp_path, AXOLOTL | {"dpo_norm_loss": False, "dpo_generate_during_eval": True})


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("llama3.ultra", {"instruction": "prompt"}),
        ("chatml.intel", {"instruction": "question"}),
        ("llama3.argilla_chat", {"messages": "completion"}),
    ],
)
def test_axolotls_rows_with_a_label(form, columns, tmp_path):
    content = AXOLOTL | {"rl": "kto", "datasets": [{"path": "org/labelled", "type": form}]}
    assert translated(tmp_path, content)[0].data.train[0].columns == columns


@pytest.mark.parametrize("kind", ["chatml", "llama3.argilla", "chatml.default"])
def test_axolotls_rows_of_argilla(kind, tmp_path):
    content = AXOLOTL | {"datasets": [{"path": "org/pairs", "type": kind}]}
    config, text = translated(tmp_path, content)
    assert config.data.train[0].columns == {"chosen": "chosen_response", "rejected": "rejected_response"}
    assert f"type {kind}: it takes columns of several names" in text


@pytest.mark.parametrize(
    ("rl", "kind", "columns"),
    [
        ("dpo", {"field_prompt": "q", "prompt_format": "{prompt}", "field_system": "s"}, {"prompt": "q"}),
        ("kto", {"field_completion": "a", "field_label": "ok"}, {"completion": "a", "label": "ok"}),
    ],
)
def test_axolotls_rows_of_the_files_own_type(rl, kind, columns, tmp_path):
    content = AXOLOTL | {"rl": rl, "datasets": [{"path": "org/rows", "type": kind}]}
    assert translated(tmp_path, content)[0].data.train[0].columns == columns
    for other in ({"format": "[INST] {prompt}"}, {"prompt_format": "Q: {prompt}"}, {"field_output": "a"}):
        content = AXOLOTL | {"rl": rl, "datasets": [{"path": "org/rows", "type": kind | other}]}
        assert f"type: {next(iter(other))}: " in refused(tmp_path, content)


def test_settings_of_llama_factory_of_old_and_of_many_models(tmp_path):
    content = FACTORY | {"pref_beta": None, "pref_loss": None, "orpo_beta": 0.3, "stage": "orpo"}
    assert translated(tmp_path, content)[0].objective.odds_weight == 0.3
    content = FACTORY | {"pref_loss": "sigmoid", "ld_alpha": 0.4, "image_max_pixels": 262144}
    config, text = translated(tmp_path, content)
    assert (config.objective.kind, config.objective.alpha) == ("ldpo", 0.4) and "only text" in text
    assert "ld_alpha: 0.4: only with" in refused(tmp_path, FACTORY | {"pref_loss": "ipo", "ld_alpha": 0.4})


def test_settings_of_open_instruct(tmp_path):
    settings = {"max_grad_norm": 1.0, "add_bos": True, "exp_name": "first", "wandb_project": "mine"}
    config, text = translated(tmp_path, OPEN_INSTRUCT | settings)
    assert config.po.clip_norm == 1.0 and "add_bos: BOS is there if" in text
    log = config.logging
    assert (log.trackers, log.project, log.name) == (["wandb"], "mine", "first")
    quiet = OPEN_INSTRUCT | {"with_tracking": False, "report_to": ["wandb"]}
    settings = {"exp_name": "first", "run_name": "second", "wandb_project": "mine"}
    config, text = translated(tmp_path, quiet | settings)
    assert config.logging.trackers != ["wandb"] and config.logging.name == "second"
    for line in ("report_to: ['wandb']: belongs", "wandb_project: 'mine': belongs", "exp_name: 'first'"):
        assert line in text


def test_what_simpos_trainer_takes_by_default_is_written_out(tmp_path):
    """Its config is transformers' own, with lengths of 512 and 128. Kills: TRL's rate, 50 times smaller."""
    config, _ = translated(
        tmp_path, {"model_name_or_path": "a/b", "dataset_name": "c/d", "gamma_beta_ratio": 0.3}
    )
    assert (config.po.optimizer.learning_rate, config.compute.dtype) == (5e-5, "float32")
    assert (config.data.max_length, config.data.max_prompt_length) == (512, 128)
    given = {"gamma_beta_ratio": 0.3, "max_length": 2048, "max_prompt_length": 1800, "bf16": True}
    config, text = translated(tmp_path, HANDBOOK | given)
    assert (config.data.max_length, config.data.max_prompt_length) == (2048, 1800)
    assert "max_prompt_length: 1800: a longer prompt is always cut here" in text


def test_lengths_of_older_versions_are_said(tmp_path):
    lengths = {"max_length": None, "max_prompt_length": 512}
    content = {name: value for name, value in (TRL | lengths).items() if value is not None}
    config, text = translated(tmp_path, content)
    assert (config.data.max_length, config.data.max_prompt_length) == (1024, 512)
    assert "max_length: not in the file: TRL's default is 1024, and was 512" in text


def test_parts_of_open_instructs_mixtures(tmp_path):
    """Kills: one row of a data set whose share is 1, and the first split for all."""
    mixed = translated(tmp_path, OPEN_INSTRUCT | {"dataset_mixer": {"a/b": 1, "a/c": 0.5, "a/d": 300}})[0]
    assert [source.split for source in mixed.data.train] == ["train", "train[:50%]", "train[:300]"]
    content = OPEN_INSTRUCT | {"dataset_mixer": None, "dataset_mixer_list": ["a/b", "1.0", "a/c", "7"]}
    splits = {"dataset_mixer_list_splits": ["train", "test"]}
    config = translated(tmp_path, content | splits)[0]
    assert [source.split for source in config.data.train] == ["train", "test[:7]"]
    splits = {"dataset_mixer_list_splits": ["train", "test", "dev"]}
    assert "dataset_mixer_list_splits: " in refused(tmp_path, content | splits)
    for part in ("2.0", "all", "-1", "1}.0", "."):
        said = refused(tmp_path, content | {"dataset_mixer_list": ["a/b", part]})
        assert f"'a/b': expected a share of its rows up to 1.0, or their number, got '{part}'" in said
    assert "behind each name" in refused(tmp_path, content | {"dataset_mixer_list": ["a/b", "1.0", "a/c"]})


def test_trainer_of_simpo_can_be_named(tmp_path, capsys):
    path = write(tmp_path, {"model_name_or_path": "org/model", "dataset_name": "org/pairs", "beta": 2.5})
    assert main(["--from-trl", str(path), "--trainer", "simpo"]) == 0
    assert "gamma: 0.625" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (FACTORY | {"stage": "sft"}, "pref_beta"),
        (FACTORY | {"kto_chosen_weight": 2.0}, "kto_chosen_weight"),
        (AXOLOTL_SFT | {"rl_beta": 0.1}, "rl_beta"),
        (AXOLOTL | {"kto_desirable_weight": 0.2}, "kto_desirable_weight"),
    ],
)
def test_settings_of_another_method_are_put_aside(content, name, tmp_path):
    assert f"{name}: " in translated(tmp_path, content)[1].split("Without a meaning here")[1]


@pytest.mark.parametrize(
    "value", [[], {}, [1, "a"], True, -1, 0, float("nan"), float("inf"), "5e-7", "", 10**30]
)
@pytest.mark.parametrize(
    ("content", "names"),
    [
        (TRL, "optim lr_scheduler_type f_divergence_type loss_type logging_steps save_steps warmup_steps"),
        (
            TRL,
            "eval_strategy eval_steps test_split_size max_length model_init_kwargs early_stopping_patience",
        ),
        (FACTORY, "pref_loss stage finetuning_type dataset val_size quantization_bit sequence_parallel_size"),
        (AXOLOTL, "rl datasets adapter val_set_size tensor_parallel_size trl special_tokens"),
        (OPEN_INSTRUCT, "dpo_loss_type dataset_mixer max_train_samples tensor_parallel_degree"),
    ],
)
def test_any_value_is_translated_or_refused(content, names, value, tmp_path):
    """Kills: tracebacks of lists where a name is expected, and of numbers that are not finite."""
    for name in names.split():
        (tmp_path / "theirs.json").write_text(json.dumps(content | {name: value}))
        try:
            convert(str(tmp_path / "theirs.json"), None, None)
        except ConfigError as error:
            assert all("\n" not in line for line in error.lines)


# ---------------------------------------------------------------- commands and scripts

COMMAND = """#!/bin/bash
# the second try
LR=5e-6
export OUT="runs/second"
accelerate launch --num_processes 8 --config_file zero3.yaml scripts/train_dpo.py \\
    --model_name_or_path org/model --dataset_name=org/pairs \\
    --learning_rate ${LR} --beta 0.2 --output_dir $OUT \\
    --gradient_checkpointing --no_remove_unused_columns \\
    --use_peft --lora_target_modules q_proj v_proj --max_steps -1
echo done
"""
FOUR_ROWS = "--model_name_or_path a/b --dataset_name c/d --per_device_train_batch_size 4\n"
SCRIPT = """
MODEL = "org/model"
model = AutoModelForCausalLM.from_pretrained(MODEL, device_map="auto")
rows = load_dataset("org/pairs", split="train[:100]")
lora = LoraConfig(r=4, target_modules=["q_proj"], bias="none", task_type="CAUSAL_LM")
args = trl.DPOConfig(beta=0.2, learning_rate=5e-6, bf16=has_bf16(), num_train_epochs=given.n)
trainer = DPOTrainer(model=model, args=args, train_dataset=rows, peft_config=lora)
"""


def test_a_command_in_a_shell_script(tmp_path):
    """Of its launcher the number of processes counts; variables that the script sets are put in."""
    config, _ = from_text(tmp_path, "run.sh", COMMAND)
    assert config.objective.model_dump(include={"kind", "beta"}) == {"kind": "dpo", "beta": 0.2}
    assert (config.po.optimizer.learning_rate, config.output_dir) == (5e-6, "runs/second")
    assert config.po.batch_size == 64 and config.po.epochs == 3.0
    assert config.po.lora.targets == ["attention.query", "attention.value"]
    command = "trl kto --model_name_or_path a/b --project trl --dataset_name c/d\n"
    config, _ = from_text(tmp_path, "run.txt", command)
    assert config.objective.kind == "kto" and config.policy.path == "a/b"


@pytest.mark.parametrize(
    ("program", "devices"),
    [
        ("accelerate launch --num_machines 2 --num_processes=16 dpo.py", 16),
        ("accelerate launch --num_processes 8 -m trl.scripts.dpo", 8),
        ("accelerate launch --num_processes 8 python dpo.py", 8),
        ("torchrun --nproc-per-node=4 --nnodes 2 --master_port 1 dpo.py", 8),
        ("torchrun --nproc_per_node 8 trl dpo", 8),
        ("python -m torch.distributed.run --nproc_per_node 4 dpo.py", 4),
        ("deepspeed --num_gpus 2 dpo.py", 2),
        ("deepspeed --include localhost:0,1,2 dpo.py", 3),
        ("CUDA_VISIBLE_DEVICES=0 python dpo.py", 1),
        ("NNODES=4\ntorchrun --nproc_per_node 8 dpo.py", 8),
        ("NPROC_PER_NODE=8\npython dpo.py", 1),
    ],
)
def test_the_processes_of_a_launcher_are_the_devices(tmp_path, program, devices):
    """Four rows a device; --devices overrides it."""
    assert from_text(tmp_path, "run.sh", f"{program} {FOUR_ROWS}")[0].po.batch_size == 4 * devices
    for given in (1, 3):
        config, _ = from_text(tmp_path, "run.sh", f"{program} {FOUR_ROWS}", "--devices", str(given))
        assert config.po.batch_size == 4 * given


@pytest.mark.parametrize(
    ("launcher", "devices", "name"),
    [
        ("torchrun --nproc_per_node $GPUS", 1, "nproc_per_node: '$GPUS'"),
        ("torchrun --nproc_per_node gpu", 1, "nproc_per_node: 'gpu'"),
        ("torchrun --nproc_per_node 8 --nnodes 1:4", 8, "nnodes: '1:4'"),
        ("deepspeed --include worker-0@worker-1", 1, "include: 'worker-0@worker-1'"),
    ],
)
def test_a_number_of_processes_that_is_not_in_the_text_is_said(tmp_path, launcher, devices, name):
    config, _ = from_text(tmp_path, "run.sh", f"{launcher} dpo.py {FOUR_ROWS}")
    assert config.po.batch_size == 4 * devices
    said = f"{name}: counted as 1; say on how many devices it ran by --devices"
    assert said in (tmp_path / "ours.yaml").read_text()


def test_the_variables_of_llama_factorys_launcher_count(tmp_path):
    command = (
        "export NNODES=2\nNPROC_PER_NODE=4 FORCE_TORCHRUN=1 llamafactory-cli train --stage dpo "
        "--do_train true --model_name_or_path a/b --dataset c --template llama3 --finetuning_type full "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --output_dir out\n"
    )
    config, status = from_text(tmp_path, "run.sh", command)
    assert status == 0 and config.po.batch_size == 32


@pytest.mark.parametrize(
    "line",
    ["{} > log.txt 2>&1 &", "cd runs && {}; echo done", "{} 2>&1 | tee log.txt", "{} &> log || exit 1"],
)
def test_what_a_line_of_a_shell_does_beside_is_no_setting(tmp_path, line):
    """Kills: targets of adapters called >, log.txt and tee."""
    command = "trl dpo --model_name_or_path a/b --dataset_name c/d --use_peft --lora_target_modules q_proj"
    config, status = from_text(tmp_path, "run.sh", line.format(command))
    assert status == 0 and config.po.lora.targets == ["attention.query"]


def test_a_script_of_trl(tmp_path):
    """PEFT's own defaults count in it: dropout 0 and alpha 8, where TRL's command has 0.05 and 32."""
    config, _ = from_text(tmp_path, "train.py", SCRIPT)
    assert (config.policy.path, config.data.train[0].path) == ("org/model", "org/pairs")
    assert (config.data.train[0].split, config.objective.beta) == ("train[:100]", 0.2)
    lora = config.po.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (4, 8.0, 0.0, ["attention.query"])
    text = (tmp_path / "ours.yaml").read_text()
    assert "num_train_epochs: given.n in the script: its value is not known" in text
    assert "bf16: has_bf16() in the script" in text
    older = SCRIPT.replace("trl.DPOConfig", "TrainingArguments").replace("beta=0.2, ", "")
    older = older.replace("learning_rate=5e-6, ", "").replace("args=args", "args=args, beta=0.3")
    config, _ = from_text(tmp_path, "train.py", older)
    assert (config.po.optimizer.learning_rate, config.objective.beta) == (5e-5, 0.3)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.sh", "trl dpo --a 1 --b 2\ntrl dpo --a 1 --b 3\n", "several commands (dpo, dpo): leave one"),
        ("a.sh", "echo hello\n", "no command of TRL"),
        ("a.sh", "trl dpo --config x.yaml --beta 0.1\n", "its command reads x.yaml: give that file"),
        ("a.sh", "python dpo.py x.yaml --beta=0.1 --seed=2\n", "its command reads x.yaml: give that file"),
        ("a.py", SCRIPT + "SFTConfig(packing=True)", "it makes DPOConfig and SFTConfig: leave one"),
        ("a.py", "x = 1", "it makes none of DPOConfig"),
        ("a.py", "x = (", "no Python"),
        ("a.yaml", "", "the file is empty"),
        ("a.yaml", "- beta: 1", "expected a mapping of settings"),
    ],
)
def test_files_without_settings_are_one_line(name, text, said, tmp_path, capsys):
    assert from_text(tmp_path, name, text)[1] == 2
    first, line = capsys.readouterr().err.splitlines()
    assert first.endswith("it cannot be translated as it is") and said in line


def test_of_two_models_and_two_data_sets_of_a_script_the_first_counts(tmp_path):
    """Kills: training from the reference, and on the rows that are there to evaluate."""
    later = """
frozen = AutoModelForCausalLM.from_pretrained("org/other")
held_out = load_dataset("org/pairs", split="test")
"""
    config, _ = from_text(tmp_path, "train.py", SCRIPT + later)
    assert (config.policy.path, config.data.train[0].split) == ("org/model", "train[:100]")
    text = (tmp_path / "ours.yaml").read_text()
    assert "split test: nothing is evaluated on it" in text
    assert "from_pretrained('org/other') in the script: only the first" in text


@pytest.mark.parametrize(
    "script",
    [
        "rate = 1\nif fast:\n    rate = 2\nDPOConfig(beta=rate, loss_type='sigmoid')",
        "rate = 1\nrate *= 2\nDPOConfig(beta=rate, loss_type='sigmoid')",
        "rate = 1\nfor rate in (2, 3):\n    DPOConfig(beta=rate, loss_type='sigmoid')",
        "rate = 1\ndef make(rate):\n    return DPOConfig(beta=rate, loss_type='sigmoid')",
    ],
)
def test_what_a_name_of_a_script_stands_for_is_not_guessed(script, tmp_path):
    from_text(tmp_path, "a.py", script)
    assert "beta: rate in the script: its value is not known" in (tmp_path / "ours.yaml").read_text()


def test_a_script_that_reads_files(tmp_path):
    rows = 'load_dataset("json", data_files="pairs.jsonl", split="train")'
    config, _ = from_text(tmp_path, "a.py", f"DPOConfig(beta=0.1)\n{rows}")
    assert config.data.train[0].path == "pairs.jsonl"


def test_what_a_script_unpacks_is_said(tmp_path):
    from_text(tmp_path, "a.py", "DPOConfig(beta=0.1, **settings)")
    assert "DPOConfig: what its **arguments are is not known" in (tmp_path / "ours.yaml").read_text()


def test_files_from_windows(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"beta": 0.1,\r\n"loss_type": "sigmoid"}\r\n')
    assert main(["--from-trl", str(path)]) == 0 and "beta: 0.1" in capsys.readouterr().out
    path.write_text("beta: 0.1", encoding="utf-16")
    assert main(["--from-trl", str(path)]) == 2 and "save it as UTF-8" in capsys.readouterr().err


def test_settings_of_older_trl(tmp_path):
    older = {"rpo_alpha": 0.5, "reference_free": False, "loss_type": "aot_pair", "logging_steps": 0.05}
    config, text = translated(tmp_path, TRL | older)
    assert (config.objective.kind, config.objective.nll_weight) == ("aot_unpaired", 0.5)
    assert config.logging.every_steps == 1 and "logging_steps: 0.05: a share" in text
    assert "reference_free: true" in refused(tmp_path, TRL | {"reference_free": True})
    processes = {"num_processes": 4, "accelerate_config": "zero3"}
    assert translated(tmp_path, TRL | processes)[0].po.batch_size == 4 * 16


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"folder": "x"}, "folder: not translated"),
        (
            {"formatting": "sharegpt", "tags": {"user_tag": "question"}},
            "user_tag: 'question': expected human or user",
        ),
        ({"formatting": "own"}, "formatting: 'own': not translated"),
    ],
)
def test_what_an_entry_of_dataset_info_has_besides_is_refused(entry, said, tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"} | entry}))
    content = FACTORY | {"dataset": "mine", "dataset_dir": str(tmp_path)}
    assert f"dataset: mine: {'tags: ' if 'tags' in entry else ''}{said}" in refused(tmp_path, content)


def test_entries_of_dataset_info(tmp_path):
    entries = {
        "some": {"hf_hub_url": "org/some", "num_samples": 500, "ranking": True, "tags": None},
        "talks": {"file_name": "talks.json", "formatting": "openai", "columns": {"messages": "talk"}},
    }
    entries["talks"]["file_sha1"] = "0a1b"
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    content = FACTORY | {"dataset": "some,talks", "dataset_dir": str(tmp_path), "max_samples": None}
    first, second = translated(tmp_path, content)[0].data.train
    assert first.split == "train[:500]" and second.columns == {"messages": "talk"}
    first, second = translated(tmp_path, content | {"max_samples": 300})[0].data.train
    assert (first.split, second.split) == ("train[:300]", "train[:300]"), "not more than max_samples"
