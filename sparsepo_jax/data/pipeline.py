"""From a plan to host batches, served by Grain: random access to global batch n, read ahead by threads."""

from collections.abc import Iterator

import numpy as np

from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.batching import BatchPlan, PlannedBatch
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
    with_weights: bool,
) -> Iterator[PairBatch]:
    """This process's part of global batches start..stop-1, numpy arrays [micro-steps, pairs of this process, ...].

    Each micro-step's pairs are cut into process_count equal parts in order. with_weights: fill weights_BPT from the table.
    """
    import grain

    def batch(n: int) -> PairBatch:
        planned = plan.batch(n)
        whole = collate(table, planned, plan.batch_size, with_weights=with_weights)

        def mine(x: np.ndarray) -> np.ndarray:
            x = x.reshape(micro_steps, process_count, -1, *x.shape[1:])
            return x[:, process_index]

        return PairBatch(*(None if x is None else mine(x) for x in whole))

    served = grain.MapDataset.range(start, stop).map(batch)
    return iter(served.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=READ_AHEAD)))


def collate(table: TokenTable, planned: PlannedBatch, batch_size: int, *, with_weights: bool = False) -> PairBatch:
    """The planned rows as arrays [batch_size, ...]: prompts end at the same column, responses begin at the same one.

    A filler has weight 0 and a prompt of one token, so that its attention has something to see.

        prompt 1 2, responses 3 4 / 5        prompt  0 1 2    response  3 4 0    valid  x x .
        (prompt_length 3, response_length 3)                            5 0 0           x . .
    """
    B, P, S, T = batch_size, table.responses_per_row, planned.prompt_length, planned.response_length
    prompt_BS, prompt_valid_BS = np.zeros((B, S), np.int32), np.zeros((B, S), bool)
    prompt_valid_BS[:, -1] = True
    response_BPT, valid_BPT = np.zeros((B, P, T), np.int32), np.zeros((B, P, T), bool)
    weights_BPT = np.zeros((B, P, T), np.float32) if with_weights else None
    ref_logp_BPT = None if table.all_ref_logp is None else np.zeros((B, P, T), np.float32)
    row_B, weight_B = np.zeros(B, np.int32), np.zeros(B, np.float32)
    for b, row in enumerate(planned.rows):
        prompt = table.prompt(row)
        prompt_BS[b, S - len(prompt) :], prompt_valid_BS[b, S - len(prompt) :] = prompt, True
        for p in range(P):
            response = table.response(row, p)
            response_BPT[b, p, : len(response)], valid_BPT[b, p, : len(response)] = response, True
            if weights_BPT is not None:
                weights_BPT[b, p, : len(response)] = table.weights(row, p)
            if ref_logp_BPT is not None:
                ref_logp_BPT[b, p, : len(response)] = table.ref_logp(row, p)
        row_B[b], weight_B[b] = row, 1.0
    return PairBatch(prompt_BS, prompt_valid_BS, response_BPT, valid_BPT, row_B, weight_B, weights_BPT, ref_logp_BPT)
