"""What a table of rows is like, counted: what was cut off, and which pairs cannot teach anything."""

from typing import Any

import numpy as np

from sparsepo_jax.data.table import TokenTable


def table_facts(table: TokenTable) -> dict[str, Any]:
    """Counts of a table with responses.

    Args:
        table: pairs or sft rows.

    Returns:
        By name, as JSON can hold it:

        rows, responses        how many
        response_tokens        mean length
        prompts_cut            rows whose prompt has lost its beginning
        responses_cut          responses that have lost their end
        equal_pairs            pairs whose responses are the same tokens (pairs only, and so is the next)
        contradicting_pairs    pairs that the table also holds with chosen and rejected swapped
    """
    facts = {
        "rows": len(table),
        "responses": int(table.response_cut_NP.size),
        "response_tokens": round(float(table.response_lengths_NP.mean()), 1),
        "prompts_cut": int(np.count_nonzero(table.prompt_cut_N)),
        "responses_cut": int(np.count_nonzero(table.response_cut_NP)),
    }
    return facts | _pair_facts(table) if table.responses_per_row == 2 else facts


def _pair_facts(table: TokenTable) -> dict[str, int]:
    pairs = [
        (int(table.prompt_key_N[n]), *(table.laid(n, p)[0].tobytes() for p in range(2)))
        for n in range(len(table))
    ]
    different = [(prompt, chosen, rejected) for prompt, chosen, rejected in pairs if chosen != rejected]
    known = set(different)
    contradicting = sum((prompt, rejected, chosen) in known for prompt, chosen, rejected in different)
    return {"equal_pairs": len(pairs) - len(different), "contradicting_pairs": contradicting}
