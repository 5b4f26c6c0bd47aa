"""The configs of open-instruct's dpo_tune_cache."""

import re
from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.outcome import translate_trackers
from sparsepo_jax.config.foreign.training import PACKED, REVISION, translate_lora, translate_training
from sparsepo_jax.config.shown import shown

_ASIDE = {
    **dict.fromkeys(
        (
            "add_seed_and_date_to_exp_name",
            "do_not_randomize_output_dir",
            "wandb_entity",
            "try_launch_beaker_eval_jobs",
            "hf_entity",
            "hf_repo_id",
            "hf_repo_revision",
            "hf_repo_url",
            "hf_metadata_dataset",
            "save_to_hub",
            "push_to_hub",
            "try_auto_save_to_beaker",
            "gs_bucket_path",
        ),
        "names of runs and uploads",
    ),
    **dict.fromkeys(
        (
            "concatenated_forward",
            "use_flash_attn",
            "fused_optimizer",
            "it",
            "cache_dataset_only",
            "zero_stage",
            "zero_hpz_partition_size",
            "offload_optimizer",
            "offload_param",
            "sync_each_batch",
            "attn_backend",
            "compile_model",
            "activation_memory_budget",
            "dpo_use_paged_optimizer",
            "shard_degree",
            "num_replicas",
            "profiling",
            "reference_logprobs_cache_path",
            "use_flash_attn_2",
        ),
        "memory and speed only",
    ),
    **dict.fromkeys(
        (
            "dataset_mix_dir",
            "dataset_cache_mode",
            "dataset_local_cache_dir",
            "dataset_skip_cache",
            "use_slow_tokenizer",
            "tokenizer_revision",
            "cache_mode",
            "local_cache_dir",
            "skip_cache",
            "config_hash",
        ),
        "how rows are loaded",
    ),
    "load_balancing_weight": "belongs to load_balancing_loss",
    "reduce_loss": "read by its fine-tuning alone",
}
_ASIDE_ALL = {"oe_eval_": "evaluations after the run", "eval_": "evaluations after the run"}
_PREFERENCES = {"beta", "loss_type", "label_smoothing", "gamma_beta_ratio", "load_balancing_loss"}


def translate(fields: Fields, trainer: str, known: set[str]) -> None:
    """A config of dpo_tune_cache.

    Args:
        trainer: "" where nobody has said which of its programs the file is for.
        known: kinds of our objectives.
    """
    is_dpo = any(fields.peek(f"dpo_{name}") is not None or name in fields for name in _PREFERENCES)
    if trainer not in ("", "dpo"):
        fields.refuse(f"--trainer {trainer}: of open-instruct's programs that for DPO alone is translated")
    elif not is_dpo and not trainer:
        fields.refuse("a config that fits fine-tuning as well as DPO: add --trainer dpo if it is for DPO")
    fields.set("output_dir", fields.take("output_dir", default="output/"))
    fields.set("policy.path", path := fields.take("model_name_or_path", default="MODEL"))
    if (tokenizer := fields.take("tokenizer_name", "tokenizer_name_or_path")) not in (None, path):
        fields.set("tokenizer", {"kind": "pretrained", "path": tokenizer})
    fields.only("model_revision", ("main",), REVISION)
    lora = {
        "rank": fields.number("lora_rank", default=64),
        "alpha": fields.number("lora_alpha", default=16.0),
        "dropout": fields.number("lora_dropout", default=0.1),
        "targets": "lora_target_modules",
        "default": "all-linear",
    }
    for theirs, ours in (("num_epochs", "num_train_epochs"), ("max_train_steps", "max_steps")):
        if theirs in fields:
            fields.put_back(ours, fields.take(theirs), theirs)
    clip = fields.number("clip_grad_norm", "max_grad_norm", default=-1.0)
    fields.put_back("max_grad_norm", max(float(clip), 0.0))
    if (checkpoints := fields.take("checkpointing_steps")) not in (None, "epoch"):
        fields.put_back("save_steps", checkpoints, "checkpointing_steps")
    if (keep := fields.number("keep_last_n_checkpoints", default=3)) > 0:
        fields.put_back("save_total_limit", keep)
    if fields.flag("use_8bit_optimizer"):
        fields.put_back("optim", "adamw_bnb_8bit")
    fields.put_back("bf16", True)
    fields.differs(
        "bf16: dpo_tune_cache is started with accelerate's --mixed_precision bf16, and so it is written out"
    )
    fields.share_devices(*(f"{kind}_parallel_degree" for kind in ("tensor", "context", "pipeline")))
    translate_training(
        fields,
        "po",
        {"learning_rate": 2e-5, "num_train_epochs": 2.0, "warmup_ratio": 0.03, "logging_steps": 1},
    )
    is_quantised = fields.flag("use_qlora")
    if fields.flag("use_lora") or is_quantised:
        translate_lora(fields, "po", in_bits=4 if is_quantised else None, **lora)
    if fields.flag("load_balancing_loss"):
        fields.set("po.router_aux_coefficient", fields.number("load_balancing_weight", default=0.001))
    _translate_tracking(fields)
    _translate_data(fields)
    _translate_objective(fields, known)
    if fields.flag("add_bos"):
        fields.differs("add_bos: BOS is there if the tokenizer's own chat template writes it")
    fields.only("packing", (False,), PACKED)
    fields.only("additional_model_arguments", ({},), "the model's own config.json is read")
    fields.only("config_name", (), "the model's own config.json is read")
    fields.aside(_ASIDE)
    fields.aside_all(_ASIDE_ALL)
    fields.set("stages", ["po", "export"])


def _translate_tracking(fields: Fields) -> None:
    """The run's name, and where it is logged: nowhere without with_tracking, Weights & Biases with it."""
    if "run_name" not in fields and "exp_name" in fields:
        fields.put_back("run_name", fields.take("exp_name"), "exp_name")
    fields.aside({"exp_name": "run_name counts"})
    if not fields.flag("with_tracking"):
        off = "belongs to with_tracking, which is off"
        fields.aside({"report_to": off, "wandb_project": off})
    elif fields.peek("report_to") in (None, "all"):
        fields.put_back("report_to", "wandb")
    if (project := fields.take("wandb_project")) is not None:
        fields.put_back("project", project, "wandb_project")
    translate_trackers(fields)


def _translate_data(fields: Fields) -> None:
    length = fields.number("max_seq_length", default=2048)
    fields.set("data.max_length", length)
    fields.set("data.max_prompt_length", length - 1)
    fields.differs(
        "max_seq_length: the end of prompt and response is cut there; here a longer prompt keeps its end"
    )
    template = fields.take("chat_template_name", default="tulu")
    fields.differs(f"chat_template_name: {template}: the tokenizer's own chat template writes messages here")
    parts = _parts(fields)
    subset = fields.take("dataset_config_name")
    most = fields.take("max_train_samples")
    if most is not None and len(parts) > 1:
        fields.refuse(
            f"max_train_samples: {most}: of a mixture: write how many rows of each into the mixture"
        )
    elif most is not None:
        parts = [(path, str(most)) for path, _ in parts]
    splits = fields.texts("dataset_mixer_list_splits", "mixer_list_splits", default=["train"])
    if len(splits) not in (1, len(parts)):
        fields.refuse(
            f"dataset_mixer_list_splits: {shown(splits)}: expected one, or one for each of {len(parts)} parts"
        )
    splits = splits if len(splits) == len(parts) else splits[:1] * len(parts)
    sources = [
        {"path": path, "split": _split(fields, path, split, share)}
        for (path, share), split in zip(parts, splits, strict=True)
    ]
    if subset is not None:
        sources = [source | {"subset": subset} for source in sources]
    if not sources:
        fields.refuse("dataset_mixer_list: no data set in the file")
    fields.set("data.train", sources)


def _parts(fields: Fields) -> list[tuple[Any, str]]:
    """The data sets, each with how much of it: "0.5" is its first half, "100" its first hundred rows."""
    mixed = fields.take("dataset_mixer", default={})
    if not isinstance(mixed, dict):
        fields.refuse(f"dataset_mixer: expected names with their shares, got {shown(mixed)}")
        mixed = {}
    # In a mapping numbers up to 1 are shares, in a list those with a point.
    parts = [(path, "1.0" if share == 1 else str(share)) for path, share in mixed.items()]
    listed = fields.texts("dataset_mixer_list", "mixer_list", default=[])
    if len(listed) % 2:
        fields.refuse(f"dataset_mixer_list: {shown(listed)}: expected a share or number behind each name")
    parts += zip(listed[::2], listed[1::2], strict=False)
    for name in ("dataset_name", "train_file"):
        if (path := fields.take(name)) is not None:
            parts.append((path, "1.0"))
    return parts


def _split(fields: Fields, path: Any, split: str, share: str) -> str:
    if re.fullmatch(r"\d+", share):
        return f"{split}[:{share}]"
    if re.fullmatch(r"\d*\.\d*", share) and share != "." and 0 < float(share) <= 1:
        return split if float(share) == 1 else f"{split}[:{100 * float(share):g}%]"
    fields.refuse(
        f"dataset_mixer_list: {shown(path)}: expected a share of its rows up to 1.0, or their number, "
        f"got {shown(share)}"
    )
    return split


def _translate_objective(fields: Fields, known: set[str]) -> None:
    loss = fields.text("dpo_loss_type", "loss_type", default="dpo")
    beta = fields.number("dpo_beta", "beta", default=0.1)
    ratio = fields.number("dpo_gamma_beta_ratio", "gamma_beta_ratio", default=0.3)
    smoothing = fields.number("dpo_label_smoothing", "label_smoothing", default=0.0)
    objective: dict[str, Any] = {"kind": loss, "beta": beta}
    if loss == "simpo":
        objective["gamma"] = round(ratio * beta, 12)
    elif loss == "wpo":
        objective = {"kind": "dpo", "beta": beta, "policy_weight": True}
        fields.differs("dpo_loss_type: wpo: both answers' probabilities count here, as in the paper")
    elif loss not in ("dpo", "dpo_norm"):
        fields.refuse(f"dpo_loss_type: {shown(loss)}: expected dpo, dpo_norm, simpo or wpo")
        return
    if smoothing and loss == "dpo":
        objective |= {"kind": "cdpo", "label_smoothing": smoothing}
    elif smoothing:
        fields.refuse(f"dpo_label_smoothing: {smoothing:g}: only with dpo_loss_type dpo")
    fields.set("objective", objective)
