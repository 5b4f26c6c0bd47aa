"""The report of a run: one HTML file made of the run's files alone, without scripts and without a network."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_text
from sparsepo_jax.report import heatmap, plots, table
from sparsepo_jax.report.doctor import diagnose, read_evidence
from sparsepo_jax.report.files import (
    pairs_path,
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
_SAMPLE_COLUMNS = ("prompt", "before", "after")


def write_report(output_dir: Path, pairs: int) -> Path:
    """Write output_dir/report.html and return its path. Shows the first `pairs` pairs.

    Reads config.yaml, summary.json, measures.json, harness.json, metrics.jsonl, the stages' facts.json, samples.jsonl and pairs.jsonl (else
    scores.jsonl, which has no text) in output_dir. The page says which are missing; half a line that an interrupted run left is passed over. UserError if there is nothing to report,
    summary.json or measures.json is no JSON object, or a pair lacks fields.
    """
    if not any((output_dir / name).is_file() for name in RESULTS + OTHERS):
        raise UserError(
            f"report: expected {', '.join(RESULTS[:-1])} or {RESULTS[-1]} in {output_dir}, found none; "
            "run the stage sft, po, score, eval or measure first"
        )
    config, settings = read_text(output_dir / "config.yaml"), read_settings(output_dir)
    metrics, unreadable = read_metrics(output_dir / "metrics.jsonl")
    pairs_file = pairs_path(output_dir)
    shown = list(islice(read_pairs(pairs_file), pairs)) if pairs_file else []
    summary = read_summary(output_dir / "summary.json")
    harness = read_summary(output_dir / "harness.json", stage="harness")
    maskless = heatmap.without_masks(shown)
    samples = list(islice(_samples(output_dir / "samples.jsonl"), pairs))
    known = {name: table.known_rows(summary or {}, rows) for name, rows in SECTIONS.items()}
    html = (
        make_environment()
        .get_template("page.html.jinja")
        .render(
            run=output_dir.resolve().name,
            facts=_facts(settings),
            config=config,
            summary=summary,
            words=_words(summary),
            advice=diagnose(read_evidence(output_dir)),
            known=known,
            untrained=not table.has_before(known["Policy"]),
            any_auroc=any(
                row.label.startswith("AUROC, ") and row.label.endswith("mask") for row in known["Mask"]
            ),
            made=run_rows(output_dir, settings),
            measures=table.measure_rows(read_summary(output_dir / "measures.json", stage="measure") or {}),
            tasks=table.task_rows(harness or {}),
            duration=_duration((summary or {}).get("seconds")),
            charts=plots.make_charts(metrics),
            metrics={key: plots.extent(series) for key, series in sorted(metrics.items())},
            unreadable=unreadable,
            pairs=shown,
            samples=samples,
            sample_columns=[name for name in _SAMPLE_COLUMNS if any(sample[name] for sample in samples)],
            pairs_file=pairs_file and pairs_file.name,
            scales=heatmap.make_scales(shown),
            top=heatmap.top_tokens(shown),
            maskless=maskless,
            default_key="r" if maskless else "u",
            any_decisive=any(token.decisive for pair in shown for token in pair.tokens),
            any_broken=any(token.broken for pair in shown for token in pair.tokens),
            heatmap=heatmap,
            table=table,
        )
    )
    path = output_dir / "report.html"
    write_text(path, html, errors="backslashreplace")
    return path


def make_environment() -> Environment:
    """Every printed string is escaped twice over: what cannot be seen becomes visible, what HTML would read becomes text."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: heatmap.visible(x) if isinstance(x, str) and not isinstance(x, Markup) else x,
    )


def _facts(settings: dict[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of the configuration at first sight."""
    paths = {
        "objective": "objective.kind",
        "mask": "objective.mask.kind",
        "beta": "objective.beta",
        "policy": "policy.path",
        "seed": "seed",
    }
    facts = {}
    for name, path in paths.items():
        x: Any = settings
        for key in path.split("."):
            x = x.get(key) if isinstance(x, dict) else None
        if isinstance(x, (str, float)) or (isinstance(x, int) and x.bit_length() < 64):
            facts[name] = x
    return facts


def _words(summary: dict | None) -> str | None:
    """As the run said it; of a run from before it did so, as it is said now."""
    said = (summary or {}).get("words")
    return said if isinstance(said, str) else outcome(summary or {})


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        return None
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )


def _samples(path: Path) -> Iterator[dict[str, str]]:
    """prompt, before, after as text ("" where there is none) of what the policy wrote."""
    for _, row in read_rows(path) if path.is_file() else ():
        if row is not None:
            yield {name: text if isinstance(text := row.get(name), str) else "" for name in _SAMPLE_COLUMNS}
