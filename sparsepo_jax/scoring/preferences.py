"""From the scores of a prompt's responses to preference pairs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal


def choose_pairs(
    scores: Sequence[float],
    rule: Literal["all", "best_worst", "first_two"],
    *,
    margin: float = 0.0,
    threshold: float | None = None,
    limit: int | None = None,
) -> list[tuple[int, int]]:
    """(better, worse) as places in `scores`, in order. Equal scores, and those that differ by margin or less, make no pair. threshold: the better
    one lies above it, the worse one does not. limit: so many pairs, those that differ most.

        scores           .9  .2  .6         all                       (0, 1) (0, 2) (2, 1)
                                            best_worst                (0, 1)
                                            all, threshold=.5         (0, 1) (2, 1)
                                            all, limit=1              (0, 1)
    """
    places = list(range(len(scores)))
    if rule == "first_two":
        places = places[:2]
    if rule == "best_worst" and places:
        places = [
            max(places, key=lambda n: scores[n]),
            min(places, key=lambda n: scores[n]),
        ]  # of equal ones the first
    ordered = [(a, b) if scores[a] > scores[b] else (b, a) for a, b in combinations(places, 2)]
    fitting = [
        (a, b)
        for a, b in ordered
        if scores[a] - scores[b] > margin and (threshold is None or scores[a] > threshold >= scores[b])
    ]
    return sorted(sorted(fitting, key=lambda pair: scores[pair[1]] - scores[pair[0]])[:limit])
