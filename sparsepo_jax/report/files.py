"""The files that a run leaves, read as far as they can be: what an interrupted run left half is passed over."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report import heatmap, plots


def read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def parse_config(text: str | None) -> dict[str, Any]:
    """config.yaml as nested mappings; empty where it is none of ours."""
    try:
        found = YAML(typ="safe", pure=True).load(text or "")
    except (YAMLError, ValueError, KeyError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# Of which stage's record a section is taken, the last that has it: what was trained says what was trained, what was evaluated how.
_RECORDS = (
    ("harness", None),
    ("measure", None),
    ("eval", None),
    ("generate", ("generation",)),
    ("sft", None),
    ("po", None),
)


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings with which a run's files were made: of each stage as stages.json has them (of one that was begun, its settings.json), the rest by
    config.yaml, which holds those of the last run in the directory."""
    settings = parse_config(read_text(directory / "config.yaml"))
    for stage, sections in _RECORDS:
        for section, recorded in _recorded(directory, stage).items():
            if section not in ("trained", "files") and (sections is None or section in sections):
                settings[section] = _with_record(settings.get(section), recorded)
    return settings


def _recorded(directory: Path, stage: str) -> dict[str, Any]:
    """The settings that a stage depends on, by section; empty where it was not run, or the file is none of ours."""
    mark = _read_object(directory / "stages.json").get(stage)
    depends = (
        mark.get("depends") if isinstance(mark, dict) else _read_object(directory / stage / "settings.json")
    )
    return depends if isinstance(depends, dict) else {}


def _with_record(value: Any, recorded: Any) -> Any:
    """A record leaves out of a section what makes no difference; a section of a kind is recorded whole."""
    if not isinstance(value, dict) or not isinstance(recorded, dict) or "kind" in recorded:
        return recorded
    return value | recorded


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(read_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_summary(path: Path, *, stage: str = "eval") -> dict | None:
    """The JSON object that `stage` left; None without the file. UserError: no JSON object."""
    text = read_text(path)
    if text is None:
        return None
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        said = f"{path}: expected JSON, got an error at line {error.lineno}: {error.msg}; run the stage {stage} again"
        raise UserError(said) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists a thousand deep
        raise UserError(
            f"{path}: expected JSON, got what Python cannot read ({error}); run the stage {stage} again"
        ) from None
    if not isinstance(summary, dict):
        raise UserError(
            f"{path}: expected a JSON object, got {type(summary).__name__}; run the stage {stage} again"
        )
    return summary


def read_if_sound(path: Path, *, stage: str, broken: list[str]) -> dict:
    """The same for a reader of many runs: empty without the file, and where it is no JSON object, which is then added to `broken`."""
    try:
        return read_summary(path, stage=stage) or {}
    except UserError as error:
        broken.append(str(error))
        return {}


def read_rows(path: Path) -> Iterator[tuple[int, dict | None]]:
    """Line numbers and objects; None where a line is none."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for n, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield n, row if isinstance(row, dict) else None


def read_metrics(path: Path) -> tuple[plots.Metrics, int]:
    rows = [row for _, row in read_rows(path)] if path.is_file() else []
    good = [row for row in rows if row is not None]
    metrics, unusable = plots.collect(good)
    return metrics, len(rows) - len(good) + unusable


def pairs_path(output_dir: Path) -> Path | None:
    return next(
        (path for name in ("pairs.jsonl", "scores.jsonl") if (path := output_dir / name).is_file()), None
    )


def read_pairs(path: Path) -> Iterator[heatmap.Pair]:
    """The pairs of a file, half a line (of an interrupted run) left out."""
    for n, row in read_rows(path):
        if row is not None:
            yield heatmap.parse_pair(row, where=f"{path} line {n}")
