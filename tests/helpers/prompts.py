"""Padded prompts, and what the sampler answers them."""

import jax.numpy as jnp
import numpy as np

from sparsepo_jax.core.types import PromptBatch
from sparsepo_jax.generate.sampler import generate, make_sampler

LENGTHS = np.array([7, 2, 5, 4, 1, 7, 3, 6])


def prompts(rows=8, vocab=31, first_row=0) -> PromptBatch:
    """Prompts of various lengths, padded on the left with ids that do occur; a host batch [1, B, ...]."""
    ids_BS = np.random.default_rng(3).integers(0, vocab, (8, 7)).astype(np.int32)[:rows]
    valid_BS = np.arange(7)[::-1] < LENGTHS[:rows, None]
    row_B = np.arange(first_row, first_row + rows, dtype=np.int32)
    return PromptBatch(*(x[None] for x in (ids_BS, valid_BS, row_B, np.ones(rows, np.float32))))


def run(graph, weights, mesh, sampling, batch=None, tokenizer=None):
    sampler = make_sampler(graph, jnp.dtype(jnp.float32), mesh, sampling)
    return list(generate(sampler, weights, [prompts() if batch is None else batch], tokenizer))
