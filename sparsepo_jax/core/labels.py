"""Responses by themselves, each desirable or not: metrics of the two classes.

A pair has one response of each class. Of rows of one response a metric of a class is a mean over the rows of
that class alone: each row gives its number, or 0 if it is of the other class, and the mean over all rows is
divided by the class's share of them. `chosen` stands for desirable and `rejected` for undesirable, as in TRL.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.core.types import TokenStats

SHARES = {side: f"share/{side}" for side in ("chosen", "rejected")}
# Differences of the two classes' means, which no row has by itself: in it they stand for that row's part.
_DIFFERENCES = {"rewards/margins": "rewards", "margin_unmasked": "rewards_unmasked"}


def sides(name: str, x_BP: Float[Array, "B P"], stats: TokenStats) -> dict[str, Float[Array, "B"]]:
    """NAME/chosen and NAME/rejected of each pair, or of each row of one response as told above.

    Args:
        name: of the metric.
        x_BP: a number for each response.
        stats: of the same responses; says which are desirable where rows are no pairs.
    """
    if x_BP.shape[1] == 2:
        return {f"{name}/chosen": x_BP[:, 0], f"{name}/rejected": x_BP[:, 1]}
    if stats.desirable_BP is None:
        raise ValueError("rows of one response need labels")
    desirable_B, x_B = stats.desirable_BP[:, 0], x_BP[:, 0]
    return {
        f"{name}/chosen": jnp.where(desirable_B, x_B, 0.0),
        f"{name}/rejected": jnp.where(desirable_B, 0.0, x_B),
    }


def of_classes(means: Mapping[str, Any], quotient: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Metrics of the classes from means over all rows; means over pairs as they are.

    Args:
        means: by name.
        quotient: of two numbers; what it gives for a share of 0 is the metric of a class without rows.
    """
    means = dict(means)
    if not set(SHARES.values()) <= set(means):
        return means
    for side, share in SHARES.items():
        for name in means:
            if name.endswith(f"/{side}") and name != share:
                means[name] = quotient(means[name], means[share])
    for name, of in _DIFFERENCES.items():
        if f"{of}/chosen" in means:
            means[name] = means[f"{of}/chosen"] - means[f"{of}/rejected"]
    return means


def mean_of_steps(steps: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Means over steps; of a class, and of its share, over the rows in all of them.

    Args:
        steps: metrics of each step, by the same names. NaN for a class that the step has no row of.
        weights: of each step's rows together. The last batch of an epoch may have fewer than the others.

    Returns:
        By name; NaN for a class that no step has a row of.
    """
    has_classes = set(SHARES.values()) <= set(steps[0])

    def mean(name: str) -> float:
        values = [step[name] for step in steps]
        share = SHARES.get(name.rpartition("/")[2])
        if not has_classes or share is None:
            return sum(values) / len(values)
        if share != name:  # what is added to the sum over all rows
            values = [x * step[share] if step[share] else 0.0 for x, step in zip(values, steps, strict=True)]
        total = sum(x * weight for x, weight in zip(values, weights, strict=True))
        return total / (sum(weights) or 1.0)  # rows that all weigh 0 are of no class

    means = {name: mean(name) for name in steps[0]}
    return of_classes(means, lambda x, share: x / share if share else math.nan)
