"""The stage measure: what generations.jsonl is worth, in measures.json and, sample by sample, measures_samples.jsonl. Reads files, no model."""

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
from sparsepo_jax.sandbox.parent import Limits


def check_packages(config: Config) -> None:
    """UserError for a package that the stage measure would miss after all the work before it."""
    if "measure" not in config.stages or (text := config.measure.text) is None:
        return
    needed = {
        ("rouge_score", "measures"): text.rouge and text.reference,
        ("sacrebleu", "measures"): text.self_bleu,
        ("bert_score", "bertscore"): text.bertscore and text.reference,
    }
    for (module, extra), wanted in needed.items():
        if wanted and find_spec(module) is None:
            raise UserError(
                f"measure.text needs {module}, which is not installed: pip install 'sparsepo_jax[{extra}]', or switch off what needs it"
            )


def measure(run) -> None:
    """measures.json and measures_samples.jsonl; by the first process alone."""
    began_s, settings = time.time(), run.config.measure
    path, samples_path = run.output_dir / "measures.json", run.output_dir / "measures_samples.jsonl"
    if jax.process_index() != 0:
        return
    if run.marks.finished("measure", path, samples_path):
        run.say("measure: finished before")
        return
    records = _read(run.output_dir / "generations.jsonl")
    found: dict[str, Any] = {}
    lines = [
        {"index": record["index"], "sample": n} for record in records for n in range(len(record["samples"]))
    ]
    if settings.text is not None:
        text = settings.text
        bertscore = None if text.bertscore is None else (text.bertscore.model, text.bertscore.layer)
        found["text"], of_each = measure_text(
            records,
            reference=text.reference,
            rouge=text.rouge,
            self_bleu=text.self_bleu,
            distinct=text.distinct,
            bertscore=bertscore,
        )
        lines = [line | one for line, one in zip(lines, of_each, strict=True)]
    if settings.code is not None:
        code = settings.code
        found["code"], of_each = measure_code(
            records, code.k, Limits(code.time_s, code.memory_mb), code.workers, run.stop.check
        )
        lines = [line | one for line, one in zip(lines, of_each, strict=True)]
        missing = {"network", "processes", "files"} - set(found["code"]["guards"])
        if missing:
            run.say(
                f"note: this machine does not guard {', '.join(sorted(missing))} against the programs that were run (sparsepo_jax/sandbox/parent.py)"
            )
    run.unmark("measure")
    write_json(path, found)
    write_jsonl(samples_path, lines)
    run.mark("measure", began_s)
    for part, numbers in found.items():
        said = ", ".join(
            f"{name} {x:.4f}" for name, x in numbers.items() if isinstance(x, float) and name != "time_s"
        )
        run.say(f"measure: {part}: {said} ({len(records)} prompts, {len(lines)} samples)")
    run.say(f"measure: {time.time() - began_s:.1f} s -> {path}")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UserError(f"measure: expected {path}, found nothing: run the stage generate first")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if any(sample["text"] is None for record in records for sample in record["samples"]):
        raise UserError(
            f"measure: {path} holds token ids without text: set tokenizer and run the stage generate again"
        )
    return [{"row": {}} | record for record in records]
