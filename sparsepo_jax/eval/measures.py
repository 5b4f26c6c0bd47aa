"""Measures of generations.jsonl, which has one record for each prompt.

{"index", "origin", "prompt", "samples": [{"text"}, ...], "row": the other columns of the data's row}
"""

from collections.abc import Callable, Sequence
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.eval import text_measures
from sparsepo_jax.sandbox.code_tests import mean_pass_at_k, pass_at_k, program_of
from sparsepo_jax.sandbox.parent import Outcome, SandboxLimits, guards, run_programs

CHUNK = 256  # programs between two looks at whether to stop
Record = dict[str, Any]


def measure_code(
    records: Sequence[Record],
    ks: Sequence[int],
    limits: SandboxLimits,
    workers: int | None,
    look: Callable[[], None],
) -> tuple[dict, list[Record]]:
    """Runs all answers with their tests.

    Args:
        records: answers to programming problems.
        ks: the k of each pass@k, at most the samples of any problem.
        limits: of each program.
        workers: programs at a time; None: one for each CPU.
        look: called between chunks of programs; it raises what the run is to stop with.

    Returns:
        ({"pass@k", "problems", "samples", limits, "guards", "counts" of each problem}, {"passed", "why"} of
        each sample).

    Raises:
        UserError: a row has no tests, or a problem too few samples.
    """
    for record in records:
        pass_at_k(len(record["samples"]), 0, max(ks))  # before anything runs
    programs = [
        program_of(record["row"], record["prompt"], sample["text"])
        for record in records
        for sample in record["samples"]
    ]
    outcomes: list[Outcome] = []
    for first in range(0, len(programs), CHUNK):
        look()
        outcomes += run_programs(programs[first : first + CHUNK], limits, workers)
    remaining = iter(outcomes)
    counts = []
    for record in records:
        samples = len(record["samples"])
        passed = sum(next(remaining).passed for _ in range(samples))
        about = {"index": record["index"], "origin": record["origin"]}
        counts.append({**about, "samples": samples, "passed": passed})
    of_problems = [(count["samples"], count["passed"]) for count in counts]
    figures = {
        **{f"pass@{k}": mean_pass_at_k(of_problems, k) for k in ks},
        "problems": len(records),
        "samples": len(outcomes),
        **limits._asdict(),
        "guards": list(guards()),
        "counts": counts,
    }
    return figures, [outcome._asdict() for outcome in outcomes]


def measure_text(
    records: Sequence[Record],
    *,
    reference: str | None,
    rouge: bool,
    self_bleu: bool,
    distinct: bool,
    bertscore: tuple[str, int | None] | None,
) -> tuple[dict, list[Record]]:
    """Measures the texts of all answers.

    Args:
        records: answers.
        reference: the column of the data that holds a reference answer; None: there is none.
        rouge: whether to compare with the reference by ROUGE.
        self_bleu: whether to compare the answers to one prompt with each other.
        distinct: whether to count distinct n-grams, n from 1 to 3.
        bertscore: (model, layer) with which to compare with the reference; None: not.

    Returns:
        (means over samples and figures of all texts, what is known of each sample).
    """
    groups = [[sample["text"] for sample in record["samples"]] for record in records]
    texts = [text for group in groups for text in group]
    of_each: list[Record] = [{"words": len(text.split())} for text in texts]
    if reference is not None and (rouge or bertscore is not None):
        references = [_reference(record, reference) for record in records for _ in record["samples"]]
        if rouge:
            for sample, scores in zip(of_each, text_measures.rouge(texts, references), strict=True):
                sample.update(scores)
        if bertscore is not None:
            f1s = text_measures.bertscore(texts, references, *bertscore)
            for sample, f1 in zip(of_each, f1s, strict=True):
                sample["bertscore"] = f1
    figures: dict[str, Any] = {
        name: sum(sample[name] for sample in of_each) / len(of_each) for name in of_each[0]
    }
    if self_bleu:
        figures["self_bleu"] = text_measures.self_bleu(groups)
    if distinct:
        figures |= {f"distinct{n}": text_measures.distinct(texts, n) for n in (1, 2, 3)}
    return figures | {"prompts": len(records), "samples": len(texts)}, of_each


def _reference(record: Record, column: str) -> str:
    """The reference answer of a row: text, or the last turn of messages."""
    value = record["row"].get(column)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        columns = ", ".join(sorted(record["row"])) or "(none)"
        raise UserError(
            f"{record['origin']}: expected a text in the column {column} (measure.text.reference), got "
            f"the columns {columns}; name another, or set it to null"
        )
    return value
