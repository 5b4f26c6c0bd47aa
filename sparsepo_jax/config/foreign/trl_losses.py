"""The losses of TRL's trainers as objectives of ours, and what its SFT trains on."""

from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.training import PACKED
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
ORPO = "orpo: the likelihood is that of each chosen response here; TRL: of prompts too, over all tokens"
# Those that a batch is sorted for, by our name.
SORTED = {"aot": "aot", "aot_unpaired": "aot_unpaired"}


def _dpo(fields: Fields, known: set[str]) -> None:
    objective = _losses(fields, known)
    if weight := fields.number("rpo_alpha", default=0.0):
        objective["nll_weight"] = objective.get("nll_weight", 0.0) + weight
        fields.differs("rpo_alpha: averaged over each chosen response, then over pairs; TRL: over all tokens")
    fields.only("reference_free", (False,), "set objective.kind to one that needs no reference (simpo, orpo)")
    if fields.flag("use_weighting"):
        objective["policy_weight"] = "aligned"
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
        fields.text("f_divergence_type", default="reverse_kl"),
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
    if loss == "sigmoid" and values["label_smoothing"]:
        fields.differs(
            f"label_smoothing: {values['label_smoothing']:g}: sigmoid does not read it, in older TRL it did: "
            "if the run was of one, set objective.kind to cdpo, with label_smoothing"
        )
    elif "label_smoothing" not in read and values["label_smoothing"]:
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
    loss = fields.text("loss_type", default="sigmoid")
    beta = fields.number("beta", default=0.1)
    alpha, gamma = fields.number("cpo_alpha", default=1.0), fields.number("simpo_gamma", default=0.5)
    if loss == "alphapo":  # TRL's other name for simpo without the likelihood
        loss, alpha = "simpo", 0.0
    fields.only("label_smoothing", (0.0, 0), "CPO and SimPO have none here")
    shape = fields.number("alpha", default=0.0)
    if alpha:
        fields.differs("cpo_alpha: averaged over each chosen response, then over pairs; TRL: over all tokens")
    if loss == "sigmoid":
        if shape:
            fields.refuse(f"alpha: {shape:g}: it shapes rewards of loss_type simpo and alphapo alone here")
        fields.set("objective", {"kind": "cpo", "beta": beta, "alpha": alpha})
    elif loss == "simpo":
        objective = {"kind": "simpo", "beta": beta, "gamma": gamma, "nll_weight": alpha}
        if shape:
            objective |= {"kind": "alphapo", "alpha": shape}
        fields.set("objective", objective)
    else:
        fields.refuse(f"loss_type: {shown(loss)}: of CPOTrainer sigmoid, simpo and alphapo are translated")


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
    fields.differs(ORPO)
    fields.set("objective", {"kind": "orpo", "odds_weight": fields.number("beta", default=0.1)})


def _kto(fields: Fields, known: set[str]) -> None:
    if fields.peek("train_sampling_strategy") != "random":
        fields.differs("train_sampling_strategy: sequential: rows are shuffled in each epoch here")
    loss = fields.text("loss_type", default="kto")
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


OBJECTIVES = {"dpo": _dpo, "sft": _sft, "kto": _kto, "cpo": _cpo, "orpo": _orpo, "simpo": _simpo}
