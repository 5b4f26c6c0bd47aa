"""The weights that the section `weigh` asks for, as a function of the scores of one response."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsepo_jax.config.schema.token_weights import TwoRuns
from sparsepo_jax.data import weighing
from sparsepo_jax.data.weighing import Numbers

Scores = dict[str, Numbers]
"""A response's columns of scores.jsonl: logp, ref_logp, kl, reward_mask, kl_mask."""
WeightsOf = Callable[[list[Scores], int, bool], Numbers]
"""(the response's scores by each run, how many last tokens end it, whether it is chosen) -> weights [T]."""


def make_weigh(settings: Any) -> WeightsOf:
    """How one response is weighed."""
    options = settings.model_dump(exclude={"kind", "run", "positive", "negative", "of"})

    def of_two(scores: list[Scores], ending: int, is_chosen: bool) -> Numbers:
        function = weighing.tis_weights if settings.kind == "tis" else weighing.critical_weights
        positive, negative = scores
        return function(positive["logp"], negative["logp"], ending, is_chosen=is_chosen, **options)

    def of_one(scores: list[Scores], ending: int, is_chosen: bool) -> Numbers:
        (run,) = scores
        if settings.kind == "mask":
            return run[f"{settings.of}_mask"]
        if settings.kind == "log_ratio":
            return weighing.log_ratio_weights(run["logp"], run["ref_logp"])
        function = weighing.tgdpo_weights if settings.kind == "tgdpo" else weighing.sepo_weights
        return function(run["logp"], run["ref_logp"], is_chosen=is_chosen, **options)

    return of_two if isinstance(settings, TwoRuns) else of_one


def as_written(weight_T: Numbers) -> list[float]:
    """The weights as float32 with the fewest digits that tell them apart."""
    return [float(str(x)) for x in weight_T.astype(np.float32)]
