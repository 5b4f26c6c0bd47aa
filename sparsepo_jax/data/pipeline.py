"""From a plan to host batches, served by Grain: random access to global batch n, read ahead by threads."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsepo_jax.core.types import PairBatch, PromptBatch
from sparsepo_jax.data.batching import BatchPlan, PlannedPrompts
from sparsepo_jax.data.packing import FILLER, Shape, pack
from sparsepo_jax.data.table import TokenTable

THREADS, READ_AHEAD = 2, 4


def make_batches(
    table: TokenTable,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    micro_steps: int,
    process_index: int,
    process_count: int,
    shared: bool,
    with_weights: bool,
    response_length: int | None = None,
) -> Iterator[PairBatch]:
    """This process's part of global batches start..stop-1, numpy arrays [micro-steps, rows or pairs of this process, ...].

    Each micro-step's rows of tokens are cut into process_count equal parts in order. shared: see packing.sizes_of, by which the plan must be made.
    with_weights: fill weights_BPT from the table. response_length: the longest response that there is room for; None: the table's longest.
    """
    import grain

    T = _room(table, response_length)

    def batch(n: int) -> PairBatch:
        planned = plan.batch(n)
        whole = pack(
            table, planned.rows, planned.shape, T, rows=plan.rows, shared=shared, with_weights=with_weights
        )
        return _part(whole, micro_steps, process_index, process_count)

    served = grain.MapDataset.range(start, stop).map(batch)
    return iter(
        served.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=READ_AHEAD))
    )


def empty_batch(
    table: TokenTable,
    plan: BatchPlan,
    shape: Shape,
    *,
    micro_steps: int,
    shared: bool,
    with_weights: bool,
    response_length: int | None = None,
) -> PairBatch:
    """A global batch of this shape without rows: its arrays are those of every such batch that make_batches gives."""
    fillers = np.full(plan.batch_size, FILLER)
    whole = pack(
        table,
        fillers,
        shape,
        _room(table, response_length),
        rows=plan.rows,
        shared=shared,
        with_weights=with_weights,
    )
    return _part(whole, micro_steps, 0, 1)


def _room(table: TokenTable, response_length: int | None) -> int:
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
    """This process's part of the planned prompts, arrays [1, prompts of this process, ...]. A filler has a prompt of one token, so that its
    attention has something to see."""
    for rows, length in planned:
        prompt_BS, valid_BS = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), bool)
        valid_BS[:, -1] = True
        row_B, weight_B = np.zeros(batch_size, np.int32), np.zeros(batch_size, np.float32)
        for b, row in enumerate(rows):
            prompt = table.prompt(row)
            prompt_BS[b, length - len(prompt) :], valid_BS[b, length - len(prompt) :] = prompt, True
            row_B[b], weight_B[b] = row, 1.0
        yield _part(PromptBatch(prompt_BS, valid_BS, row_B, weight_B), 1, process_index, process_count)


def _part(whole: Any, micro_steps: int, process_index: int, process_count: int) -> Any:
    """[micro-steps, this process's part, ...] of arrays whose first axis holds all micro-steps, and in each of them all processes."""
    import jax

    return jax.tree.map(
        lambda x: x.reshape(micro_steps, process_count, -1, *x.shape[1:])[:, process_index], whole
    )
