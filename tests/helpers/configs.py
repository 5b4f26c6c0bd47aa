"""Configs without files, and statistics and masks for objectives."""

import jax.numpy as jnp
import numpy as np

from helpers.tiny import GPT2, random_batch
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.types import TokenMasks, TokenStats

PATHS = {
    "stages": ["po"],
    "output_dir": "unused",
    "policy": {"config": GPT2},
    "data": {"train": [{"path": "unused.jsonl"}]},
}


# What an objective needs besides its kind.
NEEDED = {"mix": {"parts": [{"weight": 0.7, "objective": {"kind": "ipo"}}, {"objective": {"kind": "nca"}}]}}


def make_config(**changes) -> Config:
    return Config.model_validate(PATHS | changes)


def made_stats(seed=0) -> tuple[TokenStats, TokenMasks]:
    rng, batch = np.random.default_rng(seed), random_batch()
    valid = batch.valid_BPT
    ratio, kl, masks = (
        rng.normal(0, 0.5, valid.shape),
        rng.exponential(0.2, valid.shape),
        rng.uniform(0, 2, (2, *valid.shape)),
    )
    ref = -rng.exponential(1.5, valid.shape) - 2

    def zero(x):
        return jnp.asarray(np.where(valid, x, 0), jnp.float32)

    importance, baseline = rng.exponential(1.0, valid.shape), rng.normal(0, 5.0, valid.shape)
    stats = TokenStats(
        zero(ref + ratio), zero(ref), zero(kl), jnp.asarray(valid), zero(importance), zero(baseline)
    )
    return stats, TokenMasks(zero(masks[0]), zero(masks[1]))
