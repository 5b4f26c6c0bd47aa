"""The settings of transformers' TrainingArguments and PEFT's LoraConfig, which the other programs share.

What a file leaves out is written out as the other program has it: our own defaults differ.
"""

from collections.abc import Mapping
from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.shown import shown

REVISION = (
    "download that revision (hf download ID --revision REVISION --local-dir DIR), and name the directory in "
    "place of the Hub id"
)
PACKED = (
    "a batch is counted in rows here, and rows are packed without one row seeing another: take it out, and "
    "set the batch size to the rows of a pack"
)
_MEMORY = "memory and speed only; here the section compute chooses it by device"
_DATA = "how rows are loaded, not which"
_STATED = "the stages say what is done"
_PROCESSES = "how processes find each other; see compute.distributed and compute.mesh"
ASIDE = {
    **dict.fromkeys(
        (
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "use_reentrant_gc",
            "activation_checkpointing",
            "activation_checkpointing_kwargs",
            "activation_offloading",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "use_liger_kernel",
            "liger_kernel_config",
            "use_cache",
            "torch_empty_cache_steps",
            "attn_implementation",
            "tf32",
            "bf16_full_eval",
            "fp16_full_eval",
            "padding_free",
            "pad_to_multiple_of",
            "eval_accumulation_steps",
            "low_cpu_mem_usage",
            "use_unsloth",
            "enable_liger_kernel",
            "flash_attn",
        ),
        _MEMORY,
    ),
    **dict.fromkeys(
        (
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "preprocessing_num_workers",
            "dataset_num_proc",
            "remove_unused_columns",
            "overwrite_cache",
            "dataset_streaming",
            "streaming",
            "tokenized_path",
            "data_seed",
            "precompute_ref_batch_size",
            "restore_callback_states_from_checkpoint",
            "ignore_data_skip",
        ),
        _DATA,
    ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "task_type"), _STATED),
    **dict.fromkeys(
        (
            "accelerator_config",
            "parallelism_config",
            "ddp_timeout",
            "ddp_backend",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "local_rank",
            "average_tokens_across_devices",
            "use_cpu",
            "timeout",
            "trust_remote_code",
        ),
        _PROCESSES,
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config"), "how weights are spread over devices; see compute.mesh"
    ),
    "overwrite_output_dir": "the same command continues a run; another one needs another output_dir",
    "trust_remote_code": "no code that lies beside a model or data set is run",
    "save_only_model": "a checkpoint holds all that continuing needs",
    "save_strategy": "see the section checkpoint",
    "save_safetensors": "exports are safetensors",
    "save_on_each_node": "see the section checkpoint",
    "per_device_eval_batch_size": "evaluation.batch_size changes speed, not results",
    **dict.fromkeys(
        (
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "batch_eval_metrics",
            "label_names",
            "debug",
            "skip_memory_metrics",
        ),
        "how metrics are gathered",
    ),
    **dict.fromkeys(
        (
            "dataloader_in_order",
            "dataloader_multiprocessing_context",
            "length_column_name",
            "enable_jit_checkpoint",
        ),
        "how rows and checkpoints are handled",
    ),
    **dict.fromkeys(("ddp_broadcast_buffers", "ddp_static_graph"), _PROCESSES),
    "pad_token": "padding is inert",
    "full_determinism": "a run is exact to the bit without it",
    "resume_from_checkpoint": "the same command continues a run",
}
_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_bnb_8bit": "adamw",
    "adamw_8bit": "adamw",
    "paged_adamw_8bit": "adamw",
    "paged_adamw_32bit": "adamw",
    "adamw_torch_8bit": "adamw",
    "lion_32bit": "lion",
    "lion_8bit": "lion",
    "rmsprop": "rmsprop",
}
PROJECTIONS = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "attention.out",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}


def translate_training(fields: Fields, section: str, defaults: Mapping[str, Any]) -> None:
    """Optimizer, schedule, steps, batch, number types and checkpoints of the section `sft` or `po`.

    Args:
        section: whose training it is.
        defaults: of the other program, where they are not those of TrainingArguments.
    """
    known: dict[str, Any] = {
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "warmup_ratio": 0.0,
        "seed": 42,
        "logging_steps": 500,
    } | dict(defaults)
    fields.set("seed", fields.number("seed", default=known["seed"]))
    _translate_optimizer(fields, section, known)
    _translate_schedule(fields, section, known)
    norm = fields.number("max_grad_norm", default=known["max_grad_norm"])
    fields.set(f"{section}.clip_norm", norm if norm > 0 else None)
    accumulation = fields.number("gradient_accumulation_steps", default=1)
    rows = fields.number("per_device_train_batch_size", default=known["per_device_train_batch_size"])
    fields.set(f"{section}.batch_size", rows * accumulation * fields.devices)
    fields.set(f"{section}.accumulation", accumulation)
    steps = fields.number("max_steps", default=-1)
    epochs = fields.number("num_train_epochs", default=known["num_train_epochs"])
    fields.set(*((f"{section}.steps", steps) if steps > 0 else (f"{section}.epochs", float(epochs))))
    _translate_numbers(fields)
    _translate_saving(fields, section, known)
    for name, value in (
        ("label_smoothing_factor", 0.0),
        ("neftune_noise_alpha", 0.0),
        ("auto_find_batch_size", False),
        ("sync_ref_model", False),
        ("dataloader_drop_last", False),
        ("group_by_length", False),
    ):
        fields.only(name, (value,), f"there is nothing like it here (only {shown(value)} is translated)")
    fields.only("train_sampling_strategy", ("random", "sequential"), "rows are shuffled in each epoch")
    fields.aside(ASIDE)
    for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
        fields.aside({name: "belongs to a setting that is off"})


def _translate_optimizer(fields: Fields, section: str, known: Mapping[str, Any]) -> None:
    name = fields.text("optim", default=known["optim"])
    kind = _OPTIMIZERS.get(name)
    if kind is None:
        fields.refuse(f"optim: {shown(name)}: expected one of {', '.join(_OPTIMIZERS)}")
        kind = "adamw"
    if "8bit" in name:
        fields.differs(f"optim: {name}: its moments are held in 8 bits there and in float32 here")
    optimizer = {
        "kind": kind,
        "learning_rate": fields.number("learning_rate", default=known["learning_rate"]),
        "weight_decay": fields.number("weight_decay", default=0.0),
    }
    rates = {
        "b1": fields.number("adam_beta1", default=0.9),
        "b2": fields.number("adam_beta2", default=0.999),
    }
    eps = fields.number("adam_epsilon", default=1e-8)
    if kind != "rmsprop":
        optimizer |= rates
    if kind == "adamw":
        optimizer["eps"] = eps
    fields.set(f"{section}.optimizer", optimizer)
    fields.only("optim_args", ("",), "arguments of the optimizer are not translated")
    fields.only("optim_target_modules", ((),), "only LoRA and all weights can be trained")


def _translate_schedule(fields: Fields, section: str, known: Mapping[str, Any]) -> None:
    name = fields.text("lr_scheduler_type", default=known["lr_scheduler_type"])
    arguments = fields.take("lr_scheduler_kwargs", default={})
    warmup_steps = fields.number("warmup_steps", default=0.0)
    share = fields.number("warmup_ratio", default=known["warmup_ratio"])
    schedule: dict[str, Any] = {"kind": name}
    if name == "cosine_with_restarts" and not arguments:
        schedule["kind"] = "cosine"  # one cycle, without a restart
    elif name == "cosine_with_min_lr" and (end := _least_rate(fields, section, arguments)) is not None:
        schedule |= {"kind": "cosine", "end": end}
        arguments = {}
    elif name in ("constant", "constant_with_warmup"):
        schedule["kind"] = "constant"
    elif name not in ("linear", "cosine"):
        fields.refuse(f"lr_scheduler_type: {shown(name)}: expected linear, cosine or constant")
        schedule["kind"] = "linear"
    if arguments:
        fields.refuse(f"lr_scheduler_kwargs: {shown(arguments)}: they are not translated")
    if name == "constant":
        schedule["warmup_steps"] = 0  # transformers' has none, whatever is asked for
    elif warmup_steps >= 1:
        schedule["warmup_steps"] = int(warmup_steps)
    else:
        schedule["warmup_share"] = float(warmup_steps or share)
    fields.set(f"{section}.schedule", schedule)


def _least_rate(fields: Fields, section: str, arguments: Any) -> float | None:
    """Where cosine_with_min_lr ends, as a share of the rate; None: that is not said."""
    match arguments:
        case {"min_lr_rate": int() | float() as share, **rest} if not rest:
            return float(share)
        case {"min_lr": int() | float() as least, **rest} if not rest:
            rate = fields.config[section]["optimizer"]["learning_rate"]
            return float(f"{least / rate:.6g}") if rate else None
    return None


def _translate_numbers(fields: Fields) -> None:
    dtype = str(fields.take("dtype", "torch_dtype", default="float32")).removeprefix("torch.")
    in_bfloat16 = fields.flag("bf16", default=False)
    if fields.flag("fp16"):
        fields.differs("fp16: bfloat16 is computed with in its place, without a scale of the loss")
        in_bfloat16 = True
    if dtype in ("float16", "half"):
        fields.differs(f"dtype: {dtype}: weights are held in float32 here")
        in_bfloat16 = True
    elif dtype in ("bfloat16", "auto"):
        in_bfloat16 = True
        if dtype == "auto":
            fields.differs("dtype: auto: weights are held in float32 here, whatever the checkpoint's type is")
    if dtype == "bfloat16":
        fields.set("compute.weights", "bfloat16")
    fields.set("compute.dtype", "bfloat16" if in_bfloat16 else "float32")


def _translate_saving(fields: Fields, section: str, known: Mapping[str, Any]) -> None:
    every = fields.number("logging_steps", default=known["logging_steps"])
    if 0 < every < 1:
        fields.notes.append(f"logging_steps: {every}: a share of the steps; every step is logged")
    fields.set("logging.every_steps", max(1, int(every)))
    every = fields.number("save_steps", default=500)
    if every >= 1:
        fields.set("checkpoint.every_steps", int(every))
    else:
        fields.notes.append(f"save_steps: {every}: a share of the steps; checkpoints are kept by time")
    if (keep := fields.take("save_total_limit")) is not None:
        fields.set("checkpoint.keep", keep)
    strategy = fields.take("eval_strategy", "evaluation_strategy", default="no") or "no"
    eval_steps = fields.number("eval_steps", default=known["logging_steps"])
    if strategy == "steps" and section == "po" and 0 < eval_steps < 1:
        fields.refuse(f"eval_steps: {eval_steps}: a share of the run's steps; write a number of steps")
    elif strategy == "steps" and section == "po":
        fields.set("po.eval_every_steps", eval_steps)
    elif strategy != "no" and section == "sft":
        fields.notes.append(f"eval_strategy: {strategy}: nothing is evaluated in sft")
    elif strategy != "no":
        fields.notes.append(f"eval_strategy: {strategy}: evaluated at the end, by the stage eval")
    fields.evaluates = strategy != "no"
    fields.aside({"eval_on_start": "the stage eval measures before and after", "eval_delay": "as above"})


def translate_lora(
    fields: Fields,
    section: str,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
    in_bits: int | None,
    default: str | None = None,
) -> None:
    """A LoRA of PEFT as ours.

    Args:
        targets: the setting that names the projections, as a list, "all-linear" or "all".
        default: what it is where it is not set; None: left to PEFT, which is refused.
        in_bits: in how many bits the base is held, if it is quantised.
    """
    names = fields.texts(targets, default=[] if default is None else [default])
    lora: dict[str, Any] = {"rank": rank, "alpha": float(alpha), "dropout": dropout}
    if not names:
        fields.refuse(
            f"{targets}: which projections PEFT would choose depends on the model: name them (all-linear, or "
            f"a list of {', '.join(PROJECTIONS)})"
        )
    elif names in (["all-linear"], ["all"]):
        lora["targets"] = ["."]
    elif unknown := [name for name in names if name not in PROJECTIONS]:
        fields.refuse(f"{targets}: {', '.join(unknown)}: expected {', '.join(PROJECTIONS)}, or all-linear")
    else:
        lora["targets"] = [PROJECTIONS[name] for name in names]
    in_bfloat16 = fields.config.get("compute", {}).pop("weights", None) == "bfloat16"
    if in_bits is not None:
        lora["base"] = {4: "nf4", 8: "int8"}[in_bits]
    elif in_bfloat16:
        lora["base"] = "bfloat16"
    fields.set(f"{section}.lora", lora)
