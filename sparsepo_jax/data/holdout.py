"""A held-out part, by prompt."""

import hashlib

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.table import TokenTable


def split_holdout(table: TokenTable, share: float, seed: int) -> tuple[TokenTable, TokenTable]:
    """(rest, held out). All rows of a prompt go to one side; which one depends on prompt and seed alone, not on order or on other rows.

    About `share` of the distinct prompts are held out, so that adding rows never moves the others. UserError if a side is empty.
    """
    keys, row_key_N = np.unique(table.prompt_key_N, return_inverse=True)
    draws = [hashlib.sha256(b"%d:%d" % (seed, key)).digest()[:8] for key in keys]
    held_K = np.array([int.from_bytes(draw, "big") < share * 2.0**64 for draw in draws])
    if held_K.all() or not held_K.any():
        side = "training" if held_K.all() else "evaluation"
        raise UserError(
            f"data.holdout.share {share} leaves none of {len(keys)} prompts for {side}: change the share or its seed"
        )
    held_N = held_K[row_key_N]
    return table.take(np.flatnonzero(~held_N)), table.take(np.flatnonzero(held_N))
