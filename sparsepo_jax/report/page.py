"""The report of a run: one HTML file made of the run's files alone, without scripts and without a network."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_text
from sparsepo_jax.report import charts, drawing, heatmap, series, sets, table
from sparsepo_jax.report.doctor import diagnose
from sparsepo_jax.report.evidence import read_evidence
from sparsepo_jax.report.files import (
    outdated,
    pairs_path,
    read_evaluation,
    read_metrics,
    read_pairs,
    read_rows,
    read_settings,
    read_summary,
    read_text,
)
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.report.run_table import run_rows

SECTIONS = {"Policy": table.POLICY_ROWS, "Mask": table.MASK_ROWS, "Controls": table.CONTROL_ROWS}
RESULTS = ("summary.json", "metrics.jsonl", "measures.json", "pairs.jsonl", "scores.jsonl")
OTHERS = ("harness.json",)
FACTS = {  # what a reader wants to know of the configuration at first sight
    "objective": ("objective", "kind"),
    "mask": ("objective", "mask", "kind"),
    "beta": ("objective", "beta"),
    "policy": ("policy", "path"),
    "seed": ("seed",),
}
OF_DECISIVE = {"AUROC, reward mask", "AUROC, KL mask"}  # rows that judge a mask by decisive tokens
_SAMPLE_COLUMNS = ("prompt", "before", "after")


def write_report(output_dir: Path, pairs: int) -> Path:
    """Write output_dir/report.html and return its path. Shows the first `pairs` pairs.

    Reads, in output_dir, config.yaml, summary.json, measures.json, harness.json, metrics.jsonl, the stages'
    facts.json, samples.jsonl and pairs.jsonl (else scores.jsonl, which has no text). The page says which are
    missing; half a line that an interrupted run left is passed over. UserError: there is nothing to report,
    summary.json or measures.json is no JSON object, or a pair lacks fields.
    """
    if not any((output_dir / name).is_file() for name in RESULTS + OTHERS):
        raise UserError(
            f"report: expected {', '.join(RESULTS[:-1])} or {RESULTS[-1]} in {output_dir}, found none; "
            "run the stage sft, po, score, eval or measure first"
        )
    settings = read_settings(output_dir)
    summary = read_evaluation(output_dir)
    metrics, unreadable = read_metrics(output_dir / "metrics.jsonl")
    html = (
        make_environment()
        .get_template("page.html.jinja")
        .render(
            run=output_dir.resolve().name,
            facts=_facts(settings),
            config=read_text(output_dir / "config.yaml"),
            advice=[line for line in (outdated(output_dir),) if line] + diagnose(read_evidence(output_dir)),
            made=run_rows(output_dir, settings, metrics),
            **_summary_context(summary),
            **_results_context(output_dir),
            charts=charts.make_charts(metrics),
            metrics={key: series.extent(values) for key, values in sorted(metrics.items())},
            unreadable=unreadable,
            **_pairs_context(output_dir, pairs),
            **_samples_context(output_dir, pairs),
            table=table,
        )
    )
    path = output_dir / "report.html"
    write_text(path, html, errors="backslashreplace")
    return path


def make_environment() -> Environment:
    """An environment that escapes every printed string twice.

    What cannot be seen becomes visible, and what HTML would interpret becomes text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: heatmap.visible(x) if isinstance(x, str) and not isinstance(x, Markup) else x,
    )
    environment.globals["drawing"] = drawing
    return environment


# ---------------------------------------------------------------- what the templates need


def heatmap_context(pairs: Sequence[heatmap.Pair]) -> dict[str, Any]:
    """For the pairs of a page, shown token by token."""
    pairs = list(pairs)
    maskless, mask = heatmap.without_masks(pairs), heatmap.mask_of(pairs)
    tokens = [token for pair in pairs for token in pair.tokens]
    return {
        "heatmap": heatmap,
        "shown_unit": heatmap.unit_of(pairs),
        "quantities": heatmap.QUANTITIES,
        "scales": heatmap.make_scales(pairs),
        "maskless": maskless,
        "mask": mask,
        "default_key": "r" if maskless else mask.key,
        "any_decisive": any(token.decisive for token in tokens),
        "any_broken": any(token.broken for token in tokens),
    }


def _facts(settings: dict[str, Any]) -> dict[str, Any]:
    facts = {}
    for name, path in FACTS.items():
        x: Any = settings
        for key in path:
            x = x.get(key) if isinstance(x, dict) else None
        if isinstance(x, (str, float)) or (isinstance(x, int) and x.bit_length() < 64):
            facts[name] = x
    return facts


def _summary_context(summary: dict | None) -> dict[str, Any]:
    known = {name: table.known_rows(summary or {}, rows) for name, rows in SECTIONS.items()}
    labels = {row.label for row in known["Mask"]}
    return {
        "summary": summary,
        "words": _words(summary or {}),
        "known": known,
        "untrained": not table.has_before(known["Policy"]),
        "unjudged": "mask sparsity" in labels and not labels & OF_DECISIVE,
        "duration": _duration((summary or {}).get("seconds")),
        "unit": table.unit_of(summary or {}),
        "sets": sets.set_lines(summary or {}),
    }


def _words(summary: dict) -> str | None:
    """As the run said it; for a run from before there was such a line, as it is said now."""
    words = summary.get("words")
    return words if isinstance(words, str) else outcome(summary)


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        return None
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _results_context(output_dir: Path) -> dict[str, Any]:
    measures = read_summary(output_dir / "measures.json", stage="measure")
    harness = read_summary(output_dir / "harness.json", stage="harness")
    return {"measures": table.measure_rows(measures or {}), "tasks": table.task_rows(harness or {})}


def _pairs_context(output_dir: Path, limit: int) -> dict[str, Any]:
    path = pairs_path(output_dir)
    shown = list(islice(read_pairs(path), limit)) if path else []
    context = heatmap_context(shown)
    return context | {
        "pairs": shown,
        "pairs_file": path and path.name,
        "top": heatmap.top_tokens(shown, context["mask"]),
    }


def _samples_context(output_dir: Path, limit: int) -> dict[str, Any]:
    samples = list(islice(_samples(output_dir / "samples.jsonl"), limit))
    columns = [name for name in _SAMPLE_COLUMNS if any(sample[name] for sample in samples)]
    return {"samples": samples, "sample_columns": columns}


def _samples(path: Path) -> Iterator[dict[str, str]]:
    """prompt, before, after as text ("" where there is none) of what the policy wrote."""
    for _, row in read_rows(path) if path.is_file() else ():
        if row is not None:
            texts = {name: row.get(name) for name in _SAMPLE_COLUMNS}
            yield {name: text if isinstance(text, str) else "" for name, text in texts.items()}
