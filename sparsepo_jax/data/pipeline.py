"""From a plan to host batches, served by Grain: random access to global batch n, read ahead by threads."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsepo_jax.core.types import PairBatch, PromptBatch
from sparsepo_jax.data.batching import BatchPlan, PlannedPrompts
from sparsepo_jax.data.packing import FILLER, Shape, pack
from sparsepo_jax.data.table import TokenTable

THREADS = 2
READ_AHEAD = 4  # batches


def make_batches(
    table: TokenTable,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    process_index: int,
    process_count: int,
    shared: bool,
    with_weights: bool,
    response_length: int | None = None,
) -> Iterator[PairBatch]:
    """This process's part of some global batches: numpy arrays [micro-steps, its rows or pairs, ...].

    The rows of tokens of each micro-step are cut into process_count equal parts, in order.

    Args:
        table: whose rows the plan names.
        plan: made with the sizes that `sizes_of` returns for the same `shared`.
        start: the first batch.
        stop: the batch after the last.
        process_index: of this process, from 0.
        process_count: how many processes share a batch. Times the plan's micro-steps, it divides the plan's
            rows of tokens.
        shared: whether the prompt runs once for all responses of a pair.
        with_weights: whether weights_BPT is filled from the table.
        response_length: tokens of the longest response that there is room for. None: the table's longest.
    """
    import grain

    T = _room(table, response_length)

    def batch(n: int) -> PairBatch:
        numbers, shape = plan.batch(n)
        packed = pack(table, numbers, shape, T, rows=plan.rows, shared=shared, with_weights=with_weights)
        return _part(packed, plan.micro_steps, process_index, process_count)

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=READ_AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(options))


def empty_batch(
    table: TokenTable,
    plan: BatchPlan,
    shape: Shape,
    *,
    shared: bool,
    with_weights: bool,
    response_length: int | None = None,
) -> PairBatch:
    """A global batch without pairs, whose arrays have the shapes and types of every batch of this shape.

    Args:
        table: the rows that real batches are made of; no row of it is used.
        plan: whose batches it is like.
        shape: one of the plan's.
        shared: as for `make_batches`.
        with_weights: as for `make_batches`.
        response_length: as for `make_batches`, in tokens.
    """
    T = _room(table, response_length)
    numbers = np.full(plan.batch_size, FILLER)
    packed = pack(table, numbers, shape, T, rows=plan.rows, shared=shared, with_weights=with_weights)
    return _part(packed, plan.micro_steps, 0, 1)


def _room(table: TokenTable, response_length: int | None) -> int:
    """Tokens of a response, rounded up to eights."""
    longest = int(table.response_lengths_NP.max()) if response_length is None else response_length
    return -(-longest // 8) * 8


def make_prompt_batches(
    table: TokenTable,
    planned: Sequence[PlannedPrompts],
    batch_size: int,
    *,
    process_index: int,
    process_count: int,
) -> Iterator[PromptBatch]:
    """This process's part of batches of prompts, as numpy arrays [1, prompts of this process, ...].

    A filler has a prompt of one token, so that its attention has something to see.

    Args:
        table: whose rows are named.
        planned: which rows form each batch, see `plan_prompts`.
        batch_size: prompts of a batch, fillers included.
        process_index: of this process, from 0.
        process_count: how many processes share a batch; divides batch_size.
    """
    for rows, length in planned:
        prompt_BS = np.zeros((batch_size, length), np.int32)
        valid_BS = np.zeros((batch_size, length), bool)
        valid_BS[:, -1] = True
        row_B = np.zeros(batch_size, np.int32)
        weight_B = np.zeros(batch_size, np.float32)
        for b, row in enumerate(rows):
            prompt = table.prompt(row)
            prompt_BS[b, length - len(prompt) :] = prompt
            valid_BS[b, length - len(prompt) :] = True
            row_B[b] = row
            weight_B[b] = 1.0
        yield _part(PromptBatch(prompt_BS, valid_BS, row_B, weight_B), 1, process_index, process_count)


def _part(batch: Any, micro_steps: int, process_index: int, process_count: int) -> Any:
    """[micro-steps, this process's part, ...] of arrays whose first axis holds a global batch.

    That axis holds one micro-step after the other, and in each of them one process after the other.
    """
    import jax

    def part(x: np.ndarray) -> np.ndarray:
        return x.reshape(micro_steps, process_count, -1, *x.shape[1:])[:, process_index]

    return jax.tree.map(part, batch)
