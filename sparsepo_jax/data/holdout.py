"""A held-out part, by prompt."""

import hashlib

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.table import TokenTable


def split_holdout(table: TokenTable, share: float, seed: int) -> tuple[TokenTable, TokenTable]:
    """Splits a table by prompt: all rows of a prompt go to the same side.

    The side depends on prompt and seed alone, not on the order or on other rows, so that adding rows never
    moves the rest.

    Args:
        table: any rows.
        share: of the distinct prompts that is held out, about; 0 to 1.
        seed: another one holds out other prompts.

    Returns:
        (rest, held out)

    Raises:
        UserError: a side is empty.
    """
    keys, row_key_N = np.unique(table.prompt_key_N, return_inverse=True)
    draws = [hashlib.sha256(b"%d:%d" % (seed, key)).digest()[:8] for key in keys]
    is_held = np.array([int.from_bytes(draw, "big") < share * 2.0**64 for draw in draws])
    if is_held.all() or not is_held.any():
        side = "training" if is_held.all() else "evaluation"
        raise UserError(
            f"data.holdout.share {share} leaves none of {len(keys)} prompts for {side}: "
            "change the share or its seed"
        )
    is_held_N = is_held[row_key_N]
    return table.take(np.flatnonzero(~is_held_N)), table.take(np.flatnonzero(is_held_N))
