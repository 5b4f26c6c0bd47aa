"""Which tokens a run holds for decisive: rankings of tokens, controls that cost no training, and what the preference loses without the first ones.

A ranking gives each response token a number. AUROC and precision ask for its order only and deletion takes equally many tokens, so all of them
are compared at the same mean mask. Masks see what comes before a token; logratio, kl and confidence see the token, so that the masks' ceiling is
none of theirs.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sparsepo_jax.eval.auroc import auroc, position_auroc, precision
from sparsepo_jax.eval.scores import PairScore, ResponseScore

DRAWS = 5  # of what is random; figures are means over them
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)


def _unsure(response: ResponseScore) -> np.ndarray:
    prob = np.exp(response.ref_logp.astype(np.float64))
    return (prob <= max(prob.mean(), prob.min())).astype(
        float
    )  # rounded, a mean of equal numbers may fall below them all


RANKINGS: dict[str, Callable[[ResponseScore, np.random.Generator], np.ndarray]] = {
    "reward": lambda one, draws: one.reward_mask,
    "kl": lambda one, draws: one.kl_mask,
    "logratio": lambda one, draws: np.abs(one.logp - one.ref_logp),
    "token_kl": lambda one, draws: one.kl,
    # Controls. The shuffled mask has the same values and mean in each response; positional: the order of every decay below 1 (masks/fixed.py).
    "ones": lambda one, draws: np.ones(len(one.logp)),
    "random": lambda one, draws: draws.random(len(one.logp)),
    "shuffled": lambda one, draws: draws.permutation(one.reward_mask),
    "positional": lambda one, draws: -np.arange(len(one.logp), dtype=float),
    "confidence": lambda one, draws: _unsure(one),
}
_DRAWN = ("random", "shuffled")
_OF_MASKS = ("reward", "kl", "shuffled")
FIGURES = (
    *(f"auroc_{name}" for name in RANKINGS if name != "ones"),
    "auroc_position",
    "auroc_untrained",
    "precision_reward",
    "decisive_share",
)


def ranked(scores: Sequence[PairScore], ranking: str, draw: int = 0) -> np.ndarray:
    """The ranking's number of each response token [N], pairs in order, chosen before rejected."""
    draws = np.random.default_rng(draw)
    return np.concatenate(
        [RANKINGS[ranking](response, draws) for score in scores for response in score.responses]
    )


def position_of_tokens(scores: Sequence[PairScore]) -> np.ndarray:
    return np.concatenate([np.arange(len(response.logp)) for score in scores for response in score.responses])


def token_figures(
    after: Sequence[PairScore],
    before: Sequence[PairScore] | None,
    decisive_N: np.ndarray,
    *,
    masked: bool,
    kept_N: np.ndarray | None = None,
) -> dict[str, float | None]:
    """auroc_RANKING of what the run learned and of the controls; auroc_untrained: of the reward mask before training; auroc_position: the best that
    any function of the position could do; precision_reward: the decisive share of the tokens with the largest reward mask, as many as are decisive;
    decisive_share: the same of tokens drawn blindly. null where unknown.

    masked: whether the objective has a mask. kept_N: only these tokens count.
    """
    kept_N = np.ones(len(decisive_N), bool) if kept_N is None else kept_N
    flags = np.asarray(decisive_N, bool)[kept_N]

    def of(scores: Sequence[PairScore], ranking: str) -> float | None:
        found = [
            auroc(ranked(scores, ranking, draw)[kept_N], flags)
            for draw in range(DRAWS if ranking in _DRAWN else 1)
        ]
        return None if None in found else float(np.mean(found))

    # Ones tie everywhere: 0.5.
    figures = {
        f"auroc_{name}": of(after, name) if masked or name not in _OF_MASKS else None
        for name in RANKINGS
        if name != "ones"
    }
    return figures | {
        "auroc_position": position_auroc(position_of_tokens(after)[kept_N], flags),
        "auroc_untrained": of(before, "reward") if masked and before else None,
        "precision_reward": precision(ranked(after, "reward")[kept_N], flags) if masked else None,
        "decisive_share": float(flags.mean()) if len(flags) else None,
    }


def deletion(
    scores: Sequence[PairScore],
    *,
    beta: float,
    with_kl: bool,
    ranking: str = "reward",
    shares: Sequence[float] = SHARES,
) -> dict[str, dict[str, float]]:
    """What is left of the implicit preference when each response loses a share of its tokens: those of the largest mask (`top`), of the smallest
    (`bottom`), or any (`random`). If the mask is faithful, the preference goes with the top ones first.

    A response's reward is beta * sum of r + k over the tokens that stay, unmasked (with_kl false: of r alone); accuracy: share of pairs whose chosen
    response has the larger one, a tie counting one half; margin: the mean difference. At least one token goes, but at share 0. Equal masks are
    ordered by chance; means over DRAWS draws.

    Returns {share: {"accuracy_top": ..., "margin_top": ..., and the same of bottom and random}}.
    """
    rules = ("top", "bottom", "random")
    margins = {(share, rule): np.zeros((DRAWS, len(scores))) for share in shares for rule in rules}
    for draw in range(DRAWS):
        draws = np.random.default_rng(draw)
        for n, score in enumerate(scores):
            for response, sign in zip(score.responses, (1.0, -1.0), strict=True):
                reward = (response.logp - response.ref_logp).astype(np.float64) + (
                    response.kl if with_kl else 0.0
                )
                chance = draws.random(len(reward))
                top = np.lexsort((chance, -RANKINGS[ranking](response, draws)))
                for rule, order in zip(rules, (top, top[::-1], np.argsort(chance)), strict=True):
                    left = np.append(
                        np.cumsum(reward[order][::-1])[::-1], 0.0
                    )  # left[n]: without the first n
                    for share in shares:
                        gone = min(len(reward), max(1, int(share * len(reward) + 0.5))) if share else 0
                        margins[share, rule][draw, n] += sign * beta * left[gone]
    figures: dict[str, dict[str, float]] = {f"{share:g}": {} for share in shares}
    for (share, rule), margin_DN in margins.items():
        figures[f"{share:g}"] |= {
            f"accuracy_{rule}": float(np.heaviside(margin_DN, 0.5).mean()),
            f"margin_{rule}": float(margin_DN.mean()),
        }
    return figures
