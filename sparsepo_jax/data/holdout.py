"""A held-out part, by prompt."""

import hashlib

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.table import TokenTable


def split_holdout(
    table: TokenTable, *, share: float | None = None, prompts: int | None = None, seed: int
) -> tuple[TokenTable, TokenTable]:
    """Splits a table by prompt: all rows of a prompt go to the same side.

    Each prompt draws a number by itself and the seed, not by its place or other rows. A share holds out those
    whose number is small, so that adding rows never moves the rest; `prompts` those with the smallest
    numbers.

    Args:
        table: any rows.
        share: of the distinct prompts that is held out, about; 0 to 1.
        prompts: how many distinct prompts are held out, where there is no share.
        seed: another one holds out other prompts.

    Returns:
        (rest, held out)

    Raises:
        UserError: a side is empty.
    """
    keys, row_key_N = np.unique(table.prompt_key_N, return_inverse=True)
    digests = [hashlib.sha256(b"%d:%d" % (seed, key)).digest()[:8] for key in keys]
    draws = [int.from_bytes(digest, "big") for digest in digests]
    if share is not None:
        setting, change = f"share {share}", "change the share or its seed"
        is_held = np.array([draw < share * 2.0**64 for draw in draws])
    else:
        setting, change = f"prompts {prompts}", "hold out fewer"
        is_held = np.isin(np.arange(len(keys)), sorted(range(len(keys)), key=draws.__getitem__)[:prompts])
    if is_held.all() or not is_held.any():
        side = "training" if is_held.all() else "evaluation"
        raise UserError(f"data.holdout.{setting} leaves none of {len(keys)} prompts for {side}: {change}")
    is_held_N = is_held[row_key_N]
    return table.take(np.flatnonzero(~is_held_N)), table.take(np.flatnonzero(is_held_N))
