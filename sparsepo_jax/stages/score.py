"""The stage score: every evaluation pair, token by token, in scores.jsonl.

score/facts.json says for who reads them later of which vocabulary the token ids are (a digest), and
how many responses were cut at data.max_length.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.tokenizers import vocabulary_digest
from sparsepo_jax.eval.records import pair_record
from sparsepo_jax.eval.scores import PairScore
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.scores import score_table
from sparsepo_jax.stages.weights import current_weights, reference_weights


def score(run: Run) -> None:
    """Scores the evaluation pairs with the weights as they are now."""
    began_s = time.time()
    path, facts_path = run.output_dir / "scores.jsonl", run.output_dir / "score" / "facts.json"
    if run.marks.finished("score", path, facts_path):
        say("score: finished before")
        return
    now, reference = current_weights(run), reference_weights(run)
    sets = run.evaluation_sets
    scores = {name: score_table(run, table, now, reference) for name, table in sets.items()}
    run.unmark("score")
    if jax.process_index() == 0:
        write_jsonl(path, _records(sets, scores))
        cut = sum(int(table.response_cut_NP.sum()) for table in sets.values())
        write_json(facts_path, {"vocabulary": vocabulary_digest(run.tokenizer), "cut_responses": cut})
    run.mark("score", began_s)
    for name, of_set in scores.items():
        mean_loss = np.mean([pair.metrics["loss"] for pair in of_set])
        of = f" of {name}" if name else ""
        say(f"score: {len(of_set)} {sets[name].unit}{of}, mean loss {mean_loss:.4f} -> {path}")


def _records(sets: dict[str, TokenTable], scores: dict[str, list[PairScore]]) -> Iterator[dict[str, Any]]:
    """A record a pair; one of a set that has a name says it."""
    for name, table in sets.items():
        for pair in scores[name]:
            record = pair_record(pair, table, None, with_text=False)
            yield record | {"set": name} if name else record


def write_pairs(run: Run, path: Path, table: TokenTable, scores: list[PairScore]) -> None:
    """Writes a record with texts for each pair, in the first process; see eval.records."""
    tokenizer = run.tokenizer
    if jax.process_index() == 0:
        write_jsonl(path, (pair_record(pair, table, tokenizer, with_text=True) for pair in scores))
