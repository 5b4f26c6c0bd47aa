"""The report of a run: one HTML file made of the run's files alone, without scripts and without a network."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report import heatmap, plots, table


RESULTS = ("summary.json", "metrics.jsonl", "pairs.jsonl", "scores.jsonl")
OTHERS = ("harness.json",)


def write_report(output_dir: Path, pairs: int) -> Path:
    """Write output_dir/report.html and return its path. Shows the first `pairs` pairs.

    Reads config.yaml, summary.json, harness.json, metrics.jsonl, samples.jsonl and pairs.jsonl (else scores.jsonl, which has no text) in output_dir. The page
    says which are missing; half a line that an interrupted run left is passed over. UserError if there is nothing to report,
    summary.json is no JSON object, or a pair lacks fields.
    """
    if not any((output_dir / name).is_file() for name in RESULTS + OTHERS):
        raise UserError(f"report: expected {', '.join(RESULTS[:-1])} or {RESULTS[-1]} in {output_dir}, found none; "
                        "run the stage sft, po, score or eval first")
    config = _text(output_dir / "config.yaml")
    metrics, unreadable = _metrics(output_dir / "metrics.jsonl")
    pairs_path = _pairs_path(output_dir)
    shown = list(islice(_pairs(pairs_path), pairs)) if pairs_path else []
    summary = _summary(output_dir / "summary.json")
    harness = _summary(output_dir / "harness.json", "harness")
    maskless = heatmap.without_masks(shown)
    html = _environment().get_template("page.html.jinja").render(
        run=output_dir.resolve().name,
        facts=_facts(config),
        config=config,
        summary=summary,
        tasks=table.task_rows(harness or {}),
        duration=_duration((summary or {}).get("seconds")),
        charts=plots.make_charts(metrics),
        metrics={key: plots.extent(series) for key, series in sorted(metrics.items())},
        unreadable=unreadable,
        pairs=shown,
        samples=list(islice(_samples(output_dir / "samples.jsonl"), pairs)),
        pairs_file=pairs_path and pairs_path.name,
        scales=heatmap.make_scales(shown),
        top=heatmap.top_tokens(shown),
        maskless=maskless,
        default_key="r" if maskless else "u",
        any_decisive=any(token.decisive for pair in shown for token in pair.tokens),
        any_broken=any(token.broken for pair in shown for token in pair.tokens),
        heatmap=heatmap,
        table=table,
    )
    path = output_dir / "report.html"
    path.write_text(html, encoding="utf-8", errors="backslashreplace")
    return path


def _environment() -> Environment:
    """Every printed string is escaped twice over: what cannot be seen becomes visible, what HTML would read becomes text."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: heatmap.visible(x) if isinstance(x, str) and not isinstance(x, Markup) else x,
    )


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _facts(config: str | None) -> dict[str, Any]:
    """What a reader wants to know of the configuration at first sight."""
    try:
        found = YAML(typ="safe", pure=True).load(config or "")
    except (YAMLError, ValueError, KeyError, RecursionError):  # no file of ours: it is shown as it is
        return {}
    paths = {
        "objective": "objective.kind", "mask": "objective.mask.kind", "beta": "objective.beta",
        "policy": "policy.path", "seed": "seed",
    }
    facts = {}
    for name, path in paths.items():
        x = found
        for key in path.split("."):
            x = x.get(key) if isinstance(x, dict) else None
        if isinstance(x, (str, float)) or (isinstance(x, int) and x.bit_length() < 64):
            facts[name] = x
    return facts


def _summary(path: Path, stage: str = "eval") -> dict | None:
    text = _text(path)
    if text is None:
        return None
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        said = f"{path}: expected JSON, got an error at line {error.lineno}: {error.msg}; run the stage {stage} again"
        raise UserError(said) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists a thousand deep
        raise UserError(f"{path}: expected JSON, got what Python cannot read ({error}); run the stage {stage} again") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(summary).__name__}; run the stage {stage} again")
    return summary


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        return None
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _rows(path: Path) -> Iterator[tuple[int, dict | None]]:
    """Line numbers and objects; None where a line is none."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for n, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield n, row if isinstance(row, dict) else None


def _metrics(path: Path) -> tuple[plots.Metrics, int]:
    rows = [row for _, row in _rows(path)] if path.is_file() else []
    good = [row for row in rows if row is not None]
    metrics, unusable = plots.collect(good)
    return metrics, len(rows) - len(good) + unusable


def _pairs_path(output_dir: Path) -> Path | None:
    return next((path for name in ("pairs.jsonl", "scores.jsonl") if (path := output_dir / name).is_file()), None)


def _pairs(path: Path) -> Iterator[heatmap.Pair]:
    """The pairs of a file, half a line (of an interrupted run) left out."""
    for n, row in _rows(path):
        if row is not None:
            yield heatmap.parse_pair(row, where=f"{path} line {n}")


def _samples(path: Path) -> Iterator[dict[str, str]]:
    """prompt, before, after as text ("" where there is none) of what the policy wrote."""
    for _, row in _rows(path) if path.is_file() else ():
        if row is not None:
            yield {name: text if isinstance(text := row.get(name), str) else "" for name in ("prompt", "before", "after")}
