"""The summary of a run: which numbers, what they mean, and the plain-text table at the end of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class TableRow(NamedTuple):
    """One line of the summary.

    `before` and `after` are paths into summary.json; None: there is no such number. `of_responses`: what it
    means where single responses with a label are scored; None: the same.
    """

    label: str
    before: tuple[str, ...] | None
    after: tuple[str, ...] | None
    meaning: str
    of_responses: str | None = None

    def meaning_for(self, unit: str) -> str:
        """What it means of "pairs" or "responses"."""
        return self.meaning if self.of_responses is None or unit != "responses" else self.of_responses


POLICY_ROWS = (
    TableRow(
        "accuracy",
        ("before", "accuracy"),
        ("after", "accuracy"),
        "Share of held-out pairs whose chosen response gets the larger reward, as the objective computes "
        "it, tokens weighted by the masks; a tie counts one half.",
        "Share of held-out responses on their side of the baseline, desirable ones above it and undesirable "
        "ones below, tokens weighted by the masks; a tie counts one half.",
    ),
    TableRow(
        "accuracy, unmasked",
        ("before", "accuracy_unmasked"),
        ("after", "accuracy_unmasked"),
        "The same by the plain log-ratio to the reference, summed over tokens of weight 1, whatever the "
        "objective's own reward is: what the policy alone has learned.",
    ),
    TableRow(
        "margin",
        ("before", "margin"),
        ("after", "margin"),
        "Mean over pairs of the chosen response's reward minus the rejected one's, as the objective "
        "computes it, masks included.",
        "Mean reward of desirable responses minus that of undesirable ones, as the objective computes it, "
        "masks included.",
    ),
    TableRow(
        "margin, unmasked",
        ("before", "margin_unmasked"),
        ("after", "margin_unmasked"),
        "The same by beta times the plain log-ratio to the reference, summed over tokens of weight 1; beta "
        "is 1 where the objective has none. A mask can raise the masked margin just by growing; this one it "
        "cannot touch.",
    ),
    TableRow(
        "reward, desirable",
        ("before", "reward_desirable"),
        ("after", "reward_desirable"),
        "Mean reward of desirable responses, beta and masks included.",
    ),
    TableRow(
        "reward, undesirable",
        ("before", "reward_undesirable"),
        ("after", "reward_undesirable"),
        "The same of undesirable ones.",
    ),
    TableRow(
        "baseline",
        ("before", "anchor"),
        ("after", "anchor"),
        "The reward from which both are measured (KTO, BCO); 0 where the objective has none.",
    ),
    TableRow(
        "AUROC of rewards",
        ("before", "auroc"),
        ("after", "auroc"),
        "Chance that a desirable response has a larger reward than an undesirable one: it needs no baseline.",
    ),
    TableRow(
        "KL to reference",
        ("before", "kl"),
        ("after", "kl"),
        "Mean over responses of KL(reference || policy), summed over the tokens, unmasked, nats: how far "
        "the policy has moved.",
    ),
    TableRow(
        "KL of what it writes",
        ("before", "generated_kl"),
        ("after", "generated_kl"),
        "KL(policy || reference) of responses up to generation.max_new_tokens tokens, estimated on responses "
        "that the policy wrote itself, nats.",
    ),
    TableRow(
        "preferred words written",
        ("before", "generated_preferred"),
        ("after", "generated_preferred"),
        "Of the evaluative words in these responses, the share of the preferred sentiment (built-in data "
        "only).",
    ),
    TableRow(
        "reward of what it writes",
        ("before", "generated_reward"),
        ("after", "generated_reward"),
        "Mean score of these responses by the configured scorer.",
    ),
)
MASK_ROWS = (
    TableRow(
        "mask sparsity",
        ("mask", "sparsity_start"),
        ("mask", "sparsity_end"),
        "Share of exact zeros of the reward mask (of the KL's, if that alone is masked) over response "
        "tokens, before and after training.",
    ),
    TableRow(
        "AUROC, reward mask",
        ("mask", "auroc_untrained"),
        ("mask", "auroc_reward"),
        "Chance that a decisive token has a larger reward mask than another token (0.5 is guessing), "
        "before and after training the mask.",
    ),
    TableRow("AUROC, KL mask", None, ("mask", "auroc_kl"), "The same for the KL mask."),
    TableRow(
        "AUROC, |log-ratio|",
        None,
        ("mask", "auroc_logratio"),
        "The same for |log policy - log reference| of the token, which sees the token itself: the ceiling "
        "does not bind it.",
    ),
    TableRow(
        "AUROC, ceiling",
        None,
        ("mask", "auroc_ceiling"),
        "The best that a mask can reach which sees only what comes before a token, as learned ones do by "
        "default.",
    ),
    TableRow(
        "AUROC, position alone",
        None,
        ("mask", "auroc_position"),
        "The best ranking of tokens by their position alone, without reading them.",
    ),
)
CONTROL_ROWS = (  # on the page only
    TableRow(
        "AUROC, mask shuffled",
        None,
        ("mask", "auroc_shuffled"),
        "The reward mask's values in a random order within each response.",
    ),
    TableRow(
        "AUROC, early tokens first",
        None,
        ("mask", "auroc_positional"),
        "Weights that decay from token to token.",
    ),
    TableRow(
        "AUROC, unsure tokens",
        None,
        ("mask", "auroc_confidence"),
        "1 on tokens whose probability is at most the response's mean (ConfPO), else 0, by the reference.",
    ),
    TableRow(
        "decisive share", None, ("mask", "decisive_share"), "Share of the response tokens that are decisive."
    ),
    TableRow(
        "decisive share of the top",
        None,
        ("mask", "precision_reward"),
        "The same among the tokens with the largest mask, as many as are decisive.",
    ),
    TableRow(
        "accuracy without any tenth",
        None,
        ("mask", "deletion", "0.1", "accuracy_random"),
        "Unmasked accuracy (KL term included, where there is one) when each response loses a tenth of its "
        "tokens, drawn by chance.",
    ),
    TableRow(
        "accuracy without the top tenth",
        None,
        ("mask", "deletion", "0.1", "accuracy_top"),
        "The same when it loses the tenth with the largest mask: lower, if the mask finds what matters.",
    ),
)


MEASURES = {  # by how a name begins
    "pass@": "Chance that one of so many answers passes the problem's tests, mean over problems (unbiased).",
    "rouge": "Overlap with the reference, F1, mean over answers.",
    "bertscore": "Likeness to the reference by a model's token embeddings, F1, mean over answers.",
    "self_bleu": "How alike the answers to one prompt are, BLEU of each against the others; 1: all the same.",
    "distinct": "Share of distinct n-grams of words among all in the answers.",
    "words": "Mean length of an answer, words.",
}


def measured(measures: dict) -> dict[tuple[str, str], Any]:
    """(part, name) -> value of what measures.json says of code and texts, known names only."""
    parts = {part: of for part in ("code", "text") if isinstance(of := measures.get(part), dict)}
    return {
        (part, name): x for part, of in parts.items() for name, x in of.items() if meaning_of_measure(name)
    }


def meaning_of_measure(name: str) -> str | None:
    return next((meaning for start, meaning in MEASURES.items() if name.startswith(start)), None)


def measure_rows(measures: dict) -> list[tuple[str, float, str | None]]:
    """(name, number, meaning) of them."""
    numbers = [(name, number_or_none(x)) for (_, name), x in measured(measures).items()]
    return [(name, x, meaning_of_measure(name)) for name, x in numbers if x is not None]


def value(summary: Mapping[str, Any], path: tuple[str, ...] | None) -> float | None:
    """The number at `path`; None if it is absent, null or no number."""
    x: Any = None if path is None else summary
    for name in path or ():
        x = x.get(name) if isinstance(x, dict) else None
    return number_or_none(x)


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
    return format(x + 0.0, ("+" if sign else "") + (".3f" if plain else ".2e"))  # -0.0 is 0


def percent(share: float | None) -> str:
    """A share in whole percents; few are not none, and nearly all not all. None is "-"."""
    if share is None:
        return "-"
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def unit_of(summary: Mapping[str, Any]) -> str:
    """What a summary is about: "pairs", or single "responses" with a label."""
    return "responses" if summary.get("rows") == "responses" else "pairs"


def cases_of(summary: Mapping[str, Any]) -> int | None:
    """How many independent pairs, or responses, the shares of a summary are of: fewer where prompts repeat.

    None where it does not say how many there are.
    """
    pairs = summary.get("pairs")
    if type(pairs) is not int or pairs < 1:
        return None
    independent = value(summary, ("independent_pairs",))
    return pairs if independent is None else round(max(1.0, min(independent, pairs)))


class KnownRow(NamedTuple):
    """A row of which at least one number is known."""

    label: str
    before: float | None
    after: float | None
    meaning: str


def known_rows(summary: dict, rows: Sequence[TableRow]) -> list[KnownRow]:
    """The rows that say something about this run: without those whose numbers are both unknown."""
    known = []
    for row in rows:
        before, after = value(summary, row.before), value(summary, row.after)
        if before is not None or after is not None:
            known.append(KnownRow(row.label, before, after, row.meaning_for(unit_of(summary))))
    return known


AS_IT_IS = "as it is"  # heads the numbers of a policy that was not trained here


def has_before(rows: Sequence[KnownRow]) -> bool:
    return any(row.before is not None for row in rows)


def summary_table(summary: dict) -> str:
    """The content of summary.json as a plain-text table, "" if nothing is known.

    Columns: before and after; where no row has a before, how it is.
    """
    rows = known_rows(summary, POLICY_ROWS + MASK_ROWS)
    if not rows:
        return ""
    trained = has_before(rows)
    headings = ("", "before", "after" if trained else AS_IT_IS)
    lines = [headings, *((row.label, number(row.before), number(row.after)) for row in rows)]
    columns = slice(1, None) if trained else slice(2, None)
    width = max(len(label) for label, *_ in lines)
    return "\n".join(
        f"{line[0]:<{width}}" + "".join(f"  {text:>10}" for text in line[columns]) for line in lines
    )


class TaskRow(NamedTuple):
    """A figure of a task of lm-evaluation-harness.

    filter: how the answers were filtered, "none" if they were not. rows: how many rows of data the task has.
    """

    task: str
    shots: int | None
    filter: str
    metric: str
    value: float
    error: float | None
    rows: int | None


def task_rows(harness: dict) -> list[TaskRow]:
    """The figures in harness.json: results[task]["metric,filter"] with the standard error beside it.

    What is no number is passed over.
    """
    shots, samples = _section(harness, "n-shot"), _section(harness, "n-samples")
    rows = []
    for task, figures in _section(harness, "results").items():
        for name, x in figures.items() if isinstance(figures, dict) else ():
            metric, comma, taken = name.partition(",")
            figure = number_or_none(x)
            if not comma or metric.endswith("_stderr") or figure is None:
                continue
            error = number_or_none(figures.get(f"{metric}_stderr,{taken}"))
            effective = _integer(_section(samples, task).get("effective"))
            rows.append(TaskRow(task, _integer(shots.get(task)), taken, metric, figure, error, effective))
    return rows


def _section(mapping: dict, name: str) -> dict:
    """The mapping of this name; empty where there is none."""
    section = mapping.get(name)
    return section if isinstance(section, dict) else {}


def _integer(x: Any) -> int | None:
    return x if isinstance(x, int) else None


def harness_table(harness: dict) -> str:
    """The same as a plain-text table; what is unknown is "-"."""
    lines = [("task", "shots", "metric", "value", "error", "rows")]
    for row in task_rows(harness):
        metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
        numbers = (number(row.value), number(row.error))
        lines.append((row.task, _or_dash(row.shots), metric, *numbers, _or_dash(row.rows)))
    task_width, metric_width = (max(len(line[n]) for line in lines) for n in (0, 2))
    return "\n".join(
        f"{task:<{task_width}}  {shots:>5}  {metric:<{metric_width}}  {figure:>10}  {error:>10}  {rows:>7}"
        for task, shots, metric, figure, error, rows in lines
    )


def _or_dash(x: int | None) -> str:
    return "-" if x is None else str(x)
