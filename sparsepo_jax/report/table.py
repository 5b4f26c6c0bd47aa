"""The summary of a run: which numbers, what they mean, and the plain-text table at the end of a run."""

import math
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of the summary. `before` and `after` are paths into summary.json; None: there is no such number."""

    label: str
    before: tuple[str, str] | None
    after: tuple[str, str] | None
    meaning: str
    optional: bool = False  # left out where there is no number


POLICY_ROWS = (
    Row("accuracy", ("before", "accuracy"), ("after", "accuracy"),
        "Share of held-out pairs whose chosen response gets the larger implicit reward, tokens weighted by the masks; "
        "a tie counts one half."),
    Row("accuracy, unmasked", ("before", "accuracy_unmasked"), ("after", "accuracy_unmasked"),
        "The same with every token weight 1: what the policy alone has learned."),
    Row("margin", ("before", "margin"), ("after", "margin"),
        "Mean over pairs of the chosen response's implicit reward minus the rejected one's, beta and masks included."),
    Row("margin, unmasked", ("before", "margin_unmasked"), ("after", "margin_unmasked"),
        "The same with every token weight 1. A mask can raise the masked margin just by growing; this one it cannot touch."),
    Row("KL to reference", ("before", "kl"), ("after", "kl"),
        "Mean over responses of KL(reference || policy), summed over the tokens, unmasked, nats: how far the policy has moved."),
    Row("KL of what it writes", ("before", "generated_kl"), ("after", "generated_kl"),
        "KL(policy || reference) of whole responses, estimated on responses that the policy wrote itself, nats."),
    Row("preferred words written", ("before", "generated_preferred"), ("after", "generated_preferred"),
        "Of the evaluative words in these responses, the share of the preferred sentiment (built-in data only)."),
    Row("reward of what it writes", ("before", "generated_reward"), ("after", "generated_reward"),
        "Mean score of these responses by the configured scorer.", optional=True),
)
MASK_ROWS = (
    Row("mask sparsity", ("mask", "sparsity_start"), ("mask", "sparsity_end"),
        "Share of exact zeros of the reward mask over response tokens, at the first and at the last step."),
    Row("AUROC, reward mask", ("mask", "auroc_untrained"), ("mask", "auroc_reward"),
        "Chance that a decisive token has a larger reward mask than another token (0.5 is guessing), "
        "before and after training the mask."),
    Row("AUROC, KL mask", None, ("mask", "auroc_kl"),
        "The same for the KL mask."),
    Row("AUROC, ceiling", None, ("mask", "auroc_ceiling"),
        "The best that any mask can reach: a mask sees only what comes before a token."),
    Row("AUROC, position alone", None, ("mask", "auroc_position"),
        "The best ranking of tokens by their position alone, without reading them."),
)


MEASURES = {  # by how a name begins
    "pass@": "Chance that one of so many answers passes the problem's tests, mean over problems (unbiased estimate).",
    "rouge": "Overlap with the reference, F1, mean over answers.",
    "bertscore": "Likeness to the reference by a model's token embeddings, F1, mean over answers.",
    "self_bleu": "How alike the answers to one prompt are, BLEU of each against the others; 1: all the same.",
    "distinct": "Share of distinct n-grams of words among all in the answers.",
    "words": "Mean length of an answer, words.",
}


def measure_rows(measures: dict) -> list[tuple[str, float, str]]:
    """(name, number, meaning) of what measures.json says of code and of texts; names that are not known have no place."""
    parts = [part for part in (measures.get("code"), measures.get("text")) if isinstance(part, dict)]
    return [(name, as_float(x), meaning) for part in parts for name, x in part.items() for start, meaning in MEASURES.items()
            if name.startswith(start) and isinstance(x, (int, float)) and not isinstance(x, bool)]


def value(summary: dict, path: tuple[str, str] | None) -> float | None:
    """The number at `path`; None if it is absent, null or no number."""
    if path is None:
        return None
    section = summary.get(path[0])
    found = section.get(path[1]) if isinstance(section, dict) else None
    return as_float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def as_float(x: float) -> float:
    try:
        return float(x)
    except OverflowError:  # an integer beyond the largest float
        return math.inf if x > 0 else -math.inf


def number(x: Any, *, sign: bool = False) -> str:
    """Three decimals, or scientific where these would say nothing; None is "-"."""
    if x is None:
        return "-"
    plain = x == 0 or not math.isfinite(x) or 1e-3 <= abs(x) < 1e5
    return format(x, ("+" if sign else "") + (".3f" if plain else ".2e"))


def summary_table(summary: dict) -> str:
    """The content of summary.json as a plain-text table, columns before and after; what is unknown is "-"."""
    lines = [("", "before", "after")]
    for row in POLICY_ROWS + MASK_ROWS:
        before, after = value(summary, row.before), value(summary, row.after)
        if not row.optional or (before, after) != (None, None):
            lines.append((row.label, number(before), number(after)))
    width = max(len(label) for label, _, _ in lines)
    return "\n".join(f"{label:<{width}}  {before:>10}  {after:>10}" for label, before, after in lines)
