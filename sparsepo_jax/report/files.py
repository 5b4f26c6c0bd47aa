"""The files that a run leaves, read as far as possible.

What an interrupted run left incomplete is passed over.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report import heatmap, series


def read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def parse_config(text: str | None) -> dict[str, Any]:
    """config.yaml as nested mappings; empty where it is none of ours."""
    try:
        content = YAML(typ="safe", pure=True).load(text or "")
    except (YAMLError, ValueError, KeyError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# From which stage's record a section of the settings is taken; the last stage that has the section wins. So
# the settings of training are those of what was trained, and those of evaluation those of what was evaluated.
_RECORDS: tuple[tuple[str, tuple[str, ...] | None], ...] = (  # stage, sections (None: all)
    ("harness", None),
    ("measure", None),
    ("generate", ("generation",)),
    ("eval", None),
    ("sft", None),
    ("po", None),
)


AS_EVALUATED = "as in eval"  # what generate sampled with, where that is what eval sampled with


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings with which a run's files were made.

    Those of a stage are taken from stages.json, or from its settings.json if it was only begun. The rest
    comes from config.yaml, which holds the settings of the last run in the directory. Where eval and generate
    sampled with settings of their own, those of generate stand under its name.
    """
    settings = parse_config(read_text(directory / "config.yaml"))
    for stage, sections in _RECORDS:
        for section, recorded in _recorded(directory, stage).items():
            if section not in ("trained", "files") and (sections is None or section in sections):
                settings[section] = _with_record(settings.get(section), recorded)
    answers = _recorded(directory, "generate").get("generation")
    evaluated = _recorded(directory, "eval").get("generation")
    if isinstance(answers, dict) and isinstance(evaluated, dict):
        settings["generate"] = {
            name: AS_EVALUATED if name in evaluated and evaluated[name] == value else value
            for name, value in answers.items()
        }
    return settings


def _recorded(directory: Path, stage: str) -> dict[str, Any]:
    """The settings that a stage depends on, by section; empty if nothing usable says so."""
    mark = _read_object(directory / "stages.json").get(stage)
    if isinstance(mark, dict):
        settings = mark.get("depends")
    else:
        settings = _read_object(directory / stage / "settings.json")
    return settings if isinstance(settings, dict) else {}


def _with_record(value: Any, recorded: Any) -> Any:
    """The record replaces what it names: it leaves out of a section what makes no difference.

    A section that has a kind is recorded completely.
    """
    if not isinstance(value, dict) or not isinstance(recorded, dict) or "kind" in recorded:
        return recorded
    return value | recorded


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(read_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_summary(path: Path, *, stage: str = "eval") -> dict | None:
    """The JSON object that `stage` left; None without the file. UserError: no JSON object."""
    text = read_text(path)
    if text is None:
        return None
    remedy = f"run the stage {stage} again"
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{path}: expected JSON, got an error at line {error.lineno}: {error.msg}; {remedy}"
        raise UserError(message) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists a thousand deep
        message = f"{path}: expected JSON, got what Python cannot read ({error}); {remedy}"
        raise UserError(message) from None
    if not isinstance(summary, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(summary).__name__}; {remedy}")
    return summary


def read_if_sound(path: Path, *, stage: str, broken: list[str]) -> dict:
    """As read_summary, for a reader of many runs.

    Empty without the file, and where it is no JSON object; then the reason is added to `broken`.
    """
    try:
        return read_summary(path, stage=stage) or {}
    except UserError as error:
        broken.append(str(error))
        return {}


def outdated(directory: Path) -> str | None:
    """A line if summary.json is not known to be of the weights that stages.json names, else None.

    They were trained anew, or an evaluation was broken off.
    """
    marks = _read_object(directory / "stages.json")
    trained = {
        name: mark.get("finished") for name in ("sft", "po") if isinstance(mark := marks.get(name), dict)
    }
    path, evaluated = directory / "summary.json", marks.get("eval")
    if not trained or not path.is_file():
        return None
    if not isinstance(evaluated, dict):
        return f"{path}: stages.json does not say that its evaluation was finished: run the stage eval again"
    depends = evaluated.get("depends")
    if not isinstance(depends, dict) or depends.get("trained", trained) == trained:
        return None
    return f"{path} is not of the weights that lie here now: run the stage eval again"


def is_finished(directory: Path, stage: str) -> bool:
    """Whether stages.json has the stage among those that are finished."""
    return stage in _read_object(directory / "stages.json")


def read_evaluation(directory: Path) -> dict | None:
    """summary.json of a run's stage eval; None without it, or where it is outdated.

    Raises:
        UserError: no JSON object.
    """
    return None if outdated(directory) else read_summary(directory / "summary.json")


def evaluation_if_sound(directory: Path, broken: list[str]) -> dict:
    """As read_evaluation; empty where there is none. The reason, if it is one, is added to `broken`."""
    if line := outdated(directory):
        broken.append(line)
        return {}
    return read_if_sound(directory / "summary.json", stage="eval", broken=broken)


def read_rows(path: Path) -> Iterator[tuple[int, dict | None]]:
    """Line numbers and objects; None where a line is no object."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for n, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield n, row if isinstance(row, dict) else None


def read_metrics(path: Path) -> tuple[series.MetricSeries, int]:
    """The series of metrics.jsonl, and how many of its lines cannot be used."""
    rows = [row for _, row in read_rows(path)] if path.is_file() else []
    objects = [row for row in rows if row is not None]
    metrics, unusable = series.collect(objects)
    return metrics, len(rows) - len(objects) + unusable


def pairs_path(output_dir: Path) -> Path | None:
    """The file that has the texts, else the one that has only ids."""
    for name in ("pairs.jsonl", "scores.jsonl"):
        if (output_dir / name).is_file():
            return output_dir / name
    return None


def read_pairs(path: Path) -> Iterator[heatmap.Pair]:
    """The pairs of a file; half a line (of an interrupted run) is left out."""
    for n, row in read_rows(path):
        if row is not None:
            yield heatmap.parse_pair(row, where=f"{path} line {n}")
