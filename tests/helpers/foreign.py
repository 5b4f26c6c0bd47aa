"""Configs of other programs, and ours that they become."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sparsepo_jax.config.foreign.convert import convert
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.main import main

# What published configs of each program look like.
TRL = {
    "model_name_or_path": "org/model",
    "dataset_name": "org/pairs",
    "dataset_train_split": "train_prefs",
    "dataset_test_split": "test_prefs",
    "output_dir": "runs/dpo",
    "loss_type": "sigmoid",
    "beta": 0.05,
    "learning_rate": "5.0e-7",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "max_length": 1536,
    "bf16": True,
    "gradient_checkpointing": True,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "logging_steps": 25,
    "use_peft": True,
    "lora_target_modules": ["q_proj", "down_proj"],
    "report_to": ["wandb"],
}
AXOLOTL = {
    "base_model": "org/model",
    "tokenizer_type": "AutoTokenizer",
    "load_in_8bit": True,
    "load_in_4bit": False,
    "chat_template": "llama3",
    "rl": "dpo",
    "datasets": [
        {
            "path": "org/messages",
            "type": "chat_template.default",
            "field_messages": "conversation",
            "field_chosen": "better",
            "field_rejected": "rejected",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles": {"system": ["system"], "user": ["user"], "assistant": ["assistant"]},
        }
    ],
    "dataset_prepared_path": None,
    "val_set_size": 0.05,
    "output_dir": "./outputs/lora-out",
    "sequence_len": 4096,
    "sample_packing": False,
    "pad_to_sequence_len": True,
    "adapter": "lora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "wandb_project": None,
    "gradient_accumulation_steps": 4,
    "micro_batch_size": 2,
    "num_epochs": 4,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": 0.0002,
    "bf16": "auto",
    "tf32": False,
    "flash_attention": True,
    "warmup_steps": 10,
    "evals_per_epoch": 4,
}
FACTORY = {
    "model_name_or_path": "org/model",
    "stage": "dpo",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "pref_beta": 0.1,
    "pref_loss": "simpo",
    "simpo_gamma": 0.3,
    "dataset": "dpo_en_demo",
    "template": "llama3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "overwrite_cache": True,
    "output_dir": "saves/dpo",
    "plot_loss": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 5.0e-6,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
}
OPEN_INSTRUCT = {
    "model_name_or_path": "org/model",
    "tokenizer_name": "org/model",
    "use_flash_attn": True,
    "use_slow_tokenizer": True,
    "gradient_checkpointing": True,
    "dataset_mixer": {"org/one": 1.0, "org/two": 0.5},
    "max_seq_length": 2048,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "learning_rate": 5.0e-7,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "num_epochs": 1,
    "output_dir": "output",
    "with_tracking": True,
    "logging_steps": 1,
    "dpo_loss_type": "dpo_norm",
    "dpo_beta": 5,
    "checkpointing_steps": 1000,
}
HANDBOOK = {name: value for name, value in TRL.items() if not name.startswith(("dataset_", "use_", "lora_"))}
PUBLISHED = {"TRL": TRL, "Axolotl": AXOLOTL, "LLaMA-Factory": FACTORY, "open-instruct": OPEN_INSTRUCT}


def write(directory: Path, content: dict) -> Path:
    path = directory / "theirs.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return path


def translated(directory: Path, content: dict, trainer=None, devices=None) -> tuple[Config, str]:
    """Our config, loaded from what is printed, and the printed text."""
    text = convert(str(write(directory, content)), trainer, devices)
    (directory / "ours.yaml").write_text(text)
    return load_config(directory / "ours.yaml")[0], text


def refused(directory: Path, content: dict, trainer=None) -> str:
    with pytest.raises(ConfigError) as caught:
        convert(str(write(directory, content)), trainer, None)
    return "\n".join(caught.value.lines)


def from_text(directory, name: str, text: str, *options: str):
    """The config that a file becomes, or None, and the exit status."""
    path, ours = directory / name, directory / "ours.yaml"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch, ours.open("w") as file:
        patch.setattr("sys.stdout", file)
        status = main(["--from-trl", str(path), *options])
    return (load_config(ours)[0] if status == 0 else None), status
