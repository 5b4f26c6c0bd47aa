"""Tiny models and batches that many tests share."""

import numpy as np

from sparsepo_jax.core.types import PairBatch

GPT2 = {"model_type": "gpt2", "vocab_size": 31, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
NEOX = {"model_type": "gpt_neox", "vocab_size": 31, "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "rotary_pct": 0.5, "hidden_act": "gelu"}
NEOX_SEQUENTIAL = NEOX | {"use_parallel_residual": False, "attention_bias": False}


def random_batch(pairs: int = 4, prompt: int = 5, tokens: int = 6, vocab: int = 31, seed: int = 0) -> PairBatch:
    """Pairs of various lengths; padded positions hold ids that do occur elsewhere."""
    rng = np.random.default_rng(seed)
    prompt_lengths, lengths = rng.integers(1, prompt + 1, pairs), rng.integers(1, tokens + 1, (pairs, 2))
    prompt_lengths[0], lengths[0] = prompt, tokens
    return PairBatch(
        prompt_BS=rng.integers(0, vocab, (pairs, prompt)).astype(np.int32),
        prompt_valid_BS=np.arange(prompt)[None, ::-1] < prompt_lengths[:, None],
        response_BPT=rng.integers(0, vocab, (pairs, 2, tokens)).astype(np.int32),
        valid_BPT=np.arange(tokens) < lengths[..., None],
        row_B=np.arange(pairs, dtype=np.int32),
        weight_B=np.ones(pairs, np.float32),
        weights_BPT=None,
    )
