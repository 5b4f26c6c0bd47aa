"""What other programs and papers call our settings and their values, for messages about mistakes."""

from collections.abc import Iterable
from typing import Any

# Key of TRL, Transformers, Axolotl or LLaMA-Factory -> ours. Settings of po exist for sft, too.
SETTINGS = {
    "model_name_or_path": "policy.path",
    "model_name": "policy.path",
    "model_path": "policy.path",
    "model": "policy.path",
    "base_model": "policy.path",
    "ref_model": "reference.path",
    "ref_model_name_or_path": "reference.path",
    "reference_model": "reference.path",
    "precompute_ref_log_probs": "reference.cached",
    "tokenizer_name_or_path": "tokenizer.path",
    "tokenizer_name": "tokenizer.path",
    "dataset_name": "data.train.0.path",
    "dataset_path": "data.train.0.path",
    "train_file": "data.train.0.path",
    "dataset": "data.train.0.path",
    "datasets": "data.train",
    "dataset_mixer": "data.train",
    "dataset_config": "data.train.0.subset",
    "dataset_config_name": "data.train.0.subset",
    "dataset_train_split": "data.train.0.split",
    "dataset_test_split": "data.eval.0.split",
    "test_datasets": "data.eval",
    "val_set_size": "data.holdout.share",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "chat_template": "data.template",
    "chat_template_kwargs": "data.template_arguments",
    "learning_rate": "po.optimizer.learning_rate",
    "lr": "po.optimizer.learning_rate",
    "weight_decay": "po.optimizer.weight_decay",
    "adam_beta1": "po.optimizer.b1",
    "adam_beta2": "po.optimizer.b2",
    "adam_epsilon": "po.optimizer.eps",
    "optim": "po.optimizer.kind",
    "optimizer": "po.optimizer.kind",
    "max_grad_norm": "po.clip_norm",
    "lr_scheduler_type": "po.schedule.kind",
    "lr_scheduler": "po.schedule.kind",
    "warmup_ratio": "po.schedule.warmup_share",
    "warmup_steps": "po.schedule.warmup_steps",
    "warmup_share": "po.schedule.warmup_share",
    "per_device_train_batch_size": "po.batch_size",
    "micro_batch_size": "po.batch_size",
    "train_batch_size": "po.batch_size",
    "batch_size": "po.batch_size",
    "gradient_accumulation_steps": "po.accumulation",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_batch_size": "evaluation.batch_size",
    "num_train_epochs": "po.epochs",
    "num_epochs": "po.epochs",
    "epochs": "po.epochs",
    "max_steps": "po.steps",
    "steps": "po.steps",
    "bf16": "compute.dtype",
    "fp16": "compute.dtype",
    "torch_dtype": "compute.dtype",
    "dtype": "compute.dtype",
    "gradient_checkpointing": "compute.remat",
    "attn_implementation": "compute.attention",
    "flash_attention": "compute.attention",
    "loss_type": "objective.kind",
    "rl": "objective.kind",
    "pref_loss": "objective.kind",
    "beta": "objective.beta",
    "pref_beta": "objective.beta",
    "rl_beta": "objective.beta",
    "label_smoothing": "objective.label_smoothing",
    "simpo_gamma": "objective.gamma",
    "cpo_alpha": "objective.alpha",
    "ld_alpha": "objective.alpha",
    "rpo_alpha": "objective.nll_weight",
    "use_weighting": "objective.policy_weight",
    "f_divergence_type": "objective.kind",
    "f_alpha_divergence_coef": "objective.alpha",
    "discopop_tau": "objective.temperature",
    "peft_config": "po.lora",
    "use_peft": "po.lora",
    "lora": "po.lora",
    "r": "po.lora.rank",
    "lora_r": "po.lora.rank",
    "lora_rank": "po.lora.rank",
    "lora_alpha": "po.lora.alpha",
    "lora_dropout": "po.lora.dropout",
    "lora_target_modules": "po.lora.targets",
    "target_modules": "po.lora.targets",
    "lora_target": "po.lora.targets",
    "use_rslora": "po.lora.rslora",
    "load_in_8bit": "po.lora.base",
    "load_in_4bit": "po.lora.base",
    "eval_steps": "po.eval_every_steps",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep",
    "metric_for_best_model": "checkpoint.best.metric",
    "load_best_model_at_end": "checkpoint.best",
    "logging_steps": "logging.every_steps",
    "wandb_project": "logging.wandb.project",
    "run_name": "logging.wandb.name",
    "max_new_tokens": "generation.max_new_tokens",
}
NOTES = {"po.batch_size": " (of all devices and micro-steps together)"}

# Value -> ours, where we have it.
VALUES = {
    "sigmoid": ("dpo",),
    "sigmoidnorm": ("dpo_norm",),
    "exopair": ("exo",),
    "ncapair": ("nca",),
    "sppohard": ("sppo",),
    "aotpair": ("aot",),
    "mpo": ("mix",),
    "adam": ("adamw",),
    "adamwtorch": ("adamw",),
    "adamwtorchfused": ("adamw",),
    "adamw8bit": ("adamw",),
    "adamwbnb8bit": ("adamw",),
    "pagedadamw8bit": ("adamw",),
    "pagedadamw32bit": ("adamw",),
    "lion8bit": ("lion",),
    "cosinewithrestarts": ("cosine",),
    "cosinewithminlr": ("cosine",),
    "constantwithwarmup": ("constant",),
    "bf16": ("bfloat16",),
    "fp16": ("bfloat16",),
    "float16": ("bfloat16",),
    "half": ("bfloat16",),
    "fp32": ("float32",),
    "float": ("float32",),
    "int4": ("nf4",),
    "4bit": ("nf4",),
    "8bit": ("int8",),
    "flashattention2": ("cudnn",),
    "flash": ("cudnn",),
    "sdpa": ("xla",),
    "eager": ("xla",),
    "byte": ("bytes",),
    "huggingface": ("pretrained",),
    "rm": ("hf",),
    "rewardmodel": ("hf",),
    "reward": ("hf",),
    "train": ("po",),
    "dpo": ("po",),
    "evaluate": ("eval",),
    "evaluation": ("eval",),
    "generation": ("generate",),
    "jsonl": ("file",),
    "json": ("file",),
    "parquet": ("file",),
}

# Keys at a config's root by which other programs' configs are recognised. Of equal counts the first wins.
_MARKS = {
    "LLaMA-Factory": {
        "finetuning_type",
        "pref_beta",
        "pref_loss",
        "cutoff_len",
        "dataset_dir",
        "lora_target",
        "preprocessing_num_workers",
        "stage",
    },
    "Axolotl": {
        "base_model",
        "micro_batch_size",
        "sequence_len",
        "num_epochs",
        "rl",
        "val_set_size",
        "dataset_prepared_path",
        "sample_packing",
        "lora_r",
        "special_tokens",
        "datasets",
    },
    "TRL": {
        "model_name_or_path",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "lr_scheduler_type",
        "dataset_name",
        "loss_type",
        "max_prompt_length",
        "bf16",
        "save_steps",
        "logging_steps",
        "eval_steps",
        "warmup_ratio",
        "use_peft",
        "torch_dtype",
        "dataset_mixer",
        "attn_implementation",
        "gradient_checkpointing",
        "report_to",
        "learning_rate",
        "max_steps",
        "push_to_hub",
        "dataset_train_split",
    },
}
_LEAST_MARKS = 3  # keys of another program, in a config without `stages`


def plain(name: str) -> str:
    """'Sim-PO' and 'sim_po' -> 'simpo'."""
    return "".join(c for c in name.casefold() if c not in "-_ .")


def same_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is meant; None: there is none.

    It may be written in other letters (DPO, batch-size) or be another program's word (sigmoid).
    """
    by_plain = {plain(known): known for known in names}
    for candidate in (plain(name), *VALUES.get(plain(name), ())):
        if candidate in by_plain:
            return by_plain[candidate]
    return None


def other_program(content: dict[str, Any]) -> str | None:
    """The program whose config this is; None if it may be ours."""
    if "stages" in content:
        return None
    counts = {program: len(keys & content.keys()) for program, keys in _MARKS.items()}
    program = max(counts, key=counts.__getitem__)
    return program if counts[program] >= _LEAST_MARKS else None
