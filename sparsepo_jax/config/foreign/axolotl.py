"""Axolotl's configs: rl dpo, ipo, simpo, orpo and kto, and sft."""

from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.held_out import hold_out
from sparsepo_jax.config.foreign.outcome import translate_outcome
from sparsepo_jax.config.foreign.training import PACKED, REVISION, translate_lora, translate_training
from sparsepo_jax.config.foreign.trl import LOSSES
from sparsepo_jax.config.shown import shown

# A type without its template -> our column's name: its column. What `instruction` holds becomes messages.
TYPES: dict[str, dict[str, str]] = {
    "intel": {"instruction": "question"},
    "icr": {"instruction": "input"},
    "prompt_pairs": {"instruction": "prompt"},
    "argilla": {"instruction": "prompt"},
    "argilla_chat": {},
    "ultra": {},
}
# The same for rows of one response with a label.
LABELLED_TYPES: dict[str, dict[str, str]] = {
    "intel": {"instruction": "question"},
    "prompt_pairs": {"instruction": "prompt"},
    "argilla": {},
    "argilla_chat": {"messages": "completion"},
    "ultra": {"instruction": "prompt"},
}
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
            "sequence_parallel_degree",
            "context_parallel_size",
            "tensor_parallel_size",
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
    method = fields.take("rl", default="sft")
    section = "sft" if method == "sft" else "po"
    fields.set("output_dir", fields.take("output_dir", default="runs/axolotl"))
    fields.set("policy.path", fields.take("base_model", default="MODEL"))
    bits = fields.quantised_bits()
    adapter = fields.take("adapter")
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
    fields.set(f"data.{name}", [_source(fields, entry, section, is_labelled) for entry in entries])
    if tests and section == "po":
        fields.set("data.eval", [_source(fields, entry, section, is_labelled) for entry in tests])
    elif tests:
        fields.differs("test_datasets: nothing is evaluated in sft here")
    hold_out(fields, section, "val_set_size", fields.number("val_set_size", default=0.0))
    template = fields.take("chat_template_jinja", default=chat_template)
    if template not in (None, "tokenizer_default"):
        fields.differs(
            f"chat_template: {shown(template)}: the tokenizer's own chat template writes messages here"
        )


def _source(fields: Fields, entry: dict[str, Any], section: str, is_labelled: bool) -> dict[str, Any]:
    left = {name: value for name, value in entry.items() if value is not None}
    source: dict[str, Any] = {"path": left.pop("path", None), "split": left.pop("split", "train")}
    if (subset := left.pop("name", None)) is not None:
        source["subset"] = subset
    files = left.pop("data_files", None)
    if left.pop("ds_type", None) and isinstance(files, str | list):
        files = [files] if isinstance(files, str) else files
        if len(files) != 1:
            fields.refuse("datasets: data_files: name each file in an entry of its own")
        source["path"] = files[0]
    elif files is not None:
        fields.refuse("datasets: data_files: name the file itself as path")
    _translate_turns(fields, left, section)
    columns = _columns(fields, left, section, is_labelled)
    if columns:
        source["columns"] = columns
    for name, value in left.items():
        fields.refuse(f"datasets: {name}: {shown(value)}: not translated")
    return source


def _translate_turns(fields: Fields, left: dict[str, Any], section: str) -> None:
    """Which turns of messages are trained on: in sft all of the assistant's, with what ends them."""
    roles, ending = left.pop("roles_to_train", ["assistant"]), left.pop("train_on_eos", "turn")
    if not isinstance(roles, list) or not set(roles) <= {"assistant", "gpt"} or not roles:
        fields.refuse(f"datasets: roles_to_train: {shown(roles)}: the assistant's turns alone are trained on")
    if ending != "turn":
        fields.refuse(f"datasets: train_on_eos: {shown(ending)}: each turn is trained on with its end (turn)")
    kind = left.get("type", "chat_template")
    if section == "sft" and isinstance(kind, str) and kind.startswith(("chat_template", "sharegpt")):
        fields.set("data.train_on", "assistant")


def _columns(fields: Fields, left: dict[str, Any], section: str, is_labelled: bool) -> dict[str, str]:
    """Our column names for those of an entry of datasets; takes from `left` what it has dealt with."""
    kind = left.pop("type", "chat_template")
    names = {name: left.pop(f"field_{name}", None) for name in ("messages", "chosen", "rejected")}
    mapping = left.pop("message_property_mappings", {})
    roles = left.pop("roles", {})
    keys = left.pop("message_field_role", None), left.pop("message_field_content", None)
    mapping = mapping or dict(zip(("role", "content"), keys, strict=True))
    pair = mapping.get("role") or "role", mapping.get("content") or "content"
    if pair not in (("role", "content"), ("from", "value")):
        fields.refuse(
            f"datasets: messages of {pair[0]} and {pair[1]}: expected role and content, or from and value"
        )
    for role, aliases in roles.items():
        known = {"user": {"user", "human"}, "assistant": {"assistant", "gpt", "model"}, "system": {"system"}}
        if not set(aliases) <= known.get(role, {role}):
            fields.refuse(f"datasets: roles: {', '.join(aliases)} for {role}: rename them in the file")
    if isinstance(kind, dict):
        return _own_columns(fields, kind)
    template, _, form = kind.partition(".")
    if kind in (
        "chat_template.default",
        "chat_template",
        "chat_template.argilla_chat",
        "chat_template.argilla",
    ):
        ours = "messages" if section == "sft" else "prompt"
        theirs = {
            ours: names["messages"] or "messages",
            "chosen": names["chosen"],
            "rejected": names["rejected"],
        }
        if form.startswith("argilla"):
            theirs[ours] = None
        return {name: value for name, value in theirs.items() if value not in (None, name)}
    if is_labelled and template in ("chatml", "llama3") and form in LABELLED_TYPES:
        fields.differs(f"datasets: type {kind}: the tokenizer's own chat template writes messages here")
        return LABELLED_TYPES[form]
    if kind == "orpo.chat_template":
        return {}
    if template in ("chatml", "llama3", "zephyr", "mistral") and form in TYPES:
        fields.differs(f"datasets: type {kind}: the tokenizer's own chat template writes messages here")
        return TYPES[form]
    if kind in ("alpaca", "passthrough", "sharegpt"):
        return {}
    fields.refuse(
        f"datasets: type: {shown(kind)}: expected chat_template.default or one of chatml, llama3 with "
        f"{', '.join(TYPES)}"
    )
    return {}


def _own_columns(fields: Fields, kind: dict[str, Any]) -> dict[str, str]:
    formats = {name: kind.get(f"{name}_format") for name in ("prompt", "chosen", "rejected")}
    for name, form in formats.items():
        if form not in (None, f"{{{name}}}"):
            fields.refuse(f"datasets: type: {name}_format {shown(form)}: write the texts into the file")
    fields_of = {name: kind.get(f"field_{name}", name) for name in formats}
    return {name: theirs for name, theirs in fields_of.items() if theirs != name}


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
    if fields.flag("dpo_use_weighting"):
        fields.refuse(
            "dpo_use_weighting: set objective.policy_weight, which does not align the weights as TRL does"
        )
    if method in ("dpo", "ipo"):
        fields.only("dpo_norm_loss", (False,), "set objective.kind to dpo_norm, of means over tokens")
        if len(losses) != 1 or weights != [1.0] or losses[0] not in LOSSES:
            fields.refuse(f"dpo_loss_type: {shown(losses)}: expected one of {', '.join(LOSSES)}")
            return
        kind, read = LOSSES[losses[0]]
        values = {"beta": beta, "label_smoothing": smoothing, "temperature": 0.05}
        objective: dict[str, Any] = {"kind": kind, **{name: values[name] for name in read}}
        if nll:
            objective["nll_weight"] = nll
    elif method == "simpo":
        objective = {"kind": "simpo", "beta": beta, "gamma": fields.number("simpo_gamma", default=0.5)}
        if alpha := fields.number("cpo_alpha", default=1.0):
            objective["nll_weight"] = alpha
    elif method == "orpo":
        objective = {"kind": "orpo", "odds_weight": beta}
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
