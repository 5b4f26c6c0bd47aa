"""Compiled programs that read and train nothing: scores, log-ratios, the reference's log-probs.

All makers are cached and take numbers as arguments of the program, so that the next run of the process finds
what this one has compiled.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sparsepo_jax.build.objective import without_objective
from sparsepo_jax.core.program import Program
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.sharding.mesh import (
    replicated,
)
from sparsepo_jax.train.forward import reference_tokens, response_greedy, response_log_ratio
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import (
    make_pair_scores,
)


@functools.cache
def _on_every_host(function: Callable, mesh: Mesh):
    """The compiled function, with its results on every host."""
    return Program(jax.jit(function, out_shardings=replicated(mesh)))


def make_score_batch(problem: Problem, mesh: Mesh):
    """score_batch(weights, reference, batch [1, B, ...]) for eval.scores, its results on every host."""
    return functools.partial(_on_every_host(_score, mesh), problem)


def score_ahead(problem: Problem, mesh: Mesh, calls: list[tuple]) -> Callable[[], tuple[int, float]]:
    """Program.compile_ahead of score_batch's calls."""
    return _on_every_host(_score, mesh).compile_ahead([(problem, *call) for call in calls])


def score_names(problem: Problem, mesh: Mesh, call: tuple) -> list[str]:
    """The names of the metrics that score_batch gives. call: its arguments, abstract ones allowed."""
    return list(jax.eval_shape(_on_every_host(_score, mesh).jitted, problem, *call)[0])


def _score(problem: Problem, weights: dict[str, Weights], reference: Weights, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return (
        *make_pair_scores(problem, training=False)(weights, reference, batch, jnp.int32(0)),
        batch.row_B,
        batch.weight_B,
    )


def make_sum_log_ratios(problem: Problem, mesh: Mesh):
    """sum over a batch's rows [1, B, ...] of log pi(y) - log pi_ref(y), nats, on every host."""
    return functools.partial(_on_every_host(_sum_log_ratios, mesh), without_objective(problem))


def sum_log_ratios_ahead(problem: Problem, mesh: Mesh, calls: list[tuple]) -> None:
    """Program.compile_ahead of make_sum_log_ratios' calls, to its end."""
    program = _on_every_host(_sum_log_ratios, mesh)
    program.compile_ahead([(without_objective(problem), *call) for call in calls])()


def _sum_log_ratios(problem: Problem, policy: Weights, reference: Weights, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return jnp.sum(
        jnp.where(batch.weight_B > 0, response_log_ratio(problem, policy, reference, batch)[:, 0], 0.0)
    )


def make_score_responses(problem: Problem, mesh: Mesh):
    """response_greedy of a batch [1, B, ...], with its rows and their weights, on every host."""
    return functools.partial(_on_every_host(_score_responses, mesh), without_objective(problem))


def _score_responses(problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return *response_greedy(problem, policy, base, batch), batch.row_B, batch.weight_B


def make_reference_tokens(problem: Problem, mesh: Mesh):
    """reference_tokens of a batch [1, B, ...], with its rows and their weights, on every host."""
    return functools.partial(_on_every_host(_reference_tokens, mesh), problem._replace(objective=None))


def _reference_tokens(problem: Problem, reference: Weights, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return batch.row_B, batch.weight_B, *reference_tokens(problem, reference, batch)
