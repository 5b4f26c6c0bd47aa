"""Every pair of a table, scored: metrics of the pair, statistics and masks of its tokens."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from sparsepo_jax.core.labels import SHARES, of_classes
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.eval.auroc import auroc


class ResponseScore(NamedTuple):
    """Arrays [T] over the response's tokens, float32, natural logs."""

    logp: np.ndarray
    ref_logp: np.ndarray
    kl: np.ndarray
    reward_mask: np.ndarray
    kl_mask: np.ndarray


class PairScore(NamedTuple):
    """A pair: its row in the data, the step's metrics of it, and its responses, chosen and rejected.

    Or a row of one response, whose metrics are those of core/labels.
    """

    row: int
    metrics: dict[str, float]
    responses: tuple[ResponseScore, ...]


def score_pairs(
    score_batch: Callable[[Any, Any, Any], tuple],
    put: Callable[[PairBatch], Any],
    batches: Iterable[PairBatch],
    weights: Any,
    reference: Any,
) -> list[PairScore]:
    """Scores sorted by row.

    Only the loss of aot and aot_unpaired depends on how the rows are batched: they sort each batch.

    Args:
        score_batch: `score_batch(weights, reference, batch on device)` gives (metrics [B], TokenStats,
            TokenMasks, row [B], weight [B]) that every host can read.
        put: places a host batch on the devices.
        batches: host arrays [1, B, ...].
        weights: of policy and masks.
        reference: its weights.
    """
    scores = []
    for batch in batches:
        metrics_B, stats, masks, row_B, weight_B = score_batch(weights, reference, put(batch))
        metrics_B = {name: np.asarray(value) for name, value in metrics_B.items()}
        of_tokens = (stats.logp_BPT, stats.ref_logp_BPT, stats.kl_BPT, masks.reward_BPT, masks.kl_BPT)
        columns = [np.asarray(x_BPT) for x_BPT in of_tokens]
        valid_BPT, row_B = np.asarray(stats.valid_BPT), np.asarray(row_B)
        for b in np.flatnonzero(np.asarray(weight_B) > 0):
            responses = tuple(
                ResponseScore(*(x_BPT[b, p][valid_BPT[b, p]] for x_BPT in columns))
                for p in range(valid_BPT.shape[1])
            )
            metrics = {name: float(value_B[b]) for name, value_B in metrics_B.items()}
            scores.append(PairScore(int(row_B[b]), metrics, responses))
    return sorted(scores, key=lambda score: score.row)


def mean_metrics(scores: list[PairScore]) -> dict[str, float]:
    """Means over pairs, each counted the same, or over rows; NaN for a class without rows."""
    means = {name: float(np.mean([score.metrics[name] for score in scores])) for name in scores[0].metrics}
    return of_classes(means, lambda x, share: x / share if share else math.nan)


def mean_log_ratio(scores: list[PairScore]) -> float:
    """The mean over responses of the sum of log-ratios, each token by its weight in the reward mask, nats."""
    sums = [
        float(np.sum(response.reward_mask.astype(np.float64) * (response.logp - response.ref_logp)))
        for score in scores
        for response in score.responses
    ]
    return float(np.mean(sums))


def headline(scores: list[PairScore]) -> dict[str, float | None]:
    """What the summary says of a policy.

    kl is the mean over pairs, and over the two responses of each, of the unmasked sum over the response's
    tokens, nats. For rows of one response accuracies are shares of rows on the right side of the anchor,
    margins differences of the classes' mean rewards, and kl is a mean over rows; `auroc` is that of rewards.
    """
    mean = mean_metrics(scores)
    if SHARES["chosen"] in mean:
        return _headline_of_rows(scores, mean)
    return {
        "accuracy": mean["rewards/accuracies"],
        "accuracy_unmasked": mean["accuracy_unmasked"],
        "margin": mean["rewards/margins"],
        "margin_unmasked": mean["margin_unmasked"],
        "kl": (mean["kl/chosen"] + mean["kl/rejected"]) / 2,
    }


def _headline_of_rows(scores: list[PairScore], mean: dict[str, float]) -> dict[str, float | None]:
    def of_row(name: str) -> np.ndarray:
        of_both = [[score.metrics[f"{name}/{side}"] for score in scores] for side in SHARES]
        return np.sum(of_both, axis=0)  # a row has 0 for the class that it is not of

    desirable_N = np.array([score.metrics[SHARES["chosen"]] > 0 for score in scores])
    figures = {
        "accuracy": mean["rewards/accuracies"],
        "accuracy_unmasked": mean["accuracy_unmasked"],
        "margin": mean["rewards/margins"],
        "margin_unmasked": mean["margin_unmasked"],
        "kl": float(of_row("kl").mean()),
        "reward_desirable": mean["rewards/chosen"],
        "reward_undesirable": mean["rewards/rejected"],
        "anchor": mean["rewards/anchor"],
    }
    known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return known | {"auroc": auroc(of_row("rewards"), desirable_N)}


def independent_pairs(scores: list[PairScore], prompt_key_N: np.ndarray) -> float:
    """How many independent pairs would tell as much of the accuracy as these, which may share prompts.

    n over the design effect: the variance of the mean over prompts against that of n independent pairs (Rao
    and Scott, 1992). From 1 to n.
    """
    right_N = np.array([score.metrics["accuracy_unmasked"] for score in scores])
    n = len(scores)
    prompt_N = np.unique(prompt_key_N, return_inverse=True)[1].ravel()
    prompts = int(prompt_N.max()) + 1
    if prompts == n:
        return float(n)
    share = right_N.mean()
    if prompts == 1:
        return 1.0
    excess = np.bincount(prompt_N, weights=right_N - share)
    variance = prompts / (prompts - 1) * float(np.sum(excess**2)) / n**2
    if variance == 0:  # all alike, right or wrong: the prompts have not shown how much they differ
        return float(prompts)
    return float(np.clip(share * (1 - share) / variance, 1.0, n))


def mask_sparsity(scores: list[PairScore], mask: Literal["reward", "kl"] = "reward") -> float:
    """Share of exact zeros in a mask over all response tokens.

    Args:
        scores: of pairs or rows.
        mask: which of the two.
    """
    of_tokens = [getattr(response, f"{mask}_mask") for score in scores for response in score.responses]
    return float(np.mean(np.concatenate(of_tokens) == 0))
