"""What rewards of single responses are measured from: KTO's baseline, and BCO's running mean.

Both are means over a global batch, which are computed in a pass of their own, without gradient, over all of
its micro-steps and devices. So a number of micro-steps or another mesh does not change an update.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch, Scalar, TokenStats
from sparsepo_jax.losses.token_weighted import summed_log_ratio
from sparsepo_jax.train.forward import forward
from sparsepo_jax.train.problem import Problem, pair_keys

# What an objective reads: labels of responses; the mean log-ratio of mismatched responses; the mean log-ratio
# of all rows so far.
LABEL, MISMATCHED, RUNNING = "label", "mismatched", "running"


class Running(NamedTuple):
    """The mean log-ratio of all rows trained on so far.

    Attributes:
        mean: of the sums over responses, each token by its weight in the mask, nats; 0 before the first row.
        rows: how many, each by its weight.
    """

    mean: Float[Array, ""]
    rows: Float[Array, ""]


def start_running() -> Running:
    """Before the first step."""
    return Running(jnp.float32(0.0), jnp.float32(0.0))


def with_labels(problem: Problem, stats: TokenStats, batch: PairBatch) -> TokenStats:
    """The statistics with what objectives of single responses read; unchanged for all others.

    Args:
        problem: says what the objective reads, and has the anchor.
        stats: of the batch.
        batch: pairs, whose chosen responses are desirable, or rows of one response with labels.
    """
    if LABEL not in problem.reads:
        return stats
    desirable_BP = None if batch.label_B is None else batch.label_B[:, None]
    return stats._replace(desirable_BP=desirable_BP, anchor=jnp.asarray(problem.anchor, jnp.float32))


def needs_pass(problem: Problem) -> bool:
    """Whether the anchor of a batch has to be computed before its loss.

    Args:
        problem: says what the objective reads.
    """
    return not problem.reads.isdisjoint((MISMATCHED, RUNNING))


def anchor_sums(
    problem: Problem,
    weights: dict[str, Weights],
    reference: Weights | None,
    batch: PairBatch,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What the anchor is a mean of: the sum of log-ratios of a batch, nats, and the weight of its rows.

    Args:
        problem: what is computed.
        weights: of policy and masks.
        reference: its weights.
        batch: of one micro-step, with mismatched responses if the objective reads them.
        step: number of the step.
    """
    read: Any = batch.mismatched if MISMATCHED in problem.reads else batch
    if read is None:
        raise ValueError("the objective needs batches with mismatched responses")
    with jax.named_scope("anchor"):
        key_B = pair_keys(problem.seed, step, read.row_B)
        policy, masks_of = weights["policy"], weights["masks"]
        stats, masks, _ = forward(
            problem, policy, masks_of, reference, read, key_B, training=False, step=step
        )
        ratio_B = summed_log_ratio(stats, masks).mean(axis=1)
        counted_B = jnp.where(read.weight_B > 0, read.weight_B * ratio_B, 0.0)
        return jnp.sum(counted_B), read.weight_B.sum()


def next_anchor(
    total: Float[Array, ""], rows: Float[Array, ""], running: Running | None
) -> tuple[Scalar, Running | None]:
    """(the anchor of a global batch in nats, the running mean with the batch in it).

    KTO's is not below 0, as a KL is not.

    Args:
        total: sum of log-ratios of the global batch, nats.
        rows: of the global batch, each by its weight.
        running: the mean before the batch. None: the objective has none.
    """
    mean = total / jnp.maximum(rows, 1e-30)
    if running is None:
        return jnp.maximum(mean, 0.0), None
    all_rows = running.rows + rows
    mean = running.mean + (mean - running.mean) * rows / jnp.maximum(all_rows, 1e-30)
    return mean, Running(mean, all_rows)
