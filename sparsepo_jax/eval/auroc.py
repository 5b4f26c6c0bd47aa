"""How well a score ranks the decisive tokens above the others."""

import numpy as np


def auroc(score_N: np.ndarray, decisive_N: np.ndarray) -> float | None:
    """The chance that a decisive token has a higher score than another one, ties counting one half.

    That is the Mann-Whitney U over its largest value.

    Args:
        score_N: real.
        decisive_N: bool.

    Returns:
        1 is perfect, 0.5 is chance; None where all tokens are of one kind.
    """
    from scipy.stats import rankdata

    decisive_N = np.asarray(decisive_N, bool)
    positive, negative = int(decisive_N.sum()), int((~decisive_N).sum())
    if not positive or not negative:
        return None
    wins = rankdata(score_N)[decisive_N].sum() - positive * (positive + 1) / 2
    return float(wins / (positive * negative))


def position_auroc(position_N: np.ndarray, decisive_N: np.ndarray) -> float | None:
    """The best AUROC that any function of the position in the response could have on these tokens.

    It scores each position by the share of decisive tokens there.
    """
    _, index_N = np.unique(position_N, return_inverse=True)
    share = np.bincount(index_N, np.asarray(decisive_N, float)) / np.bincount(index_N)
    return auroc(share[index_N], decisive_N)


def precision(score_N: np.ndarray, decisive_N: np.ndarray) -> float | None:
    """The decisive share of the tokens with the largest scores, as many as there are decisive ones.

    Of equal scores at the edge, each counts by its chance to be among them. 1 is perfect, the decisive
    share of all tokens is chance; None where no token is decisive.
    """
    score_N, decisive_N = np.asarray(score_N), np.asarray(decisive_N, bool)
    count = int(decisive_N.sum())
    if not count:
        return None
    edge = np.sort(score_N)[-count]
    above_N = score_N > edge
    at_edge = decisive_N[score_N == edge].mean() * (count - above_N.sum())
    return float((decisive_N[above_N].sum() + at_edge) / count)
