"""The stage measure: what the texts in generations.jsonl are worth. Reads files, no model."""

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.eval.measures import measure_code, measure_text
from sparsepo_jax.sandbox.parent import SandboxLimits
from sparsepo_jax.stages.context import Run, say


def check_packages(config: Config) -> None:
    """UserError for a package that the stage measure would miss after all the work before it."""
    text = config.measure.text
    if "measure" not in config.stages or text is None:
        return
    needed = {
        ("rouge_score", "measures"): text.rouge and text.reference,
        ("sacrebleu", "measures"): text.self_bleu,
        ("bert_score", "bertscore"): text.bertscore and text.reference,
    }
    for (module, extra), is_needed in needed.items():
        if is_needed and find_spec(module) is None:
            raise UserError(
                f"measure.text needs {module}, which is not installed: pip install 'sparsepo_jax[{extra}]', "
                "or switch off what needs it"
            )


def measure(run: Run) -> None:
    """Writes measures.json and, sample by sample, measures_samples.jsonl, in the first process."""
    began_s = time.time()
    path, samples_path = run.output_dir / "measures.json", run.output_dir / "measures_samples.jsonl"
    if jax.process_index() != 0:
        return
    if run.marks.finished("measure", path, samples_path):
        say("measure: finished before")
        return
    records = _read_generations(run.output_dir / "generations.jsonl")
    measures: dict[str, Any] = {}
    samples = [
        {"index": record["index"], "sample": n} for record in records for n in range(len(record["samples"]))
    ]
    for name, (figures, of_samples) in _measure_parts(run, records).items():
        measures[name] = figures
        samples = [sample | more for sample, more in zip(samples, of_samples, strict=True)]
    run.unmark("measure")
    write_json(path, measures)
    write_jsonl(samples_path, samples)
    run.mark("measure", began_s)
    for name, figures in measures.items():
        listed = ", ".join(
            f"{figure} {value:.4f}"
            for figure, value in figures.items()
            if isinstance(value, float) and figure != "time_s"
        )
        say(f"measure: {name}: {listed} ({len(records)} prompts, {len(samples)} samples)")
    say(f"measure: {time.time() - began_s:.1f} s -> {path}")


def _measure_parts(run: Run, records: list[dict[str, Any]]) -> dict[str, tuple[dict, list[dict]]]:
    """{"text", "code"} as far as they are asked for: (figures, more of each sample)."""
    settings = run.config.measure
    parts = {}
    if settings.text is not None:
        text = settings.text
        parts["text"] = measure_text(
            records,
            reference=text.reference,
            rouge=text.rouge,
            self_bleu=text.self_bleu,
            distinct=text.distinct,
            bertscore=None if text.bertscore is None else (text.bertscore.model, text.bertscore.layer),
        )
    if settings.code is not None:
        code = settings.code
        limits = SandboxLimits(code.time_s, code.memory_mb)
        parts["code"] = measure_code(records, code.k, limits, code.workers, run.stop.check)
        missing = {"network", "processes", "files"} - set(parts["code"][0]["guards"])
        if missing:
            say(
                f"note: this machine does not guard {', '.join(sorted(missing))} against the programs that "
                "were "
                "run (sparsepo_jax/sandbox/parent.py)"
            )
    return parts


def _read_generations(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UserError(f"measure: expected {path}, found nothing: run the stage generate first")
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError):
        records = [None]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(
            f"measure: {path}: expected a JSON object a line, found something else; "
            "run the stage generate again"
        )
    if any(sample["text"] is None for record in records for sample in record["samples"]):
        raise UserError(
            f"measure: {path} holds token ids without text: set tokenizer and run the stage generate again"
        )
    return [{"row": {}} | record for record in records]
