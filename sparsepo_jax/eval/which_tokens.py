"""Which tokens a run takes for decisive: rankings, controls, and what the preference loses without tokens.

A ranking gives each response token a number. AUROC and precision ask for its order only, and deletion takes
equally many tokens, so that all rankings are compared at the same mean mask. Masks see what comes before a
token; logratio, kl and confidence see the token itself, so that the masks' ceiling does not hold for them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from sparsepo_jax.eval.auroc import auroc, position_auroc, precision
from sparsepo_jax.eval.scores import PairScore, ResponseScore

DRAWS = 5  # of what is random; figures are means over them
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)


def _unsure_tokens(response: ResponseScore) -> np.ndarray:
    """1 where the reference's probability of a token is at most its mean over the response, else 0."""
    prob = np.exp(response.ref_logp.astype(np.float64))
    # Rounded, the mean of equal numbers may fall below all of them.
    return (prob <= max(prob.mean(), prob.min())).astype(float)


RANKINGS: dict[str, Callable[[ResponseScore, np.random.Generator], np.ndarray]] = {
    "reward": lambda response, draws: response.reward_mask,
    "kl": lambda response, draws: response.kl_mask,
    "logratio": lambda response, draws: np.abs(response.logp - response.ref_logp),
    "token_kl": lambda response, draws: response.kl,
    # Controls. The shuffled mask has the same values and mean in each response. The positional one has the
    # order that any decay below 1 gives (masks/fixed.py).
    "ones": lambda response, draws: np.ones(len(response.logp)),
    "random": lambda response, draws: draws.random(len(response.logp)),
    "shuffled": lambda response, draws: draws.permutation(response.reward_mask),
    "positional": lambda response, draws: -np.arange(len(response.logp), dtype=float),
    "confidence": lambda response, draws: _unsure_tokens(response),
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
    """The ranking's number of each response token [N], pairs in order, chosen before rejected.

    Args:
        scores: of the pairs.
        ranking: a key of RANKINGS.
        draw: the seed of what is random in it.
    """
    draws = np.random.default_rng(draw)
    return np.concatenate(
        [RANKINGS[ranking](response, draws) for score in scores for response in score.responses]
    )


def position_of_tokens(scores: Sequence[PairScore]) -> np.ndarray:
    """The position in its response, from 0, of each token [N], in the order of `ranked`."""
    return np.concatenate([np.arange(len(response.logp)) for score in scores for response in score.responses])


def token_figures(
    after: Sequence[PairScore],
    before: Sequence[PairScore] | None,
    decisive_N: np.ndarray,
    *,
    mask: Literal["reward", "kl"] | None,
    kept_N: np.ndarray | None = None,
) -> dict[str, float | None]:
    """How well masks and controls find the decisive tokens.

    Args:
        after: scores by the trained policy.
        before: scores before training; None: there are none.
        decisive_N: which tokens are decisive, in the order of `ranked`.
        mask: which there is; `reward` also where there are both, `kl` where that alone weighs tokens; None:
            the objective has none.
        kept_N: only these tokens count; None: all.

    Returns:
        The FIGURES, None where unknown, as those of a reward mask are where the KL alone has one.
        auroc_RANKING is that of a ranking; auroc_untrained that of the reward mask before training;
        auroc_position the best that any function of the position could have. precision_reward is the decisive
        share of the tokens with the largest mask, as many as are decisive; decisive_share is the same of
        tokens drawn blindly.
    """
    kept_N = np.ones(len(decisive_N), bool) if kept_N is None else kept_N
    flags = np.asarray(decisive_N, bool)[kept_N]

    def of(scores: Sequence[PairScore], ranking: str) -> float | None:
        draws = DRAWS if ranking in _DRAWN else 1
        areas = [auroc(ranked(scores, ranking, draw)[kept_N], flags) for draw in range(draws)]
        return None if None in areas else float(np.mean(areas))

    rankings = [name for name in RANKINGS if name != "ones"]  # ones tie everywhere: 0.5
    of_masks = {"reward": _OF_MASKS, "kl": ("kl",), None: ()}[mask]
    known = [name for name in rankings if name in of_masks or name not in _OF_MASKS]
    return {
        **{f"auroc_{name}": of(after, name) if name in known else None for name in rankings},
        "auroc_position": position_auroc(position_of_tokens(after)[kept_N], flags),
        "auroc_untrained": of(before, "reward") if mask == "reward" and before else None,
        "precision_reward": precision(ranked(after, mask)[kept_N], flags) if mask else None,
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
    """What is left of the implicit preference when each response loses a share of its tokens.

    If a mask is faithful, the preference goes first with the tokens of the largest mask. A response's
    reward is beta times the sum of r + k over the tokens that stay, without masks. At least one token goes,
    but at share 0. Equal masks are ordered by chance; figures are means over DRAWS draws.

    Args:
        scores: of the pairs.
        beta: 1/nat, of the objective.
        with_kl: whether k is in the reward; otherwise it is the sum of r alone.
        ranking: a key of RANKINGS.
        shares: 0 to 1.

    Returns:
        {share: {"accuracy_RULE", "margin_RULE"}} for the rules by which tokens go: those of the largest
        mask (`top`), of the smallest (`bottom`), or any (`random`). The accuracy is the share of pairs whose
        chosen response has the larger reward, a tie counting one half; the margin is the mean difference.
    """
    margins = {(share, rule): np.zeros((DRAWS, len(scores))) for share in shares for rule in _RULES}
    for draw in range(DRAWS):
        draws = np.random.default_rng(draw)
        for n, score in enumerate(scores):
            for response, sign in zip(score.responses, (1.0, -1.0), strict=True):
                reward = (response.logp - response.ref_logp).astype(np.float64)
                if with_kl:
                    reward = reward + response.kl
                for rule, order in _orders(response, ranking, draws).items():
                    left = _sums_without_the_first(reward[order])
                    for share in shares:
                        margins[share, rule][draw, n] += sign * beta * left[_tokens_in(share, len(reward))]
    figures: dict[str, dict[str, float]] = {f"{share:g}": {} for share in shares}
    for (share, rule), margin_DN in margins.items():
        figures[f"{share:g}"] |= {
            f"accuracy_{rule}": float(np.heaviside(margin_DN, 0.5).mean()),
            f"margin_{rule}": float(margin_DN.mean()),
        }
    return figures


_RULES = ("top", "bottom", "random")


def _orders(response: ResponseScore, ranking: str, draws: np.random.Generator) -> dict[str, np.ndarray]:
    """By rule: the response's tokens, in the order in which they go."""
    chance = draws.random(len(response.logp))
    top = np.lexsort((chance, -RANKINGS[ranking](response, draws)))
    return dict(zip(_RULES, (top, top[::-1], np.argsort(chance)), strict=True))


def _sums_without_the_first(x: np.ndarray) -> np.ndarray:
    """[n]: the sum of all numbers but the first n, n from 0 to their number."""
    return np.append(np.cumsum(x[::-1])[::-1], 0.0)


def _tokens_in(share: float, length: int) -> int:
    """How many tokens a share of a response is."""
    if share == 0:
        return 0
    return min(length, max(1, int(share * length + 0.5)))
