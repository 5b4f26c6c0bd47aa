"""Measures of generations.jsonl: a record a prompt, {"index", "origin", "prompt", "samples": [{"text"}, ...], "row": other columns of the data's row}."""

from collections.abc import Callable, Sequence
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.eval import text_measures
from sparsepo_jax.sandbox.code_tests import mean_pass_at_k, pass_at_k, program_of
from sparsepo_jax.sandbox.parent import Limits, guards, run_programs

CHUNK = 256  # programs between two looks at whether to stop
Record = dict[str, Any]


def measure_code(
    records: Sequence[Record],
    ks: Sequence[int],
    limits: Limits,
    workers: int | None,
    look: Callable[[], None],
) -> tuple[dict, list[Record]]:
    """({pass@k, problems, samples, guards, counts: samples and passes of each problem}, {passed, why} of each sample). look: called now and then."""
    for record in records:
        pass_at_k(len(record["samples"]), 0, max(ks))  # before anything runs
    programs = [
        program_of(record["row"], record["prompt"], sample["text"])
        for record in records
        for sample in record["samples"]
    ]
    outcomes = []
    for first in range(0, len(programs), CHUNK):
        look()
        outcomes += run_programs(programs[first : first + CHUNK], limits, workers)
    left, counts = iter(outcomes), []
    for record in records:
        passes = sum(next(left).passed for _ in record["samples"])
        counts.append(
            {
                "index": record["index"],
                "origin": record["origin"],
                "samples": len(record["samples"]),
                "passed": passes,
            }
        )
    found = {
        f"pass@{k}": mean_pass_at_k([(count["samples"], count["passed"]) for count in counts], k) for k in ks
    }
    found |= {
        "problems": len(records),
        "samples": len(outcomes),
        **limits._asdict(),
        "guards": list(guards()),
        "counts": counts,
    }
    return found, [{"passed": outcome.passed, "why": outcome.why} for outcome in outcomes]


def measure_text(
    records: Sequence[Record],
    *,
    reference: str | None,
    rouge: bool,
    self_bleu: bool,
    distinct: bool,
    bertscore: tuple[str, int | None] | None,
) -> tuple[dict, list[Record]]:
    """(means over samples, what is known of each sample). bertscore: (model, layer)."""
    groups = [[sample["text"] for sample in record["samples"]] for record in records]
    texts = [text for group in groups for text in group]
    of_each: list[Record] = [{"words": len(text.split())} for text in texts]
    if reference is not None and (rouge or bertscore is not None):
        references = [_reference(record, reference) for record in records for _ in record["samples"]]
        if rouge:
            of_each = [
                one | score
                for one, score in zip(of_each, text_measures.rouge(texts, references), strict=True)
            ]
        if bertscore is not None:
            of_each = [
                one | {"bertscore": score}
                for one, score in zip(
                    of_each, text_measures.bertscore(texts, references, *bertscore), strict=True
                )
            ]
    found = {name: sum(one[name] for one in of_each) / len(of_each) for name in of_each[0]}
    if self_bleu:
        found["self_bleu"] = text_measures.self_bleu(groups)
    if distinct:
        found |= {f"distinct{n}": text_measures.distinct(texts, n) for n in (1, 2, 3)}
    return found | {"prompts": len(records), "samples": len(texts)}, of_each


def _reference(record: Record, column: str) -> str:
    """Text, or the last turn of messages."""
    found = record["row"].get(column)
    if isinstance(found, list) and found and isinstance(found[-1], dict):
        found = found[-1].get("content")
    if not isinstance(found, str):
        columns = ", ".join(sorted(record["row"])) or "(none)"
        raise UserError(
            f"{record['origin']}: expected a text in the column {column} (measure.text.reference), got the columns {columns}; "
            "name another, or set it to null"
        )
    return found
