"""From the scores of a prompt's responses to preference pairs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal


def choose_pairs(
    scores: Sequence[float],
    rule: Literal["all", "best_worst", "best_others", "first_two"],
    *,
    margin: float = 0.0,
    threshold: float | None = None,
    limit: int | None = None,
) -> list[tuple[int, int]]:
    """Pairs (better, worse), as places in `scores`, in order.

        scores           .9  .2  .6         all                       (0, 1) (0, 2) (2, 1)
                                            best_worst                (0, 1)
                                            best_others               (0, 1) (0, 2)
                                            all, threshold=.5         (0, 1) (2, 1)
                                            all, limit=1              (0, 1)

    Args:
        scores: of one prompt's responses.
        rule: which pairs are looked at.
        margin: scores that differ by so much or less make no pair; equal ones never do.
        threshold: the better score is above it, the worse one is not; None: no such condition.
        limit: at most so many pairs, those that differ most; None: all.
    """
    places = list(range(len(scores)))
    if rule == "first_two":
        places = places[:2]
    if rule == "best_worst" and places:
        # Of equal ones the first.
        places = [max(places, key=lambda n: scores[n]), min(places, key=lambda n: scores[n])]

    def makes_a_pair(better: int, worse: int) -> bool:
        if scores[better] - scores[worse] <= margin:
            return False
        return threshold is None or scores[better] > threshold >= scores[worse]

    def difference(pair: tuple[int, int]) -> float:
        return scores[pair[0]] - scores[pair[1]]

    looked_at = list(combinations(places, 2))
    if rule == "best_others" and places:
        best = max(places, key=lambda n: scores[n])
        looked_at = [(best, other) for other in places if other != best]
    ordered = [(a, b) if scores[a] > scores[b] else (b, a) for a, b in looked_at]
    pairs = [pair for pair in ordered if makes_a_pair(*pair)]
    return sorted(sorted(pairs, key=difference, reverse=True)[:limit])


def pairs_looked_at(responses: int, rule: Literal["all", "best_worst", "best_others", "first_two"]) -> int:
    """How many pairs of a prompt `choose_pairs` makes if no two scores are equal.

    Args:
        responses: of the prompt.
        rule: as for `choose_pairs`.
    """
    if responses < 2:
        return 0
    return {"all": responses * (responses - 1) // 2, "best_others": responses - 1}.get(rule, 1)
