"""Scores of pairs, and the batches that read every row of a table once."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from sparsepo_jax.build.compute import check_batch, put_on
from sparsepo_jax.build.data import abstract_batches, is_shared, make_reading_plan
from sparsepo_jax.build.reading import make_score_batch, score_ahead, score_names
from sparsepo_jax.build.weights import abstract_frozen
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.pipeline import make_batches
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval.scores import PairScore, mean_log_ratio, score_pairs
from sparsepo_jax.stages.context import Run
from sparsepo_jax.train.anchor import RUNNING
from sparsepo_jax.train.problem import Problem


def score_table(
    run: Run, table: TokenTable, weights: dict[str, Weights], reference: Weights
) -> list[PairScore]:
    """The scores of every pair, or row of one response, of a table, in order."""
    compile_scores(run, table, weights, reference)
    if RUNNING in run.problem.reads:  # the mean of these very rows
        anchor = mean_log_ratio(_score(run, run.problem, table, weights, reference))
    elif table.mismatched is not None:
        scores = _score(run, run.problem, table.mismatched, weights, reference)
        anchor = max(0.0, mean_log_ratio(scores))
    else:
        anchor = 0.0
    return _score(run, run.problem._replace(anchor=anchor), table, weights, reference)


def _score(
    run: Run, problem: Problem, table: TokenTable, weights: dict[str, Weights], reference: Weights
) -> list[PairScore]:
    size = run.config.evaluation.batch_size
    score_batch = make_score_batch(problem, run.mesh)
    with jax.set_mesh(run.mesh):
        return score_pairs(score_batch, put_on(run.mesh), in_order(run, table, size), weights, reference)


def compile_scores(
    run: Run, table: TokenTable, weights: dict[str, Any], reference: Weights | None = None
) -> Callable[[], tuple[int, float]]:
    """Begins to compile what score_table needs for a table; see Program.compile_ahead.

    Args:
        weights: abstract arrays will do.
        reference: the same; None: as the stage po has it.
    """
    size = run.config.evaluation.batch_size
    check_batch("evaluation.batch_size", size, 1, run.mesh)
    if reference is None:
        reference = abstract_frozen(run.config, "po", run.problem, run.spec, run.reference_spec, run.mesh)
    batches = abstract_in_order(run, table)
    if table.mismatched is not None:
        batches += abstract_in_order(run, table.mismatched)
    with jax.set_mesh(run.mesh):
        return score_ahead(run.problem, run.mesh, [(weights, reference, batch) for batch in batches])


def metric_names(run: Run, table: TokenTable, weights: dict[str, Any]) -> list[str]:
    """The names of the metrics of a pair. weights: abstract arrays will do."""
    reference = abstract_frozen(run.config, "po", run.problem, run.spec, run.reference_spec, run.mesh)
    with jax.set_mesh(run.mesh):
        return score_names(run.problem, run.mesh, (weights, reference, abstract_in_order(run, table)[0]))


def reads_weights(run: Run, table: TokenTable) -> bool:
    """Whether the masks that score these pairs come with them."""
    mask = run.config.objective.mask
    return mask is not None and mask.kind == "given" and table.has_weights


def abstract_in_order(run: Run, table: TokenTable, response_length: int | None = None) -> list[Any]:
    """Shapes and shardings of in_order's batches of evaluation.batch_size, one of each shape."""
    size = run.config.evaluation.batch_size
    plan = make_reading_plan(run.config, table, size, run.mesh, response_length=response_length)
    return abstract_batches(
        run.config,
        _alone(table),
        plan,
        run.mesh,
        with_weights=reads_weights(run, table),
        response_length=response_length,
    )


def _alone(table: TokenTable) -> TokenTable:
    """Every row is read, whatever it counts in training; mismatched responses are read by themselves."""
    return table.with_columns(pair_weight_N=None, mismatched=None)


def in_order(
    run: Run, table: TokenTable, batch_size: int, response_length: int | None = None
) -> Iterator[PairBatch]:
    """This process's part of batches [1, B, ...] that hold every row once.

    Args:
        response_length: see build.data.make_reading_plan.
    """
    plan = make_reading_plan(run.config, table, batch_size, run.mesh, response_length=response_length)
    batches = make_batches(
        _alone(table),
        plan,
        start=0,
        stop=plan.batches_per_epoch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shared=is_shared(run.config),
        with_weights=reads_weights(run, table),
        response_length=response_length,
    )
    return run.until_stopped(batches)
