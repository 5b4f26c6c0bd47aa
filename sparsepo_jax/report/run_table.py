"""How a run was made: the model, devices, number types, steps and pairs of each stage."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.report.evidence import read_facts
from sparsepo_jax.report.files import evaluation_if_sound, is_finished
from sparsepo_jax.report.series import MetricSeries
from sparsepo_jax.report.table import number_or_none

TRAINING = ("sft", "po")  # stages that write facts.json


class RunRow(NamedTuple):
    """values: by stage, "" where it is unknown there."""

    label: str
    values: dict[str, str]


ROWS = {  # label -> path into what is known of a stage
    "model": ("model",),
    "parameters": ("parameters",),
    "trained in their place, of adapters": ("trained_parameters",),
    "rows": ("data", "rows"),
    "tokens a response, mean": ("data", "response_tokens"),
    "responses cut": ("data", "responses_cut"),
    "prompts cut": ("data", "prompts_cut"),
    "longest prompt and response, tokens": ("limits", "max_length"),
    "steps": ("steps",),
    "steps done": ("steps_done",),
    "weights of step": ("weights_of_step",),
    "batch size": ("config", "batch_size"),
    "micro-steps": ("config", "accumulation"),
    "learning rate": ("config", "optimizer", "learning_rate"),
    "devices": ("machine", "devices"),
    "processes": ("machine", "processes"),
    "activations": ("machine", "activations"),
    "products of float32 arrays": ("machine", "products"),
    "JAX": ("machine", "jax"),
    "attention": ("choices", "attention"),
    "head blocks": ("choices", "head blocks"),
    "recomputed": ("choices", "recomputed"),
    "layers": ("choices", "layers"),
    "seconds to the first step": ("first_step_s",),
}


def run_rows(output_dir: Path, config: dict[str, Any], metrics: MetricSeries) -> list[RunRow]:
    """The rows in which some stage differs from what is usual; none for a run that has written no facts."""
    facts = {stage: read_facts(output_dir, stage) for stage in TRAINING}
    for stage, of_stage in facts.items():
        if of_stage and "steps_done" not in of_stage and not is_finished(output_dir, stage):
            last = max((max(x) for (name, _), x in metrics.items() if name == stage), default=0)
            of_stage["steps_done"] = f"{last:,}, not finished"
    summary = evaluation_if_sound(output_dir, [])
    facts["eval"] = {"machine": summary.get("machine")}
    begun = [stage for stage, of_stage in facts.items() if isinstance(of_stage.get("machine"), dict)]
    models = _models(config, begun)
    known = {stage: facts[stage] | {"config": config.get(stage), "model": models[stage]} for stage in begun}
    shown = {
        label: {stage: _shown(of_stage, path) for stage, of_stage in known.items()}
        for label, path in ROWS.items()
    }
    ones = dict.fromkeys(known, "1")
    usual = {
        "trained in their place, of adapters": shown["parameters"],
        "micro-steps": ones,
        "processes": ones,
    }
    return [
        RunRow(label, values)
        for label, values in shown.items()
        if any(text and text != usual.get(label, {}).get(stage) for stage, text in values.items())
    ]


def _models(config: dict[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """The model that each stage began with: what the one before it left, where that has trained it."""
    sft = config.get("sft")
    taken_from = sft.get("taken_from") if isinstance(sft, dict) else None
    model = f"the sft of {taken_from}" if taken_from and "sft" not in stages else _model(config)
    models = {}
    for stage in stages:
        models[stage] = model
        if stage in TRAINING:
            model = f"as {stage} left it"
    return models


def _model(config: dict[str, Any]) -> Any:
    policy = config.get("policy")
    if not isinstance(policy, dict):
        return None
    if policy.get("path"):
        return policy["path"]
    shape = policy.get("config")
    return f"{shape.get('model_type')}, from random weights" if isinstance(shape, dict) else None


def _shown(facts: Any, path: tuple[str, ...]) -> str:
    for name in path:
        facts = facts.get(name) if isinstance(facts, dict) else None
    if isinstance(facts, str):
        return facts
    number = number_or_none(facts)
    if number is None:
        return ""
    if math.isfinite(number) and number == int(number) and abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:g}"
