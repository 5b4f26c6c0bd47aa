"""TRL's configs: the YAML of `trl dpo --config` (and sft, kto), or a trainer's config as JSON."""

import re
from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.handbook import translate_mixture
from sparsepo_jax.config.foreign.held_out import hold_out
from sparsepo_jax.config.foreign.outcome import translate_outcome
from sparsepo_jax.config.foreign.templates import translate_template
from sparsepo_jax.config.foreign.training import REVISION, translate_lora, translate_training
from sparsepo_jax.config.foreign.trl_losses import LOSSES, OBJECTIVES, SORTED
from sparsepo_jax.config.shown import shown

_DPO_ONLY = {
    "beta",
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "label_smoothing",
    "use_weighting",
    "discopop_tau",
    "precompute_ref_log_probs",
    "sync_ref_model",
}
_SFT_ONLY = {"packing", "completion_only_loss", "assistant_only_loss", "dataset_text_field", "eval_packing"}
TRAINERS = ("dpo", "sft", "kto", "cpo", "orpo", "simpo")
# Arguments of a model's from_pretrained, by the names of a config.
_OF_MODEL = {
    "torch_dtype": "dtype",
    "dtype": "dtype",
    "revision": "model_revision",
    **{name: name for name in ("attn_implementation", "trust_remote_code", "low_cpu_mem_usage")},
    **{name: name for name in ("load_in_4bit", "load_in_8bit")},
}
# Those that lie in TRL, and how many processes they are for.
ACCELERATE_CONFIGS = dict.fromkeys(("multi_gpu", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"), 8)
_WITH_BETA = {"kto", "cpo", "orpo", "simpo"}  # methods beside DPO whose trainers have a beta
_ASIDE = {
    "is_encoder_decoder": "only decoders are trained",
    "ignore_bias_buffers": "a debug setting",
    "use_flash_attention_2": "memory and speed only",
    "push_to_hub_revision": "set export.hub",
    "label_pad_token_id": "padding is inert",
    "use_num_logits_to_keep": "memory and speed only",
    "use_logits_to_keep": "memory and speed only",
    "force_use_ref_model": "see reference.path",
    "model_adapter_name": "one of PEFT's names; see policy.adapter",
    "ref_adapter_name": "one of PEFT's names; see reference.adapter",
    "sanity_check": "a debug setting",
    "use_liger_loss": "memory and speed only",
    "base_model_attribute_name": "memory and speed only",
    "max_target_length": "only decoders are trained",
    "env": "variables of the environment are those of the shell that the run is started from",
    **dict.fromkeys(
        ("accelerate_config", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
        "how processes find each other; see compute.distributed and compute.mesh",
    ),
    "padding_value": "padding is inert",
}


def find_trainer(content: dict[str, Any]) -> str | None:
    """The trainer whose settings these are; None: they would fit several."""
    if "gamma_beta_ratio" in content:
        return "simpo"
    if {"desirable_weight", "undesirable_weight"} & content.keys() or content.get("loss_type") == "kto":
        return "kto"
    if {"cpo_alpha", "simpo_gamma"} & content.keys() or content.get("loss_type") in ("simpo", "alphapo"):
        return "cpo"
    losses = content.get("loss_type")
    is_dpo = (losses[0] if isinstance(losses, list) and losses else losses) in (*LOSSES, *SORTED)
    if _SFT_ONLY & content.keys() and not is_dpo and "beta" not in content:
        return "sft"
    if is_dpo or (_DPO_ONLY - {"beta"}) & content.keys():
        return "dpo"
    # A beta alone may be that of another method, after which the run is called then.
    names = " ".join(str(content.get(name, "")) for name in ("output_dir", "hub_model_id", "run_name"))
    words = set(re.split(r"[^a-z]+", names.casefold()))
    return "dpo" if "beta" in content and ("dpo" in words or not _WITH_BETA & words) else None


def translate(fields: Fields, trainer: str, known: set[str]) -> None:
    """A config of one of TRL's trainers.

    Args:
        trainer: one of TRAINERS.
        known: kinds of our objectives.
    """
    section = "sft" if trainer == "sft" else "po"
    fields.set("output_dir", fields.take("output_dir", default=f"runs/{trainer}"))
    fields.only("model_revision", ("main",), REVISION)
    if (path := fields.take("model_name_or_path")) is None:
        fields.differs("model_name_or_path: not in the file (a trainer's config has none): set policy.path")
        path = "MODEL"
    fields.set("policy.path", path)
    _translate_model(fields)
    if fields.is_null("max_grad_norm"):
        fields.put_back("max_grad_norm", 0)
    defaults = {"learning_rate": 2e-5 if trainer == "sft" else 1e-6, "logging_steps": 10}
    if trainer == "simpo":  # whose config has the defaults of transformers
        translate_training(fields, section, {})
    elif "bf16" not in fields and "fp16" not in fields:
        fields.differs("bf16: TRL's default is true, and so it is written out")
        fields.set("compute.dtype", "bfloat16")
        translate_training(fields, section, defaults)
        fields.set("compute.dtype", "bfloat16")
    else:
        translate_training(fields, section, defaults)
    translate_outcome(fields, section)
    if (coefficient := fields.take("router_aux_loss_coef")) is not None:
        fields.set(f"{section}.router_aux_coefficient", coefficient)
    _translate_lora(fields, section)
    _translate_length(fields, trainer)
    _translate_data(fields, section)
    OBJECTIVES[trainer](fields, known)
    fields.only("disable_dropout", (True,), "models have no dropout here")
    fields.only("generate_during_eval", (False,), "see evaluation.sampled_prompts")
    fields.aside(_ASIDE)
    fields.set("stages", ["sft", "export"] if section == "sft" else _stages(fields))


def _stages(fields: Fields) -> list[str]:
    has_eval = {"eval", "holdout"} & fields.config["data"].keys()
    return ["po", "eval", "export"] if has_eval else ["po", "export"]


def _translate_lora(fields: Fields, section: str) -> None:
    bits = fields.quantised_bits()
    fields.only("bnb_4bit_quant_type", ("nf4",), "only nf4 can be held")
    fields.aside(
        {"use_bnb_nested_quant": "how scales are held", "bnb_4bit_quant_storage": "how they are held"}
    )
    settings = {
        "rank": fields.number("lora_r", default=16),
        "alpha": fields.number("lora_alpha", default=32.0),
        "dropout": fields.number("lora_dropout", default=0.05),
        "targets": "lora_target_modules",
    }
    is_rslora = fields.flag("use_rslora")
    for name in ("use_dora", "lora_target_parameters", "lora_modules_to_save"):
        fields.only(name, (False, []), "LoRA of projections alone can be trained")
    fields.only("init_lora_weights", (True,), "adapters begin as PEFT's do where nothing is said")
    fields.only("lora_task_type", ("CAUSAL_LM",), "only causal models are trained")
    if fields.flag("use_peft"):
        translate_lora(fields, section, in_bits=bits, **settings)
        if is_rslora:
            fields.set(f"{section}.lora.rslora", True)
        return
    fields.aside({"lora_target_modules": "belongs to use_peft, which is off"})
    if bits is not None:
        fields.refuse("load_in_4bit, load_in_8bit: only LoRA trains on quantised weights (use_peft)")


def _translate_model(fields: Fields) -> None:
    """model_init_kwargs: the arguments with which the model is loaded."""
    arguments = fields.take("model_init_kwargs", default={})
    if not isinstance(arguments, dict):
        fields.refuse(f"model_init_kwargs: expected a mapping, got {shown(arguments)}")
        return
    for name, value in arguments.items():
        if name in _OF_MODEL and value is not None:
            fields.put_back(_OF_MODEL[name], value, "model_init_kwargs")
        elif value is not None and name not in ("device_map", "use_cache", "token"):
            fields.refuse(f"model_init_kwargs: {name}: {shown(value)}: not translated")


def _translate_length(fields: Fields, trainer: str) -> None:
    if fields.is_null("max_length") and "max_seq_length" not in fields:
        fields.refuse("max_length: null: no row is cut there: write the length of the longest one")
    is_given = "max_length" in fields or "max_seq_length" in fields
    length = fields.number("max_length", "max_seq_length", default=512 if trainer == "simpo" else 1024)
    prompt = fields.take("max_prompt_length", default=128 if trainer == "simpo" else None)
    if prompt is None:
        fields.only("truncation_mode", ("keep_start",), "of a response the start is kept")
    else:  # in the versions that had max_prompt_length it was about prompts
        fields.only("truncation_mode", ("keep_end",), "of a prompt the end is kept")
        fields.differs(
            f"max_prompt_length: {prompt}: a longer prompt is always cut here; older TRL, and its CPO, ORPO, "
            "KTO and SimPO, cut it in rows over max_length alone"
        )
        if not is_given and trainer != "simpo":
            fields.differs(
                "max_length: not in the file: TRL's default is 1024, and was 512 before version 0.12"
            )
    if trainer == "dpo":
        fields.only("max_completion_length", (), "the longest response is max_length less the prompt")
    fields.aside({"max_completion_length": "only decoders are trained"})  # the other trainers' for encoders
    fields.set("data.max_length", length)
    fields.set("data.max_prompt_length", length - 1 if prompt is None else prompt)
    if prompt is None:
        fields.differs(
            f"max_length: {length}: TRL leaves out rows of longer prompts; here these keep their end"
        )


def _translate_data(fields: Fields, section: str) -> None:
    train = "sft" if section == "sft" else "train"
    mixture = fields.entries("datasets")
    name = fields.take("dataset_name")
    subset = fields.take("dataset_config")
    split = fields.take("dataset_train_split", default="train")
    test_split = fields.take("dataset_test_split", default="test")
    sources = [_source(fields, each) for each in mixture] or translate_mixture(fields, section)
    if not sources and name is not None:
        sources = [_without_none({"path": name, "subset": subset, "split": split})]
        if fields.evaluates and section == "po" and "test_split_size" not in fields:
            fields.set("data.eval", [_without_none({"path": name, "subset": subset, "split": test_split})])
    if not sources:
        fields.differs(
            "dataset_name: not in the file (a trainer's config has none): set the path of the data"
        )
        sources = [{"path": "DATA.jsonl"}]
    fields.set(f"data.{train}", sources)
    if (size := fields.take("test_split_size")) is not None:
        hold_out(fields, section, "test_split_size", size)
    translate_template(fields, fields.take("chat_template"), fields.take("chat_template_kwargs"))


def _source(fields: Fields, entry: dict[str, Any]) -> dict[str, Any]:
    known = {"path", "name", "split", "data_files", "columns", "data_dir"}
    if extra := [name for name in entry if name not in known and entry[name] is not None]:
        fields.refuse(f"datasets: {', '.join(extra)}: not translated; weight says how often rows are seen")
    path = entry.get("path")
    if path in ("json", "csv", "parquet") and isinstance(entry.get("data_files"), str):
        path = entry["data_files"]
    elif entry.get("data_files") or entry.get("data_dir"):
        fields.refuse(f"datasets: {shown(path)}: data_files and data_dir: name the files themselves as path")
    return _without_none({"path": path, "subset": entry.get("name"), "split": entry.get("split", "train")})


def _without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if value is not None}
