"""How a run was made: of each stage the model, the devices, what they computed in, the steps and the pairs."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.report.doctor import read_facts
from sparsepo_jax.report.files import read_if_sound
from sparsepo_jax.report.table import number_or_none

STAGES = ("sft", "po", "eval")


class RunRow(NamedTuple):
    """values: by stage, "" where it is unknown there."""

    label: str
    values: dict[str, str]


ROWS = {  # label -> path into what is known of a stage
    "model": ("model",),
    "parameters": ("parameters",),
    "of them trained": ("trained_parameters",),  # said where they are not all
    "rows": ("data", "rows"),
    "tokens a response, mean": ("data", "response_tokens"),
    "responses cut": ("data", "responses_cut"),
    "prompts cut": ("data", "prompts_cut"),
    "longest prompt and response, tokens": ("limits", "max_length"),
    "steps": ("steps",),
    "batch size": ("config", "batch_size"),
    "micro-steps": ("config", "accumulation"),
    "learning rate": ("config", "optimizer", "learning_rate"),
    "devices": ("machine", "devices"),
    "processes": ("machine", "processes"),
    "activations": ("machine", "activations"),
    "products of float32 arrays": ("machine", "products"),
    "JAX": ("machine", "jax"),
}


def run_rows(output_dir: Path, config: dict[str, Any]) -> list[RunRow]:
    """The rows that are known of some stage; none for a run that has written down no facts."""
    facts = {stage: read_facts(output_dir, stage) for stage in STAGES[:2]}
    facts["eval"] = {
        "machine": read_if_sound(output_dir / "summary.json", stage="eval", broken=[]).get("machine")
    }
    known = {
        stage: found | {"config": config.get(stage), "model": _model(config)}
        for stage, found in facts.items()
        if isinstance(found.get("machine"), dict)
    }
    rows = [
        RunRow(label, {stage: _shown(found, path) for stage, found in known.items()})
        for label, path in ROWS.items()
    ]
    parameters = next(row.values for row in rows if row.label == "parameters")
    usual = {
        "of them trained": parameters,
        "micro-steps": {stage: "1" for stage in known},
        "processes": {stage: "1" for stage in known},
    }
    return [
        row
        for row in rows
        if any(row.values.values())
        and any(x and x != usual.get(row.label, {}).get(stage) for stage, x in row.values.items())
    ]


def _model(config: dict[str, Any]) -> Any:
    policy = config.get("policy")
    if not isinstance(policy, dict):
        return None
    shape = policy.get("config")
    return policy.get("path") or (
        f"{shape.get('model_type')}, from random weights" if isinstance(shape, dict) else None
    )


def _shown(found: Any, path: tuple[str, ...]) -> str:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, str):
        return found
    known = number_or_none(found)
    if known is None:
        return ""
    return (
        f"{known:,.0f}"
        if math.isfinite(known) and known == int(known) and abs(known) < 1e15
        else f"{known:g}"
    )
