"""Whether answers end with a token that ends what the policy writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsepo_jax.data.table import TokenTable

LAST = 4  # tokens in which the end of a turn stands: <|im_end|> and a line end


def missing_ends(
    table: TokenTable, ends: tuple[int, ...], stops: Sequence[str], tokenizer: Any | None
) -> str | None:
    """A line where most answers teach the policy no token at which what it writes is ended.

    A chat template may end a turn with another token than EOS (ChatML on a base model). The policy then
    learns that one, and whoever asks it must know to stop there.

    Args:
        table: the rows.
        ends: ids of the tokens that end what the policy writes.
        stops: texts that end it, too.
        tokenizer: None: nothing is said, since the rows came as token ids.
    """
    responses = table.responses
    lengths = responses.lengths
    whole = ~table.response_cut_NP.reshape(-1) & (lengths > 0)
    if tokenizer is None or not ends or not whole.any():
        return None
    before = np.concatenate([[0], np.cumsum(np.isin(responses.flat, ends))])
    lacks = whole & (np.diff(before[responses.starts]) == 0)
    if lacks.sum() <= whole.sum() / 2:
        return None
    tail = responses[int(np.argmax(lacks))][-LAST:].tolist()
    if any(stop in tokenizer.decode(tail) for stop in stops):
        return None
    special = [token for token in tail if token in tokenizer.added_tokens_decoder]
    end = tokenizer.decode(special[-1:] or tail)
    known = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in ends)
    return (
        f"{lacks.sum()} of {whole.sum()} answers hold none of the tokens that end what the policy writes "
        f"({known}): the first ends in {end!r}, behind which it will write on. "
        "generation.stop ends it there; other programs go by eos_token in tokenizer_config.json and "
        "eos_token_id in generation_config.json"
    )
