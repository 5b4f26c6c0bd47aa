"""The summary of a run: which numbers, what they mean, and the plain-text table at the end of a run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of the summary. `before` and `after` are paths into summary.json; None: there is no such number."""

    label: str
    before: tuple[str, ...] | None
    after: tuple[str, ...] | None
    meaning: str


POLICY_ROWS = (
    Row(
        "accuracy",
        ("before", "accuracy"),
        ("after", "accuracy"),
        "Share of held-out pairs whose chosen response gets the larger implicit reward, tokens weighted by the masks; "
        "a tie counts one half.",
    ),
    Row(
        "accuracy, unmasked",
        ("before", "accuracy_unmasked"),
        ("after", "accuracy_unmasked"),
        "The same with every token weight 1: what the policy alone has learned.",
    ),
    Row(
        "margin",
        ("before", "margin"),
        ("after", "margin"),
        "Mean over pairs of the chosen response's implicit reward minus the rejected one's, beta and masks included.",
    ),
    Row(
        "margin, unmasked",
        ("before", "margin_unmasked"),
        ("after", "margin_unmasked"),
        "The same with every token weight 1. A mask can raise the masked margin just by growing; this one it cannot touch.",
    ),
    Row(
        "KL to reference",
        ("before", "kl"),
        ("after", "kl"),
        "Mean over responses of KL(reference || policy), summed over the tokens, unmasked, nats: how far the policy has moved.",
    ),
    Row(
        "KL of what it writes",
        ("before", "generated_kl"),
        ("after", "generated_kl"),
        "KL(policy || reference) of whole responses, estimated on responses that the policy wrote itself, nats.",
    ),
    Row(
        "preferred words written",
        ("before", "generated_preferred"),
        ("after", "generated_preferred"),
        "Of the evaluative words in these responses, the share of the preferred sentiment (built-in data only).",
    ),
    Row(
        "reward of what it writes",
        ("before", "generated_reward"),
        ("after", "generated_reward"),
        "Mean score of these responses by the configured scorer.",
    ),
)
MASK_ROWS = (
    Row(
        "mask sparsity",
        ("mask", "sparsity_start"),
        ("mask", "sparsity_end"),
        "Share of exact zeros of the reward mask over response tokens, at the first and at the last step.",
    ),
    Row(
        "AUROC, reward mask",
        ("mask", "auroc_untrained"),
        ("mask", "auroc_reward"),
        "Chance that a decisive token has a larger reward mask than another token (0.5 is guessing), "
        "before and after training the mask.",
    ),
    Row("AUROC, KL mask", None, ("mask", "auroc_kl"), "The same for the KL mask."),
    Row(
        "AUROC, |log-ratio|",
        None,
        ("mask", "auroc_logratio"),
        "The same for |log policy - log reference| of the token, which sees the token itself: no mask's ceiling binds it.",
    ),
    Row(
        "AUROC, ceiling",
        None,
        ("mask", "auroc_ceiling"),
        "The best that any mask can reach: a mask sees only what comes before a token.",
    ),
    Row(
        "AUROC, position alone",
        None,
        ("mask", "auroc_position"),
        "The best ranking of tokens by their position alone, without reading them.",
    ),
)
CONTROL_ROWS = (  # on the page only
    Row(
        "AUROC, mask shuffled",
        None,
        ("mask", "auroc_shuffled"),
        "The reward mask's values in a random order within each response.",
    ),
    Row(
        "AUROC, early tokens first",
        None,
        ("mask", "auroc_positional"),
        "Weights that decay from token to token.",
    ),
    Row(
        "AUROC, unsure tokens",
        None,
        ("mask", "auroc_confidence"),
        "1 on tokens whose probability is at most the response's mean (ConfPO), else 0, by the reference.",
    ),
    Row(
        "decisive share", None, ("mask", "decisive_share"), "Share of the response tokens that are decisive."
    ),
    Row(
        "decisive share of the top",
        None,
        ("mask", "precision_reward"),
        "The same among the tokens with the largest reward mask, as many as are decisive.",
    ),
    Row(
        "accuracy without any tenth",
        None,
        ("mask", "deletion", "0.1", "accuracy_random"),
        "Unmasked accuracy (KL term included, where there is one) when each response loses a tenth of its tokens, drawn by chance.",
    ),
    Row(
        "accuracy without the top tenth",
        None,
        ("mask", "deletion", "0.1", "accuracy_top"),
        "The same when it loses the tenth with the largest mask: lower, if the mask finds what matters.",
    ),
)


MEASURES = {  # by how a name begins
    "pass@": "Chance that one of so many answers passes the problem's tests, mean over problems (unbiased estimate).",
    "rouge": "Overlap with the reference, F1, mean over answers.",
    "bertscore": "Likeness to the reference by a model's token embeddings, F1, mean over answers.",
    "self_bleu": "How alike the answers to one prompt are, BLEU of each against the others; 1: all the same.",
    "distinct": "Share of distinct n-grams of words among all in the answers.",
    "words": "Mean length of an answer, words.",
}


def measured(measures: dict) -> dict[tuple[str, str], Any]:
    """(part, name) -> value of what measures.json says of code and of texts; names that are not known have no place."""
    parts = {name: part for name in ("code", "text") if isinstance(part := measures.get(name), dict)}
    return {
        (part, name): x for part, of in parts.items() for name, x in of.items() if meaning_of_measure(name)
    }


def meaning_of_measure(name: str) -> str | None:
    return next((meaning for start, meaning in MEASURES.items() if name.startswith(start)), None)


def measure_rows(measures: dict) -> list[tuple[str, float, str]]:
    """(name, number, meaning) of them."""
    return [
        (name, x, meaning_of_measure(name))
        for (_, name), found in measured(measures).items()
        if (x := number_or_none(found)) is not None
    ]


def value(summary: dict, path: tuple[str, ...] | None) -> float | None:
    """The number at `path`; None if it is absent, null or no number."""
    found: Any = None if path is None else summary
    for name in path or ():
        found = found.get(name) if isinstance(found, dict) else None
    return number_or_none(found)


def number_or_none(x: Any) -> float | None:
    return as_float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None


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


class KnownRow(NamedTuple):
    """A row of which at least one number is known."""

    label: str
    before: float | None
    after: float | None
    meaning: str


def known_rows(summary: dict, rows: Sequence[Row]) -> list[KnownRow]:
    """The rows that say something about this run: one whose numbers are both unknown is left out."""
    found = [
        KnownRow(row.label, value(summary, row.before), value(summary, row.after), row.meaning)
        for row in rows
    ]
    return [row for row in found if (row.before, row.after) != (None, None)]


def has_before(rows: Sequence[KnownRow]) -> bool:
    return any(row.before is not None for row in rows)


def summary_table(summary: dict) -> str:
    """The content of summary.json as a plain-text table, "" if nothing is known. Columns: before, if any row has it, and after."""
    rows = known_rows(summary, POLICY_ROWS + MASK_ROWS)
    if not rows:
        return ""
    lines = [("", "before", "after"), *((row.label, number(row.before), number(row.after)) for row in rows)]
    if not has_before(rows):
        lines = [(label, after) for label, _, after in lines]
    width = max(len(label) for label, *_ in lines)
    return "\n".join(
        f"{label:<{width}}" + "".join(f"  {shown:>10}" for shown in shown_numbers)
        for label, *shown_numbers in lines
    )


class TaskRow(NamedTuple):
    """A figure of a task of lm-evaluation-harness. filter: of the answers that were taken. rows: of the task's data."""

    task: str
    shots: int | None
    filter: str
    metric: str
    value: float
    error: float | None
    rows: int | None


def task_rows(found: dict) -> list[TaskRow]:
    """The figures in harness.json (results[task]["metric,filter"], and its standard error beside it); what is no number is passed over."""
    section = lambda x, name: value if isinstance(x, dict) and isinstance(value := x.get(name), dict) else {}
    rows = []
    for task, figures in section(found, "results").items():
        shots, samples = (
            section(found, "n-shot").get(task),
            section(section(found, "n-samples"), task).get("effective"),
        )
        for name, x in figures.items() if isinstance(figures, dict) else ():
            metric, comma, taken = name.partition(",")
            if comma and not metric.endswith("_stderr") and (known := number_or_none(x)) is not None:
                error = number_or_none(figures.get(f"{metric}_stderr,{taken}"))
                rows.append(
                    TaskRow(
                        task,
                        shots if isinstance(shots, int) else None,
                        taken,
                        metric,
                        known,
                        error,
                        samples if isinstance(samples, int) else None,
                    )
                )
    return rows


def harness_table(found: dict) -> str:
    """The same as a plain-text table; what is unknown is "-"."""
    dash = lambda x: "-" if x is None else str(x)
    lines = [("task", "shots", "metric", "value", "error", "rows")]
    for row in task_rows(found):
        metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
        lines.append(
            (row.task, dash(row.shots), metric, number(row.value), number(row.error), dash(row.rows))
        )
    task, metric = (max(len(line[n]) for line in lines) for n in (0, 2))
    return "\n".join(
        f"{line[0]:<{task}}  {line[1]:>5}  {line[2]:<{metric}}  {line[3]:>10}  {line[4]:>10}  {line[5]:>7}"
        for line in lines
    )
