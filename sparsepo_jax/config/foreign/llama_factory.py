"""LLaMA-Factory's configs: stage dpo (with pref_loss), kto and sft, and the rows of dataset_info.json."""

import json
from pathlib import Path
from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.held_out import hold_out
from sparsepo_jax.config.foreign.outcome import translate_outcome
from sparsepo_jax.config.foreign.training import PACKED, REVISION, translate_lora, translate_training
from sparsepo_jax.config.shown import shown

_LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo"}
_ASIDE = {
    **dict.fromkeys(
        ("cache_dir", "use_fast_tokenizer", "resize_vocab", "preprocessing_batch_size"), "how rows are loaded"
    ),
    **dict.fromkeys(
        ("predict_with_generate", "compute_accuracy", "ref_model_adapters"), "not used in training"
    ),
    "use_swanlab": "where metrics go is set in the section logging",
    "flash_attn": "compute.attention",
    "double_quantization": "how scales are held",
    "quantization_method": "see po.lora.base",
    "upcast_layernorm": "norms are computed in float32",
    "upcast_lmhead_output": "logits are computed in float32",
    "disable_gradient_checkpointing": "memory and speed only",
    "use_unsloth_gc": "memory and speed only",
    "use_v1_kernels": "memory and speed only",
    "print_param_status": "a debug setting",
    "media_dir": "only text is trained",
    "buffer_size": "belongs to streaming",
    "ignore_pad_token_for_loss": "padding is inert",
    "include_effective_tokens_per_second": "see the section logging",
    "pissa_iter": "belongs to pissa_init, which is off",
    "hf_hub_token": "the token comes from the environment (HF_TOKEN)",
}
_ASIDE_ALL = {
    **dict.fromkeys(("image_", "video_", "audio_"), "only text is trained"),
    "swanlab_": "where metrics go is set in the section logging",
    **dict.fromkeys(("infer_", "vllm_", "sglang_", "export_", "ppo_"), "not used in training"),
    **dict.fromkeys(("galore_", "apollo_", "badam_"), "belongs to a setting that is off"),
}
_METHODS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_llama_pro", "fp8")
_OF_ENTRIES = {
    *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "split", "subset"),
    *("num_samples", "formatting", "ranking", "columns", "tags"),
    "file_sha1",  # of older versions, which changes nothing
}
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call",),
}
_OLD_NAMES = {
    "dpo_beta": "pref_beta",
    "kto_beta": "pref_beta",
    "orpo_beta": "pref_beta",
    "dpo_loss": "pref_loss",
    "dpo_ftx": "pref_ftx",
}
# A setting, the values with which nothing has to be done, and why others are refused.
_ONLY: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("packing", (False,), PACKED),
    ("neat_packing", (False,), "as packing"),
    ("train_on_prompt", (False,), "responses alone are trained on"),
    ("use_dora", (False,), "LoRA alone can be trained"),
    ("pissa_init", (False,), "adapters begin at zero"),
    ("additional_target", (), "LoRA of projections alone can be trained"),
    ("freeze_vision_tower", (True,), "only the text model is trained"),
    ("mix_strategy", ("concat",), "set weight beside the path of each source"),
    ("loraplus_lr_ratio", (), "adapters have one learning rate"),
    ("rope_scaling", ("none",), "positions are those of the model's config.json"),
    ("shift_attn", (False,), "each token sees all before it here"),
    ("train_from_scratch", (False,), "set policy.config for a model that is not trained yet"),
    ("create_new_adapter", (False,), "merge the first one, and train another on it"),
    *((name, (False,), "there is nothing like it here") for name in _METHODS),
)


def translate(fields: Fields, trainer: str, known: set[str]) -> None:
    """A config of LLaMA-Factory.

    Args:
        trainer: not needed: `stage` says it.
        known: kinds of our objectives.
    """
    stage = fields.text("stage", default="sft")
    for theirs, name in _OLD_NAMES.items():
        if theirs in fields:
            fields.put_back(name, fields.take(theirs), theirs)
    if stage == "orpo":  # a stage of its own in the first versions
        stage = "dpo"
        fields.put_back("pref_loss", "orpo", "stage")
    if stage not in ("dpo", "kto", "sft"):
        fields.refuse(f"stage: {shown(stage)}: expected dpo, kto or sft")
    section = "sft" if stage == "sft" else "po"
    fields.set("output_dir", fields.take("output_dir", default=f"runs/{stage}"))
    fields.set("policy.path", fields.take("model_name_or_path", default="MODEL"))
    fields.only("model_revision", ("main",), REVISION)
    if (reference := fields.take("ref_model")) is not None:
        fields.set("reference.path", reference)
    if (adapter := fields.take("adapter_name_or_path")) is not None:
        fields.set("policy.adapter", adapter)
    kind = fields.text("finetuning_type", default="lora")
    is_pure = fields.flag("pure_bf16")
    fields.share_devices("sequence_parallel_size")
    translate_training(fields, section, {"logging_steps": 500})
    translate_outcome(fields, section)
    if is_pure:
        fields.set("compute.weights", "bfloat16")
        fields.set("compute.dtype", "bfloat16")
    _translate_adapters(fields, section, kind)
    if (coefficient := fields.take("moe_aux_loss_coef")) is not None:
        fields.set(f"{section}.router_aux_coefficient", coefficient)
    _translate_data(fields, section)
    masks_history = fields.flag("mask_history")
    if section == "sft":
        fields.set("data.train_on", "last" if masks_history else "assistant")
    else:
        _translate_objective(fields, stage, known)
    for row in _ONLY:
        fields.only(*row)
    fields.aside(_ASIDE)
    other = "belongs to another stage or pref_loss"
    fields.aside_all(dict.fromkeys(("pref_", "dpo_", "kto_", "simpo_", "ld_alpha"), other))
    fields.aside_all(_ASIDE_ALL | ({"oft_": "belongs to finetuning_type oft"} if kind == "oft" else {}))
    has_eval = bool({"eval", "holdout"} & fields.config["data"].keys())
    fields.set("stages", ["sft", "export"] if section == "sft" else ["po", *(["eval"] * has_eval), "export"])


def _translate_adapters(fields: Fields, section: str, kind: str) -> None:
    rank = fields.number("lora_rank", default=8)
    lora = {
        "rank": rank,
        "alpha": fields.number("lora_alpha", default=2.0 * rank),
        "dropout": fields.number("lora_dropout", default=0.0),
        "targets": "lora_target",
        "default": "all",
    }
    bits = fields.take("quantization_bit")
    if kind not in ("full", "lora"):
        fields.refuse(f"finetuning_type: {shown(kind)}: expected full or lora")
    if kind != "lora":
        fields.aside({"lora_target": "belongs to finetuning_type lora"})
        return
    if bits not in (None, 4, 8):
        fields.refuse(f"quantization_bit: {bits}: expected 4 or 8")
        bits = None
    translate_lora(fields, section, in_bits=bits, **lora)
    if fields.flag("use_rslora"):
        fields.set(f"{section}.lora.rslora", True)


def _translate_data(fields: Fields, section: str) -> None:
    length = fields.number("cutoff_len", default=2048)
    fields.set("data.max_length", length)
    fields.set("data.max_prompt_length", length - 1)
    fields.differs(
        "cutoff_len: LLaMA-Factory cuts prompt and response in proportion; here a prompt keeps its end first"
    )
    if (template := fields.take("template")) is not None:
        fields.differs(f"template: {template}: the tokenizer's own chat template writes messages here")
    if fields.flag("enable_thinking", default=True) is False:
        fields.set("data.template_arguments", {"enable_thinking": False})
    directory = Path(str(fields.take("dataset_dir", default="data")))
    most = fields.number("max_samples", default=0) or None
    named = {name: fields.texts(name, default=[]) for name in ("dataset", "eval_dataset")}
    info = _read_info(fields, directory)
    if section == "sft" and named["eval_dataset"]:
        fields.differs("eval_dataset: nothing is evaluated in sft here")
        named["eval_dataset"] = []
    for theirs, ours in (("dataset", "sft" if section == "sft" else "train"), ("eval_dataset", "eval")):
        if named[theirs]:
            fields.set(
                f"data.{ours}", [_source(fields, directory, info, name, most) for name in named[theirs]]
            )
    hold_out(fields, section, "val_size", fields.number("val_size", default=0.0))


def _read_info(fields: Fields, directory: Path) -> dict[str, Any]:
    """dataset_info.json, {} where it is not there; it is looked for from where the command is run."""
    path = directory / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
        return info if isinstance(info, dict) else {}
    except FileNotFoundError:
        fields.differs(
            f"dataset: {path} is not here, so that names of data sets stand for themselves: put the paths in"
        )
    except ValueError as error:
        fields.refuse(f"{path}: no JSON ({error})")
    return {}


def _source(
    fields: Fields, directory: Path, info: dict[str, Any], name: str, most: int | None
) -> dict[str, Any]:
    """A source of ours. most: rows of it, by max_samples; None: all."""
    entry = {key: value for key, value in (info.get(name) or {}).items() if value is not None}
    columns = dict(entry.get("columns", {}))
    if "hf_hub_url" in entry:
        source = {"path": entry["hf_hub_url"]}
    elif "file_name" in entry:
        source = {"path": str(directory / entry["file_name"])}
    else:
        source = {"path": name}
        if name in info:
            fields.refuse(f"dataset: {name}: only hf_hub_url and file_name are read")
    if entry.get("subset"):
        source["subset"] = entry["subset"]
    if (rows := entry.get("num_samples")) is not None:
        most = rows if most is None else min(most, rows)
        fields.differs(f"dataset: {name}: num_samples: the first {most} rows here, drawn at random there")
    source["split"] = entry.get("split", "train") + ("" if most is None else f"[:{most}]")
    _check_entry(fields, name, entry)
    form = entry.get("formatting", "alpaca")
    role = entry.get("tags", {}).get("role_tag", "role" if form == "openai" else "from")
    ours = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "kto_tag": "label",
        "messages": "conversations" if role == "from" else "prompt" if entry.get("ranking") else "messages",
    }
    renamed = {}
    for theirs, column in columns.items():
        if theirs in ("images", "videos", "audios"):
            fields.refuse(f"dataset: {name}: {theirs}: rows of this kind are not read here")
        elif ours.get(theirs, theirs) != column:
            renamed[ours.get(theirs, theirs)] = column
    return source | ({"columns": renamed} if renamed else {})


def _check_entry(fields: Fields, name: str, entry: dict[str, Any]) -> None:
    """Refuses what an entry of dataset_info.json has beside what _source reads."""
    if extra := entry.keys() - _OF_ENTRIES:
        fields.refuse(f"dataset: {name}: {', '.join(sorted(extra))}: not translated")
    if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt", "openai"):
        fields.refuse(f"dataset: {name}: formatting: {shown(entry['formatting'])}: not translated")
    for tag, value in entry.get("tags", {}).items():
        if value not in _TAGS.get(tag, ()):
            expected = " or ".join(_TAGS.get(tag, ("none",)))
            fields.refuse(f"dataset: {name}: tags: {tag}: {shown(value)}: expected {expected}")


def _translate_objective(fields: Fields, stage: str, known: set[str]) -> None:
    beta, loss = fields.number("pref_beta", default=0.1), fields.text("pref_loss", default="sigmoid")
    nll, smoothing = fields.number("pref_ftx", default=0.0), fields.number("dpo_label_smoothing", default=0.0)
    gamma = fields.number("simpo_gamma", default=0.5)
    bco, verbose = fields.number("pref_bco_weight", default=0.0), fields.take("ld_alpha")
    if stage == "kto":
        weights = {
            "desirable_weight": fields.number("kto_chosen_weight", default=1.0),
            "undesirable_weight": fields.number("kto_rejected_weight", default=1.0),
        }
        if "kto" not in known:
            fields.refuse("stage: kto: unpaired rows cannot be trained on here; make pairs of them")
        objective: dict[str, Any] = {"kind": "kto", "beta": beta, **weights}
    elif loss == "simpo":
        objective = {"kind": "simpo", "beta": beta, "gamma": gamma}
    elif loss == "orpo":
        objective = {"kind": "orpo", "odds_weight": beta}
    elif loss in _LOSSES:
        objective = {"kind": _LOSSES[loss], "beta": beta}
        if verbose not in (None, 1) and loss == "sigmoid":
            objective |= {"kind": "ldpo", "alpha": verbose}
        elif verbose not in (None, 1):
            fields.refuse(f"ld_alpha: {shown(verbose)}: only with pref_loss sigmoid")
        if smoothing and loss == "sigmoid":
            objective |= {"kind": "cdpo", "label_smoothing": smoothing}
        elif smoothing:
            fields.refuse(f"dpo_label_smoothing: {smoothing:g}: only with pref_loss sigmoid")
    else:
        fields.refuse(f"pref_loss: {shown(loss)}: expected sigmoid, hinge, ipo, orpo or simpo")
        return
    if bco:
        objective = _with_bco(fields, objective, beta, bco)
    if nll:
        objective["nll_weight"] = nll
    fields.set("objective", objective)


def _with_bco(fields: Fields, objective: dict[str, Any], beta: float, weight: float) -> dict[str, Any]:
    """LLaMA-Factory's mean of a loss that has a reference and BCO's, the latter counted `weight` times."""
    if objective["kind"] in ("kto", "orpo", "simpo"):
        fields.notes.append(
            f"pref_bco_weight: {weight:g}: {objective['kind']} does not read it, there neither"
        )
        return objective
    if objective["kind"] == "ipo":
        fields.refuse(
            f"pref_bco_weight: {weight:g}: with pref_loss ipo BCO is of means over tokens there, not here"
        )
    parts = (1 / (1 + weight), objective), (weight / (1 + weight), {"kind": "bco_pair", "beta": beta})
    return {"kind": "mix", "parts": [{"weight": share, "objective": part} for share, part in parts]}
