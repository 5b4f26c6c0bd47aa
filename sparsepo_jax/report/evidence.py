"""What is known of a run's stage po, for the doctor's rules: from its files, or from its first steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.report.files import evaluation_if_sound, read_if_sound, read_metrics, read_settings
from sparsepo_jax.report.series import Series
from sparsepo_jax.report.table import number_or_none, value


class Evidence(NamedTuple):
    """What is known of a run's stage po.

    config: nested settings. series: metric -> step -> value, of training. ended: whether all steps are done,
    or it was stopped early. facts: what the run wrote down when the stage began (facts_path).
    summary: of the evaluation; {} before it.
    """

    config: Mapping[str, Any]
    series: Mapping[str, Series]
    ended: bool
    facts: Mapping[str, Any] = {}
    summary: Mapping[str, Any] = {}

    def setting(self, path: str) -> Any:
        """The setting at a dotted path; None where there is none."""
        setting: Any = self.config
        for name in path.split("."):
            setting = setting.get(name) if isinstance(setting, Mapping) else None
        return setting

    def number(self, path: str) -> float | None:
        return number_or_none(self.setting(path))

    def count(self, name: str) -> float:
        """A fact about the training pairs, see data/facts.py; 0 where it is unknown."""
        data = self.facts.get("data")
        return (number_or_none(data.get(name)) if isinstance(data, Mapping) else None) or 0.0

    @property
    def unit(self) -> str:
        """What is trained on: pairs, or single responses with a label."""
        return "responses" if "share/chosen" in self.series else "pairs"

    @property
    def steps(self) -> float | None:
        """Of the whole stage."""
        return number_or_none(self.facts.get("steps"))

    def values(self, name: str) -> list[float]:
        """The finite values of a metric, by step."""
        return [x for x in self.series.get(name, {}).values() if math.isfinite(x)]

    def late(self, name: str) -> list[float]:
        """Those of the last quarter."""
        return last_quarter(self.values(name))

    def late_mean(self, name: str) -> float | None:
        late = self.late(name)
        return mean(late) if late else None

    def preference_loss(self) -> list[float]:
        """The loss without what L1 and NLL add."""
        added = [self.series.get(name, {}) for name in ("loss/l1", "loss/nll")]
        losses = [
            x - sum(part.get(step, 0.0) for part in added) for step, x in self.series.get("loss", {}).items()
        ]
        return [x for x in losses if math.isfinite(x)]

    def kl(self) -> float | None:
        """KL to the reference, nats a response.

        The larger of those on held-out pairs and of what the policy writes; before there is an evaluation,
        that of the last quarter of training.
        """
        evaluated = [value(self.summary, ("after", name)) for name in ("kl", "generated_kl")]
        known = [x for x in evaluated if x is not None and math.isfinite(x)]
        if known:
            return max(known)
        chosen, rejected = self.late_mean("kl/chosen"), self.late_mean("kl/rejected")
        return None if chosen is None or rejected is None else (chosen + rejected) / 2


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def last_quarter(values: Sequence[float]) -> list[float]:
    """At least one value, if there is any."""
    return list(values[len(values) - max(1, len(values) // 4) :]) if values else []


def squared_error(values: Sequence[float]) -> float:
    """The square of the standard error of the mean."""
    middle = mean(values)
    return math.fsum((x - middle) ** 2 for x in values) / max(len(values) - 1, 1) / len(values)


def facts_path(output_dir: Path, stage: str) -> Path:
    return output_dir / stage / "facts.json"


def read_facts(output_dir: Path, stage: str) -> dict[str, Any]:
    return read_if_sound(facts_path(output_dir, stage), stage=stage, broken=[])


def read_evidence(output_dir: Path) -> Evidence:
    """Of a run's files; what is missing or broken there is unknown."""
    facts = read_facts(output_dir, "po")
    metrics, _ = read_metrics(output_dir / "metrics.jsonl")
    series = {
        name: values
        for (stage, name), values in metrics.items()
        if stage == "po" and not name.startswith(("eval/", "eval_"))
    }
    last = max((step for values in series.values() for step in values), default=0)
    steps = number_or_none(facts.get("steps"))
    summary = evaluation_if_sound(output_dir, [])
    end = number_or_none(facts.get("steps_done")) or steps  # it may have ended early
    return Evidence(read_settings(output_dir), series, end is None or last >= end, facts, summary)
