"""The stage score: every evaluation pair, token by token, in scores.jsonl."""

import time
from pathlib import Path

import jax
import numpy as np

from sparsepo_jax.core.files import write_jsonl
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval.records import pair_record
from sparsepo_jax.eval.scores import PairScore
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.scores import score_table
from sparsepo_jax.stages.weights import current_weights, reference_weights


def score(run: Run) -> None:
    """Scores the evaluation pairs with the weights as they are now."""
    began_s = time.time()
    path = run.output_dir / "scores.jsonl"
    if run.marks.finished("score", path):
        say("score: finished before")
        return
    table = run.pairs[1]
    scores = score_table(run, table, current_weights(run), reference_weights(run))
    run.unmark("score")
    write_pairs(run, path, table, scores)
    run.mark("score", began_s)
    mean_loss = np.mean([pair.metrics["loss"] for pair in scores])
    say(f"score: {len(scores)} pairs, mean loss {mean_loss:.4f} -> {path}")


def write_pairs(
    run: Run, path: Path, table: TokenTable, scores: list[PairScore], *, with_text: bool = False
) -> None:
    """Writes a record a pair, in the first process; see eval.records."""
    tokenizer = run.tokenizer if with_text else None
    if jax.process_index() == 0:
        write_jsonl(path, (pair_record(pair, table, tokenizer, with_text=with_text) for pair in scores))
