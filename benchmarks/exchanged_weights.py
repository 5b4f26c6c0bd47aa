"""Do token weights that know which answer was chosen decide by themselves which answer a policy prefers?

Each answer gets the weights that it would have had if the other one had been chosen. A policy that tells good
answers from bad ones still prefers the chosen one; one that only agrees with the weights prefers the other.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo_jax.build.weighing import make_weigh
from sparsepo_jax.config.schema.root import Config

Record = dict[str, Any]
SIDES = ("chosen", "rejected")
COLUMNS = ("logp", "ref_logp", "reward_mask", "kl_mask")
END = 0  # the token that ends a review


def accuracies(config: Config, place: Path, trained: Path) -> tuple[float, float]:
    """Shares of held-out pairs whose chosen answer has the larger reward: with its weights, and exchanged.

    Args:
        config: of the recipe; the runs that it names lie below `place`.
        trained: directory of the run that trained on the weights and has scored the held-out pairs, which are
            the last ones that the runs scored.
    """
    scored = read(trained)
    of_runs = [read(place / run)[-len(scored) :] for run in config.weigh.runs]
    pairs = list(zip(scored, *of_runs, strict=True))
    assert all(_ids(of) == _ids(pair[0]) for pair in pairs for of in pair)
    margins = [[margin(config, *pair, exchanged=exchanged) for exchanged in (False, True)] for pair in pairs]
    as_made, exchanged = np.mean(np.array(margins) > 0, axis=0)
    return float(as_made), float(exchanged)


def read(run: Path) -> list[Record]:
    return [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]


def _ids(record: Record) -> list[list[int]]:
    return [record[side]["token_ids"] for side in SIDES]


def margin(config: Config, scored: Record, *of_runs: Record, exchanged: bool) -> float:
    """Reward of the chosen answer less that of the rejected one, without beta."""
    rewards = {
        side: reward(config, scored[side], [of[side] for of in of_runs], is_chosen=is_chosen)
        for side, is_chosen in zip(SIDES, (not exchanged, exchanged), strict=True)
    }
    return rewards["chosen"] - rewards["rejected"]


def reward(config: Config, scored: Record, of_runs: list[Record], *, is_chosen: bool) -> float:
    """DPO's sum of weighed log-ratios, or SimPO's weighed mean of log-probs."""
    scores = [{name: np.array(of[name]) for name in COLUMNS} for of in of_runs]
    ending = int(scored["token_ids"][-1] == END)
    weight_T = make_weigh(config.weigh)(scores, ending, is_chosen)
    logp_T, ref_logp_T = np.array(scored["logp"]), np.array(scored["ref_logp"])
    if config.objective.kind == "simpo":
        return float(weight_T @ logp_T / weight_T.sum())
    if config.objective.mask.normalise:
        weight_T = weight_T / weight_T.mean()
    return float(weight_T @ (logp_T - ref_logp_T))
