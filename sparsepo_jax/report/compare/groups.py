"""Groups of runs that differ in their seed only, and what each group is called.

A sweep is grouped by what it swept. Other runs are grouped by what differs between the settings that they
were made with (stages.json, and config.yaml for what no stage has recorded).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import leaves, short_names
from sparsepo_jax.report.compare.runs import SECTION, FinishedRun, LeftOut, read_runs
from sparsepo_jax.report.intervals import Interval, t_interval, wilson
from sparsepo_jax.report.table import number_or_none

KIND, BETA = "objective.kind", "objective.beta"
# Shares of independent pairs, whose interval for a single seed is Wilson's.
SHARES = ("after.accuracy", "after.accuracy_unmasked")
# Settings that do not change what a run computes, or (the seed) over which its group is made.
NO_DIFFERENCE = (
    "seed",
    "output_dir",
    "stages",
    "logging",
    "checkpoint",
    "export",
    "report",
    "data.cache_dir",
    "data.inspect_rows",
    "reference.cache_dir",
    "sft.taken_from",
    "compute.compile_cache",
    "compute.distributed",
)
LONGEST_VALUE = 48  # characters of a setting's value in a label


@dataclass
class Group:
    """Runs of the same settings, ordered by seed. method: its label without beta."""

    label: str
    method: str
    beta: float | None
    runs: list[FinishedRun]

    def values(self, metric: str) -> dict[int, float]:
        """By seed, of the runs that have it."""
        return {run.seed: run.numbers[metric] for run in self.runs if metric in run.numbers}

    def knows(self, metrics: Sequence[str]) -> bool:
        """Whether some run has any of these numbers: a group without them is no row of their table."""
        return any(self.values(metric) for metric in metrics)

    def interval(self, metric: str) -> Interval | None:
        """Over seeds; of a single seed's accuracy over its independent pairs. None: no run has it."""
        values = list(self.values(metric).values())
        if len(values) == 1 and metric in SHARES:
            (cases,) = [run.cases for run in self.runs if metric in run.numbers]
            if cases and 0 <= values[0] <= 1:
                return wilson(values[0], cases)
        return t_interval(values) if values else None


def find_groups(directories: Sequence[Path]) -> tuple[list[Group], list[LeftOut]]:
    """The groups in the order of the runs, and the runs that are left out, with the reason.

    UserError: nothing is left.
    """
    runs, left_out = read_runs(directories)
    if len(directories) == 1 and all(run.swept is not None for run in runs):
        for run in runs:  # by what was swept, though another setting may follow from it
            run.settings = {key: value for key, value in leaves(run.swept) if key != "seed"}
    else:
        keys = _differing(runs)
        for run in runs:
            run.settings = {key: run.config[key] for key in keys if key in run.config}
            if not run.config:
                run.settings = {"run": run.path.name}
    groups, twice = _grouped(runs)
    return groups, left_out + twice


def _differing(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings in which runs differ, without those that count for nothing.

    A setting that only some runs have (another kind, or an older version) counts if it differs among these.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if not _counts_for_nothing(key) and _differs(key, runs)]


def _counts_for_nothing(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NO_DIFFERENCE)


def _differs(key: str, runs: Sequence[FinishedRun]) -> bool:
    """A path that goes with the seed (each seed from a policy of its own) is part of the seed."""
    values = {_canonical(run.config[key]) for run in runs if key in run.config}
    if len(values) < 2:
        return False
    seeds = {run.seed for run in runs}
    with_seed = {(run.seed, _canonical(run.config.get(key))) for run in runs}
    return not (key.endswith(".path") and len(with_seed) == len(seeds) < len(runs))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _grouped(runs: Sequence[FinishedRun]) -> tuple[list[Group], list[LeftOut]]:
    label = Labels(runs)
    groups: dict[str, Group] = {}
    used: dict[str, int] = {}
    left_out = []
    for run in runs:
        key = _canonical(run.settings)
        if key not in groups:
            name = label(run)
            used[name] = used.get(name, 0) + 1
            if used[name] > 1:
                name = f"{name} ({used[name]})"
            method = label(run, without=BETA) if BETA in run.settings else name
            beta = run.settings.get(BETA, run.config.get(BETA))
            groups[key] = Group(name, method, number_or_none(beta), [])
        of_seed = [other for other in groups[key].runs if other.seed == run.seed]
        if of_seed:
            left_out.append(LeftOut(str(run.path), f"the same settings and seed as {of_seed[0].path}"))
        else:
            groups[key].runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: run.seed)
    return list(groups.values()), left_out


def _namesakes(key: str) -> list[str]:
    """Settings that a key's last word makes one think of: learning_rate is po's rather than the mask's."""
    if key.startswith("objective.mask."):
        return [place + key.removeprefix("objective.mask.") for place in ("objective.", "po.optimizer.")]
    return ["po." + key.removeprefix("sft.")] if key.startswith("sft.") else []


class Labels:
    """Labels of runs: only what tells a run from others of the same objective."""

    def __init__(self, runs: Sequence[FinishedRun]):
        self._runs = runs
        keys = dict.fromkeys(key for run in runs for key in run.settings)
        namesakes = {other for key in keys for other in _namesakes(key)} - keys.keys()
        known = sorted(other for other in namesakes if any(other in run.config for run in runs))
        self._names = short_names([*keys, *known])
        self._kinds = {run.config.get(KIND) for run in runs}

    def __call__(self, run: FinishedRun, without: str | None = None) -> str:
        words = []
        for key, value in run.settings.items():
            if key == without or value == SECTION:
                continue
            if key == KIND:
                words.insert(0, str(value))
            elif self._tells_apart(key, run):
                words.append(f"{self._names[key]} {_shortened(value)}")
        kind = run.config.get(KIND)
        if isinstance(kind, str) and kind not in words and (not words or len(self._kinds) > 1):
            words.insert(0, kind)
        return ", ".join(words) or "all runs"

    def _tells_apart(self, key: str, run: FinishedRun) -> bool:
        alike = [other for other in self._runs if other.config.get(KIND) == run.config.get(KIND)]
        return len({_canonical(other.settings[key]) for other in alike if key in other.settings}) > 1


def _shortened(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, default=str)
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[: LONGEST_VALUE // 2 - 2]}...{text[-LONGEST_VALUE // 2 + 1 :]}"


def find_baseline(groups: Sequence[Group], name: str | None) -> Group:
    """The first group with this label, else this method, else this objective, else a run of this name.

    None: the first group. UserError: there is no such group.
    """
    if name is None:
        return groups[0]
    ways: tuple[Callable[[Group], bool], ...] = (
        lambda group: group.label == name,
        lambda group: group.method == name,
        lambda group: any(run.config.get(KIND) == name for run in group.runs),
        lambda group: any(run.path.name == name for run in group.runs),
    )
    for is_meant in ways:
        for group in groups:
            if is_meant(group):
                return group
    raise UserError(f"--baseline: expected one of {'; '.join(group.label for group in groups)}; got {name}")
