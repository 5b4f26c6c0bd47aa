"""The doctor: what looks wrong with a preference optimisation.

Each line says what was seen, what it usually means and what to set. A rule reads the evidence and gives its
line, or None where it does not apply or cannot be told.
"""

from collections.abc import Mapping
from typing import Any

from sparsepo_jax.report.doctor_learning import gradient_zero, loss_stays, mask_dead
from sparsepo_jax.report.doctor_outcome import (
    chosen_falls,
    kl_far,
    margin_only_by_mask,
    mask_without_zeros,
    pairs_useless,
    prompts_cut,
    responses_cut,
)
from sparsepo_jax.report.evidence import Evidence
from sparsepo_jax.report.series import collect
from sparsepo_jax.report.table import number_or_none

FIRST_STEPS = 10  # after so many the doctor speaks for the first time

RULES = (
    loss_stays,
    gradient_zero,
    mask_dead,
    chosen_falls,
    margin_only_by_mask,
    mask_without_zeros,
    kl_far,
    responses_cut,
    prompts_cut,
    pairs_useless,
)


def diagnose(evidence: Evidence) -> list[str]:
    """The lines that apply, in the order of RULES; none for a run that never trained on preferences."""
    if not evidence.series:
        return []
    return [line for rule in RULES if (line := rule(evidence)) is not None]


class FirstSteps:
    """Called after every step of po with what it measured.

    It returns the doctor's lines after FIRST_STEPS steps, and none before or later.
    """

    def __init__(self, config: Mapping[str, Any], facts: Mapping[str, Any]):
        self._config = config
        self._facts = facts
        self._rows: list[dict[str, Any]] = []

    def __call__(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        if step > FIRST_STEPS:
            return []
        self._rows.append({"stage": "po", "step": step} | metrics)
        if step < FIRST_STEPS:
            return []
        series = {name: values for (_, name), values in collect(self._rows)[0].items()}
        steps = number_or_none(self._facts.get("steps"))
        ended = steps is not None and steps <= FIRST_STEPS
        return diagnose(Evidence(self._config, series, ended, self._facts))
