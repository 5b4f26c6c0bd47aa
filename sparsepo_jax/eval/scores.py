"""Every pair of a table, scored: per-pair metrics and per-token statistics and masks, in the order of the data."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.types import PairBatch


class ResponseScore(NamedTuple):
    """Arrays [T] over the response's tokens, float32, natural logs."""

    logp: np.ndarray
    ref_logp: np.ndarray
    kl: np.ndarray
    reward_mask: np.ndarray
    kl_mask: np.ndarray


class PairScore(NamedTuple):
    row: int
    metrics: dict[str, float]
    responses: tuple[ResponseScore, ResponseScore]


def score_pairs(
    score_batch: Callable[[Any, Any, Any], tuple], put: Callable[[PairBatch], Any], batches: Iterable[PairBatch], weights: Any, reference: Any
) -> list[PairScore]:
    """Scores sorted by row. score_batch(weights, reference, batch on device) gives (metrics [B], TokenStats, TokenMasks, valid, row, weight)
    that every host can read; batches are host arrays [1, B, ...]. Does not depend on how the rows are batched."""
    scores = []
    for batch in batches:
        metrics_B, stats, masks, row_B, weight_B = score_batch(weights, reference, put(batch))
        metrics_B = {name: np.asarray(value) for name, value in metrics_B.items()}
        columns = [np.asarray(x) for x in (stats.logp_BPT, stats.ref_logp_BPT, stats.kl_BPT, masks.reward_BPT, masks.kl_BPT)]
        valid_BPT, row_B, weight_B = np.asarray(stats.valid_BPT), np.asarray(row_B), np.asarray(weight_B)
        for b in np.flatnonzero(weight_B > 0):
            responses = tuple(ResponseScore(*(x[b, p][valid_BPT[b, p]] for x in columns)) for p in range(2))
            scores.append(PairScore(int(row_B[b]), {name: float(value[b]) for name, value in metrics_B.items()}, responses))
    return sorted(scores, key=lambda score: score.row)


def mean_metrics(scores: list[PairScore]) -> dict[str, float]:
    """Means over pairs, each counted the same."""
    return {name: float(np.mean([score.metrics[name] for score in scores])) for name in scores[0].metrics}


def headline(scores: list[PairScore]) -> dict[str, float]:
    """What the summary says of a policy. kl: mean over pairs, and over the two responses of each, of the unmasked
    sum over the response's tokens, nats."""
    mean = mean_metrics(scores)
    return {
        "accuracy": mean["rewards/accuracies"],
        "accuracy_unmasked": mean["accuracy_unmasked"],
        "margin": mean["rewards/margins"],
        "margin_unmasked": mean["margin_unmasked"],
        "kl": (mean["kl/chosen"] + mean["kl/rejected"]) / 2,
    }


def mask_sparsity(scores: list[PairScore]) -> float:
    """Share of exact zeros in the reward mask over all response tokens."""
    return float(np.mean(np.concatenate([response.reward_mask for score in scores for response in score.responses]) == 0))
