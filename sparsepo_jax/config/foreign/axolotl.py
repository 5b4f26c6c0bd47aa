"""Axolotl's configs: rl dpo, ipo, simpo, orpo and kto, and sft."""

from typing import Any

from sparsepo_jax.config.foreign.axolotl_rows import translate_source
from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.held_out import hold_out
from sparsepo_jax.config.foreign.outcome import translate_outcome
from sparsepo_jax.config.foreign.templates import translate_template
from sparsepo_jax.config.foreign.training import PACKED, REVISION, translate_lora, translate_training
from sparsepo_jax.config.foreign.trl_losses import LOSSES, ORPO
from sparsepo_jax.config.shown import shown

_RENAMED = {
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
}
_ASIDE = {
    **dict.fromkeys(
        ("flash_attention", "sdp_attention", "xformers_attention", "eager_attention"), "compute.attention"
    ),
    **dict.fromkeys(
        (
            "lora_mlp_kernel",
            "lora_qkv_kernel",
            "lora_o_kernel",
            "lora_on_cpu",
            "plugins",
            "cut_cross_entropy",
            "batch_flattening",
            "gc_steps",
            "max_memory",
            "gpu_memory_limit",
            "embeddings_skip_upcast",
            "dpo_use_logits_to_keep",
            "dpo_use_liger_kernel",
            "dpo_padding_free",
            "profiler_steps",
            "device",
            "device_map",
            "world_size",
            "ddp",
            "use_ray",
            "dp_shard_size",
            "dp_replicate_size",
            "heads_k_stride",
            "ring_attn_func",
            "fsdp_version",
            "fsdp_final_state_dict_type",
        ),
        "memory and speed only",
    ),
    **dict.fromkeys(
        ("wandb_entity", "wandb_watch", "wandb_log_model", "wandb_run_id", "wandb_mode", "use_comet"),
        "where metrics go is set in the section logging, and by the trackers' own environment variables",
    ),
    **dict.fromkeys(
        (
            "dataset_prepared_path",
            "dataset_processes",
            "dataset_keep_in_memory",
            "shuffle_merged_datasets",
            "skip_prepare_dataset",
            "pad_to_sequence_len",
            "strict",
            "is_llama_derived_model",
            "is_mistral_derived_model",
            "is_falcon_derived_model",
            "is_qwen_derived_model",
            "tokenizer_use_fast",
            "tokenizer_legacy",
            "hf_use_auth_token",
        ),
        "how rows are loaded, not which",
    ),
    **dict.fromkeys(
        (
            *("eval_table_size", "eval_max_new_tokens", "do_causal_lm_eval", "eval_causal_lm_metrics"),
            "eval_table_max_new_tokens",
            "dpo_generate_during_eval",
        ),
        "see evaluation.sampled_prompts",
    ),
    **dict.fromkeys(
        ("loss_watchdog_threshold", "loss_watchdog_patience"), "a run whose loss is not finite stops anyway"
    ),
    "auto_resume_from_checkpoints": "the same command continues a run",
    "max_prompt_len": "sequence_len is what its trainers of preferences cut by",
    "lora_fan_in_fan_out": "how weights lie in memory",
    "float32": "belongs to bf16, which is off",
    "float16": "see bf16",
    "model_type": "the family is read from the model's config.json",
    "tokenizer_type": "the tokenizer is read from its files",
    "evals_per_epoch": "evaluated at the end, by the stage eval; po.eval_every_steps is in steps",
    "saves_per_epoch": "checkpoints are kept by time; checkpoint.every_steps is in steps",
    "save_first_step": "see the section checkpoint",
    "remove_unused_columns": "other columns are ignored",
    "eval_batch_size": "evaluation.batch_size changes speed, not results",
    "debug": "a debug setting",
}
_OF_METHODS = ("rl_", "dpo_", "kto_", "orpo_", "simpo_", "cpo_", "rpo_")
_ASIDE_ALL = {
    "flash_attn_": "memory and speed only",
    "unsloth_": "memory and speed only",
    "liger_": "memory and speed only",
    "sample_packing_": "belongs to sample_packing, which is off",
    "mlflow_": "set by the tracker's own environment variables",
    "comet_": "where metrics go is set in the section logging",
    "gradio_": "not used in training",
    "ray_": "memory and speed only",
}
# A setting, the values with which nothing has to be done, and why others are refused.
_ONLY: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("sample_packing", (False,), PACKED),
    ("eval_sample_packing", (False,), "as sample_packing"),
    ("revision_of_model", ("main",), REVISION),
    ("s2_attention", (False,), "each token sees all before it here"),
    ("fp8", (False,), "products are of float32 or bfloat16"),
    ("train_on_inputs", (False,), "responses alone are trained on"),
    ("dataset_exact_deduplication", (False,), "rows are taken as they are: take equal ones out yourself"),
    ("lora_modules_to_save", ([],), "LoRA of projections alone can be trained"),
    ("lora_model_dir", (), "set policy.adapter to train an adapter further"),
    ("peft_use_dora", (False,), "LoRA alone can be trained"),
    ("peft_use_rslora", (False,), "set po.lora.rslora yourself"),
)


def translate(fields: Fields, trainer: str, known: set[str]) -> None:
    """A config of Axolotl.

    Args:
        trainer: not needed: `rl` says it.
        known: kinds of our objectives.
    """
    method = fields.text("rl", default="sft")
    section = "sft" if method == "sft" else "po"
    fields.set("output_dir", fields.take("output_dir", default="runs/axolotl"))
    fields.set("policy.path", fields.take("base_model", default="MODEL"))
    bits = fields.quantised_bits()
    adapter = fields.take("adapter")
    if adapter == "qlora" and bits is None:
        bits = 4
        fields.differs("adapter: qlora: the base is held in 4 bits, as load_in_4bit says there")
    lora = {
        "rank": fields.number("lora_r", default=8),
        "alpha": fields.number("lora_alpha", default=16.0),
        "dropout": fields.number("lora_dropout", default=0.0),
        "targets": "lora_target_modules",
    }
    if fields.flag("lora_target_linear"):
        fields.put_back("lora_target_modules", "all-linear")
    chat_template = fields.take("chat_template")
    _rename(fields)
    _translate_types(fields)
    _translate_warmup(fields)
    has_pairs_to_evaluate = fields.peek("val_set_size") or fields.peek("test_datasets")
    if "eval_steps" in fields and "eval_strategy" not in fields and has_pairs_to_evaluate:
        fields.put_back("eval_strategy", "steps")
    fields.share_devices("sequence_parallel_degree", "context_parallel_size", "tensor_parallel_size")
    translate_training(
        fields,
        section,
        {"num_train_epochs": 1.0, "per_device_train_batch_size": 1, "lr_scheduler_type": "cosine"},
    )
    _rename_trackers(fields)
    translate_outcome(fields, section)
    if adapter in ("lora", "qlora"):
        translate_lora(fields, section, in_bits=bits, **lora)
    elif adapter is not None:
        fields.take("lora_target_modules")
        fields.refuse(f"adapter: {shown(adapter)}: expected lora or qlora")
    elif bits is not None:
        fields.refuse("load_in_4bit, load_in_8bit: only adapters train on quantised weights")
    _translate_data(fields, section, chat_template, is_labelled=method == "kto")
    if section == "po":
        _translate_objective(fields, method, known)
    for row in _ONLY:
        fields.only(*row)
    _translate_special_tokens(fields)
    fields.aside(_ASIDE)
    own = "dpo_" if method == "ipo" else f"{method}_"
    others = [beginning for beginning in _OF_METHODS if beginning != own]
    fields.aside_all(_ASIDE_ALL | dict.fromkeys(others, "belongs to another rl"))
    has_eval = bool({"eval", "holdout"} & fields.config["data"].keys())
    fields.set("stages", ["sft", "export"] if section == "sft" else ["po", *(["eval"] * has_eval), "export"])


def _rename(fields: Fields) -> None:
    for theirs, name in _RENAMED.items():
        if theirs in fields:
            fields.put_back(name, fields.take(theirs), theirs)
    if "batch_size" in fields:  # of one device and all its micro-steps
        rows, micro_batch = fields.number("batch_size", default=1), fields.peek("per_device_train_batch_size")
        if "gradient_accumulation_steps" not in fields and isinstance(micro_batch, int) and micro_batch:
            fields.put_back("gradient_accumulation_steps", max(1, rows // micro_batch))
    if (share := fields.take("cosine_min_lr_ratio")) is not None:
        fields.put_back("lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio")
        fields.put_back("lr_scheduler_kwargs", {"min_lr_rate": share}, "cosine_min_lr_ratio")


def _translate_types(fields: Fields) -> None:
    """bf16 is `auto` where the file says nothing of types; bfloat16 and `full` have no float32 weights."""
    is_pure = fields.flag("bfloat16") or fields.peek("bf16") == "full"
    if is_pure:
        fields.take("bf16")
        fields.put_back("dtype", "bfloat16")
    elif not any(name in fields for name in ("bf16", "fp16", "float16", "float32")):
        fields.put_back("bf16", True)
        fields.differs("bf16: auto is Axolotl's default, and so it is written out")


def _translate_warmup(fields: Fields) -> None:
    """Where neither is set, a share of 0.03 and at most 100 steps; of both, warmup_steps counts."""
    if "warmup_steps" in fields:
        fields.aside({"warmup_ratio": "warmup_steps counts"})
    elif "warmup_ratio" not in fields:
        fields.put_back("warmup_ratio", 0.03)
        fields.differs("warmup_ratio: Axolotl's default is 0.03, at most 100 steps; here it may be more")


def _translate_special_tokens(fields: Fields) -> None:
    """Padding is inert, and other tokens are the tokenizer's own."""
    tokens = fields.take("special_tokens", default={})
    if not isinstance(tokens, dict):
        fields.refuse(f"special_tokens: expected a mapping, got {shown(tokens)}")
        return
    for name, token in tokens.items():
        if name == "pad_token":
            fields.notes.append(f"special_tokens: pad_token {shown(token)}: padding is inert")
        elif token is not None:
            fields.differs(
                f"special_tokens: {name} {shown(token)}: the tokenizer's own is taken here; if that is "
                "another one, change it in its files"
            )


def _rename_trackers(fields: Fields) -> None:
    """Axolotl logs to wandb where a project is named, and to others where they are switched on."""
    project, name = fields.take("wandb_project"), fields.take("wandb_name")
    used = [tracker for tracker in ("tensorboard", "mlflow", "trackio") if fields.flag(f"use_{tracker}")]
    if fields.flag("use_wandb", default=project is not None):
        used.append("wandb")
    if used:
        fields.put_back("report_to", used)
    for new, value in (("project", project), ("run_name", name)):
        if value is not None:
            fields.put_back(new, value)


def _translate_data(fields: Fields, section: str, chat_template: Any, is_labelled: bool) -> None:
    length = fields.number("sequence_len", default=512)
    fields.set("data.max_length", length)
    fields.set("data.max_prompt_length", length - 1)
    fields.differs(
        "sequence_len: longer rows may be dropped there; here a prompt keeps its end, a response its start"
    )
    name = "sft" if section == "sft" else "train"
    entries, tests = fields.entries("datasets"), fields.entries("test_datasets")
    fields.set(f"data.{name}", [translate_source(fields, entry, section, is_labelled) for entry in entries])
    if tests and section == "po":
        fields.set("data.eval", [translate_source(fields, entry, section, is_labelled) for entry in tests])
    elif tests:
        fields.differs("test_datasets: nothing is evaluated in sft here")
    hold_out(fields, section, "val_set_size", fields.number("val_set_size", default=0.0))
    template = fields.take("chat_template_jinja", default=chat_template)
    translate_template(fields, None if template == "tokenizer_default" else template)


def _translate_objective(fields: Fields, method: str, known: set[str]) -> None:
    losses = fields.texts("dpo_loss_type", default=["ipo" if method == "ipo" else "sigmoid"])
    weights = fields.take("dpo_loss_weights", default=[1.0])
    trainer = fields.take("trl", default={})
    if not isinstance(trainer, dict) or (extra := trainer.keys() - {"beta"}):
        fields.refuse(
            f"trl: {', '.join(extra) if isinstance(trainer, dict) else shown(trainer)}: not translated"
        )
    elif trainer:
        fields.put_back("rl_beta", trainer["beta"], "trl")
    beta = fields.number("rl_beta", "dpo_beta", "orpo_alpha" if method == "orpo" else "rl_beta", default=0.1)
    if fields.flag("precompute_ref_log_probs"):
        fields.set("reference.cached", True)
    smoothing = fields.number("dpo_label_smoothing", default=0.0)
    nll = fields.number("rpo_alpha", default=0.0)
    weighting = fields.flag("dpo_use_weighting")
    if weighting and method not in ("dpo", "ipo"):
        fields.refuse(f"dpo_use_weighting: with rl: {method} TRL weighs nothing: leave it out")
    if method in ("dpo", "ipo"):
        fields.only("dpo_norm_loss", (False,), "set objective.kind to dpo_norm, of means over tokens")
        if len(losses) != 1 or weights != [1.0] or losses[0] not in LOSSES:
            fields.refuse(f"dpo_loss_type: {shown(losses)}: expected one of {', '.join(LOSSES)}")
            return
        kind, read = LOSSES[losses[0]]
        values = {"beta": beta, "label_smoothing": smoothing, "temperature": 0.05}
        objective: dict[str, Any] = {"kind": kind, **{name: values[name] for name in read}}
        if weighting:
            objective["policy_weight"] = "aligned"
        if nll:
            objective["nll_weight"] = nll
            fields.differs(
                "rpo_alpha: averaged over each chosen response, then over pairs; TRL: over all tokens"
            )
    elif method == "simpo":
        objective = {"kind": "simpo", "beta": beta, "gamma": fields.number("simpo_gamma", default=0.5)}
        if alpha := fields.number("cpo_alpha", default=1.0):
            objective["nll_weight"] = alpha
            fields.differs(
                "cpo_alpha: averaged over each chosen response, then over pairs; TRL: over all tokens"
            )
    elif method == "orpo":
        objective = {"kind": "orpo", "odds_weight": beta}
        fields.differs(ORPO)
    elif method == "kto" and "kto" in known:
        weights_of = {
            name: fields.number(f"kto_{name}", default=1.0)
            for name in ("desirable_weight", "undesirable_weight")
        }
        objective = {"kind": "kto", "beta": beta, **weights_of}
    else:
        fields.refuse(f"rl: {shown(method)}: expected dpo, ipo, simpo, orpo or kto")
        return
    fields.set("objective", objective)
