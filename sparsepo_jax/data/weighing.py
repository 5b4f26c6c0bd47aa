"""Token weights read off the log-probs of finished runs: what papers on token-level methods train with.

Each function gives one weight for each token of one response. With `mask: {kind: given}` on `dpo` (SePO: on
`simpo`) they make the paper's loss; `configs/weigh` has a recipe for each.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def tis_weights(
    positive_T: Numbers,
    negative_T: Numbers,
    ending: int,
    *,
    is_chosen: bool,
    least: float,
    most: float,
    end: float,
) -> Numbers:
    """TIS-DPO: the rank of log positive - log negative, put on a line from `least` to `most`.

    In a rejected response the rank of its negative. Equal differences share the mean of their ranks; a
    single token gets the middle. The paper's formula is an exponential of the clipped difference; its public
    code has ranks as its default, and these are they.

    Args:
        positive_T: log-probs under the run that prefers as the data does, nats.
        negative_T: under the run that prefers the opposite.
        ending: how many last tokens only end the response. They have no rank.
        is_chosen: whether the response is the chosen one.
        least: weight of the first rank.
        most: weight of the last rank.
        end: weight of the tokens that end the response.

    References:
        Liu et al., arXiv 2410.04350, 2024.
    """
    difference_T = positive_T - negative_T if is_chosen else negative_T - positive_T
    weight_T = np.full(len(positive_T), end)
    ranked = len(positive_T) - ending
    if ranked == 1:
        weight_T[0] = (least + most) / 2
    elif ranked > 1:
        weight_T[:ranked] = least + (most - least) * _ranks(difference_T[:ranked]) / (ranked - 1)
    return weight_T


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 0; equal values share the mean of theirs."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return (below + not_above - 1) / 2


def tgdpo_weights(
    logp_T: Numbers, ref_logp_T: Numbers, *, is_chosen: bool, alpha: float, beta: float
) -> Numbers:
    """TGDPO: 1 + alpha beta r in a chosen response, 1 - alpha beta r in a rejected one.

    r is the log-ratio of a finished DPO run. Weights below zero are kept, as in the public code.

    Args:
        logp_T: log-probs under that run's policy, nats.
        ref_logp_T: under its reference.
        is_chosen: whether the response is the chosen one.
        alpha: how much its rewards count, >= 0.
        beta: of that run, 1/nat.

    References:
        Zhu et al., arXiv 2506.14574, 2025.
    """
    reward_T = alpha * beta * (logp_T - ref_logp_T)
    return 1 + reward_T if is_chosen else 1 - reward_T


def critical_weights(
    positive_T: Numbers,
    negative_T: Numbers,
    ending: int,
    *,
    is_chosen: bool,
    contrast: float,
    only_rejected: bool,
) -> Numbers:
    """Critical tokens: c in a chosen response, 1 - c in a rejected one; 1 on the tokens that end it.

    c = min(1, p^(1 + contrast) / q^contrast) of the token's probabilities p and q under the two models. The
    public code divides by the sum of p^(1 + contrast) / q^contrast over the vocabulary, which log-probs of
    single tokens do not tell. That sum is at least 1, so that c here is an upper bound of theirs.

    Args:
        positive_T: log p, under the model of good answers, nats.
        negative_T: log q, under the model of bad answers.
        ending: how many last tokens only end the response.
        is_chosen: whether the response is the chosen one.
        contrast: how much the negative model counts, >= 0.
        only_rejected: whether all tokens of chosen responses weigh 1.

    References:
        Lin et al., arXiv 2411.19943, 2024.
    """
    likely_T = np.exp(np.minimum(0.0, (1 + contrast) * positive_T - contrast * negative_T))
    weight_T = likely_T if is_chosen else 1 - likely_T
    if is_chosen and only_rejected:
        weight_T = np.ones(len(positive_T))
    weight_T[len(weight_T) - ending :] = 1.0
    return weight_T


def sepo_weights(logp_T: Numbers, ref_logp_T: Numbers, *, is_chosen: bool, share: float) -> Numbers:
    """SePO: 1 on the share of tokens with the largest log-ratios (rejected: the smallest), 0 on the others.

    Of equal log-ratios the earlier tokens are kept.

    Args:
        logp_T: log-probs under the oracle, a small DPO run, nats.
        ref_logp_T: under its reference.
        is_chosen: whether the response is the chosen one.
        share: of the tokens, above 0 and up to 1; at least one token is kept.

    References:
        Yang et al., arXiv 2408.13518, 2024.
    """
    ratio_T = logp_T - ref_logp_T
    kept = max(1, int(share * len(ratio_T) + 0.5))
    order = np.argsort(-ratio_T if is_chosen else ratio_T, kind="stable")
    weight_T = np.zeros(len(ratio_T))
    weight_T[order[:kept]] = 1.0
    return weight_T


def log_ratio_weights(logp_T: Numbers, ref_logp_T: Numbers) -> Numbers:
    """|log policy - log reference| of each token.

    Args:
        logp_T: log-probs under a run's policy, nats.
        ref_logp_T: under its reference.
    """
    return np.abs(logp_T - ref_logp_T)
