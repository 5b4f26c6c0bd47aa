"""TRL's configs: the YAML of `trl dpo --config` (and sft, kto), or a trainer's config as JSON."""

import re
from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.handbook import translate_mixture
from sparsepo_jax.config.foreign.held_out import hold_out
from sparsepo_jax.config.foreign.outcome import translate_outcome
from sparsepo_jax.config.foreign.training import PACKED, REVISION, translate_lora, translate_training
from sparsepo_jax.config.shown import shown

# TRL's loss_type -> our objective and the settings that it reads.
LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("dpo", ("beta",)),
    "sigmoid_norm": ("dpo_norm", ("beta",)),
    "hinge": ("hinge", ("beta",)),
    "ipo": ("ipo", ("beta",)),
    "exo_pair": ("exo", ("beta", "label_smoothing")),
    "nca_pair": ("nca", ("beta",)),
    "robust": ("robust", ("beta", "label_smoothing")),
    "bco_pair": ("bco_pair", ("beta",)),
    "sppo_hard": ("sppo", ("beta",)),
    "apo_zero": ("apo_zero", ("beta",)),
    "apo_down": ("apo_down", ("beta",)),
    "discopop": ("discopop", ("beta", "temperature")),
}
# Those that a batch is sorted for, by our name.
SORTED = {"aot": "aot", "aot_unpaired": "aot_unpaired"}
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
    "sanity_check": "a debug setting",
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
    if {"cpo_alpha", "simpo_gamma"} & content.keys() or content.get("loss_type") == "simpo":
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
    defaults = {"learning_rate": 2e-5 if trainer == "sft" else 1e-6, "logging_steps": 10}
    if "bf16" not in fields and "fp16" not in fields:
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
    _translate_length(fields)
    _translate_data(fields, section)
    _OBJECTIVES[trainer](fields, known)
    fields.only("disable_dropout", (True,), "models have no dropout here")
    fields.only("model_init_kwargs", ({},), "settings of the model's class are not translated")
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
    fields.only("lora_task_type", ("CAUSAL_LM",), "only causal models are trained")
    if fields.flag("use_peft"):
        translate_lora(fields, section, in_bits=bits, **settings)
        if is_rslora:
            fields.set(f"{section}.lora.rslora", True)
        return
    fields.aside({"lora_target_modules": "belongs to use_peft, which is off"})
    if bits is not None:
        fields.refuse("load_in_4bit, load_in_8bit: only LoRA trains on quantised weights (use_peft)")


def _translate_length(fields: Fields) -> None:
    length = fields.number("max_length", "max_seq_length", default=1024)
    prompt = fields.take("max_prompt_length")
    if prompt is None:
        fields.only("truncation_mode", ("keep_start",), "of a response the start is kept")
    else:  # in the versions that had max_prompt_length it was about prompts
        fields.only("truncation_mode", ("keep_end",), "of a prompt the end is kept")
    fields.only("max_completion_length", (), "the longest response is max_length less the prompt")
    fields.set("data.max_length", length)
    fields.set("data.max_prompt_length", length - 1 if prompt is None else prompt)
    if prompt is None:
        fields.differs(
            f"max_length: {length}: of a longer prompt TRL keeps the start and no response, here its end"
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
        if fields.evaluates and section == "po":
            fields.set("data.eval", [_without_none({"path": name, "subset": subset, "split": test_split})])
    if not sources:
        fields.differs(
            "dataset_name: not in the file (a trainer's config has none): set the path of the data"
        )
        sources = [{"path": "DATA.jsonl"}]
    fields.set(f"data.{train}", sources)
    if (size := fields.take("test_split_size")) is not None:
        hold_out(fields, section, "test_split_size", size)
    if (template := fields.take("chat_template")) is not None:
        fields.differs(
            f"chat_template: {shown(template)}: the tokenizer's own chat template writes messages here: put "
            "this one into its directory, as chat_template.jinja"
        )
    if (arguments := fields.take("chat_template_kwargs")) is not None:
        fields.set("data.template_arguments", arguments)


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


# ---------------------------------------------------------------- objectives


def _dpo(fields: Fields, known: set[str]) -> None:
    objective = _losses(fields, known)
    if weight := fields.number("rpo_alpha", default=0.0):
        objective["nll_weight"] = objective.get("nll_weight", 0.0) + weight
        fields.differs("rpo_alpha: averaged over each chosen response, then over pairs; TRL: over all tokens")
    fields.only("reference_free", (False,), "set objective.kind to one that needs no reference (simpo, orpo)")
    if fields.flag("use_weighting"):
        objective["policy_weight"] = True
        fields.differs(
            "use_weighting: probabilities are not divided by the expected ones here, as WPO's are there"
        )
    fields.set("objective", objective)
    if fields.flag("precompute_ref_log_probs"):
        fields.set("reference.cached", True)


def _losses(fields: Fields, known: set[str]) -> dict[str, Any]:
    """The loss of loss_type, or a sum of several; sft among them becomes nll_weight."""
    losses = fields.texts("loss_type", default=["sigmoid"])
    # Before it was called aot_unpaired: each side was sorted by itself in aot_pair.
    losses = ["aot_unpaired" if loss == "aot_pair" else loss for loss in losses]
    weights = fields.take("loss_weights", default=[1.0] * len(losses))
    values = {
        "beta": fields.number("beta", default=0.1),
        "label_smoothing": fields.number("label_smoothing", default=0.0),
        "temperature": fields.number("discopop_tau", default=0.05),
    }
    divergence = (
        fields.take("f_divergence_type", default="reverse_kl"),
        fields.number("f_alpha_divergence_coef", default=0.5),
    )
    verbose = fields.take("ld_alpha")
    if not isinstance(weights, list) or len(weights) != len(losses):
        fields.refuse(f"loss_weights: {shown(weights)}: expected a weight for each of {', '.join(losses)}")
        return {"kind": "dpo"}
    parts, nll_weight = [], 0.0
    for loss, weight in zip(losses, weights, strict=True):
        if loss == "sft":
            nll_weight += weight
            fields.differs(
                "loss_type: sft: averaged over each chosen response, then over pairs; TRL: over all tokens"
            )
        else:
            part = _pair_objective(fields, loss, values, known)
            part = _with_divergence(fields, part, *divergence)
            parts.append({"weight": weight, "objective": _with_verbose(fields, part, verbose)})
    objective = _sum_of(fields, parts, known)
    if nll_weight:
        objective["nll_weight"] = nll_weight
    return objective


def _sum_of(fields: Fields, parts: list[dict[str, Any]], known: set[str]) -> dict[str, Any]:
    """The one objective, where it counts once, or their sum with weights."""
    if [part["weight"] for part in parts] == [1]:
        return parts[0]["objective"]
    if not parts:
        fields.refuse("loss_type: sft: alone it is supervised training: take the stage sft")
    elif "mix" not in known:
        fields.refuse("loss_type: several, with loss_weights: one loss, or one and sft, is translated")
    return {"kind": "mix", "parts": parts}


def _with_verbose(fields: Fields, objective: dict[str, Any], verbose: float | None) -> dict[str, Any]:
    if verbose is None or verbose == 1:
        return objective
    if objective["kind"] != "dpo":
        fields.refuse("ld_alpha: it goes with loss_type sigmoid alone here")
    return {"kind": "ldpo", "beta": objective["beta"], "alpha": verbose}


def _pair_objective(fields: Fields, loss: str, values: dict[str, float], known: set[str]) -> dict[str, Any]:
    kind, read = LOSSES.get(loss, (SORTED.get(loss, ""), ("beta", "label_smoothing")))
    if kind not in known:
        fields.refuse(f"loss_type: {shown(loss)}: expected one of {', '.join(LOSSES)}")
        return {"kind": "dpo", "beta": values["beta"]}
    if "label_smoothing" not in read and values["label_smoothing"]:
        fields.notes.append(
            f"label_smoothing: {values['label_smoothing']:g}: {loss} does not read it, in TRL neither"
        )
    return {"kind": kind, **{name: values[name] for name in read}}


def _with_divergence(
    fields: Fields, objective: dict[str, Any], divergence: str, coefficient: float
) -> dict[str, Any]:
    if divergence == "reverse_kl":
        return objective
    alphas = {"forward_kl": 0.0, "js_divergence": None, "alpha_divergence": coefficient}
    if objective["kind"] != "dpo" or divergence not in alphas:
        fields.refuse(f"f_divergence_type: {divergence}: only with loss_type sigmoid is it translated")
        return objective
    return {"kind": "fdpo", "beta": objective["beta"], "alpha": alphas[divergence]}


def _cpo(fields: Fields, known: set[str]) -> None:
    loss = fields.take("loss_type", default="sigmoid")
    beta = fields.number("beta", default=0.1)
    alpha, gamma = fields.number("cpo_alpha", default=1.0), fields.number("simpo_gamma", default=0.5)
    fields.only("label_smoothing", (0.0, 0), "CPO and SimPO have none here")
    shape = fields.number("alpha", default=0.0)
    if loss == "sigmoid":
        fields.set("objective", {"kind": "cpo", "beta": beta, "alpha": alpha})
    elif loss == "simpo":
        objective = {"kind": "simpo", "beta": beta, "gamma": gamma, "nll_weight": alpha}
        if shape:
            objective |= {"kind": "alphapo", "alpha": shape}
        fields.set("objective", objective)
    else:
        fields.refuse(f"loss_type: {shown(loss)}: of CPOTrainer sigmoid and simpo are translated")


def _simpo(fields: Fields, known: set[str]) -> None:
    """SimPO's own trainer, whose gamma is given as a ratio."""
    beta = fields.number("beta", default=2.0)
    gamma = round(fields.number("gamma_beta_ratio", default=0.25) * beta, 12)
    fields.only("loss_type", ("sigmoid",), "of SimPO's losses sigmoid is translated")
    fields.only("label_smoothing", (0,), "SimPO has none here")
    objective: dict[str, Any] = {"kind": "simpo", "beta": beta, "gamma": gamma}
    if weight := fields.number("sft_weight", default=0.0):
        objective["nll_weight"] = weight
        fields.differs(
            "sft_weight: averaged over each chosen response, then over pairs; SimPO: over all tokens"
        )
    fields.set("objective", objective)


def _orpo(fields: Fields, known: set[str]) -> None:
    fields.set("objective", {"kind": "orpo", "odds_weight": fields.number("beta", default=0.1)})


def _kto(fields: Fields, known: set[str]) -> None:
    if fields.peek("train_sampling_strategy") != "random":
        fields.differs("train_sampling_strategy: sequential: rows are shuffled in each epoch here")
    loss = fields.take("loss_type", default="kto")
    kind = {"kto": "kto", "bco": "bco", "apo_zero_unpaired": "apo_zero_unpaired"}.get(loss)
    if kind is None or kind not in known:
        fields.refuse(
            f"loss_type: {shown(loss)}: unpaired rows cannot be trained on with it here; make pairs of them, "
            "or take loss_type bco_pair or apo_zero"
        )
    fields.set(
        "objective",
        {
            "kind": kind,
            "beta": fields.number("beta", default=0.1),
            "desirable_weight": fields.number("desirable_weight", default=1.0),
            "undesirable_weight": fields.number("undesirable_weight", default=1.0),
        },
    )
    if fields.flag("precompute_ref_log_probs"):
        fields.set("reference.cached", True)


def _sft(fields: Fields, known: set[str]) -> None:
    fields.only("loss_type", ("nll",), "responses are trained on by their likelihood")
    only_completion, only_assistant = fields.take("completion_only_loss"), fields.flag("assistant_only_loss")
    if not (only_completion or only_assistant):
        fields.refuse(
            "completion_only_loss: TRL trains on all tokens of a conversation unless this or "
            "assistant_only_loss is true; here the loss is that of the response: set it to true if the rows "
            "are prompts and completions"
        )
    if only_assistant:
        fields.set("data.train_on", "assistant")
    fields.only("packing", (False,), PACKED)
    fields.only("eval_packing", (False,), "as packing")
    fields.only("shuffle_dataset", (False,), "rows are shuffled anyway")
    fields.only("dataset_text_field", ("text",), "set columns: {text: NAME} beside the path of the data")
    for name in ("chat_template_path", "eos_token", "dataset_kwargs"):
        # <EOS_TOKEN> is how JSON shows one that is not set.
        fields.only(name, ("<EOS_TOKEN>",), "the tokenizer is taken as it is: change its files")
    fields.aside({"packing_strategy": "rows are packed anyway"})


_OBJECTIVES = {"dpo": _dpo, "sft": _sft, "kto": _kto, "cpo": _cpo, "orpo": _orpo, "simpo": _simpo}
