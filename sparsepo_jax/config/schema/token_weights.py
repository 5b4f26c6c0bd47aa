"""The section `weigh`: token weights that are read off the scores of finished runs."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import ByKind, IsNumber, NonNegative, Number, Section

ScoredRun = Annotated[
    PathText,
    Field(
        description="output_dir of a run that has finished its stage score on the pairs to be weighed, or "
        "its scores.jsonl."
    ),
]


class OneRun(Section):
    run: ScoredRun

    @property
    def runs(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.run,)


class TwoRuns(Section):
    positive: ScoredRun
    negative: ScoredRun

    @property
    def runs(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.positive, self.negative)

    @model_validator(mode="after")
    def _are_two(self) -> Self:
        directories = {os.path.abspath(run.removesuffix("scores.jsonl")) for run in self.runs}
        if len(directories) == 1:
            raise ValueError(f"positive and negative are the same run ({self.positive}): name two")
        return self


class TisWeights(TwoRuns):
    kind: Literal["tis"]
    """TIS-DPO (2410.04350): by the rank of log positive - log negative among the response's tokens, of its
    negative in rejected responses."""
    least: Number = 0.7
    """Weight of the first rank."""
    most: Number = 1.3
    """Weight of the last rank."""
    end: Number = 0.0
    """Weight of the tokens that end a response; they have no rank."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least:g}) is above most ({self.most:g})")
        return self


class TgdpoWeights(OneRun):
    kind: Literal["tgdpo"]
    """TGDPO (2506.14574): 1 + alpha beta (log policy - log reference) in chosen responses, 1 - the same in
    rejected ones."""
    alpha: NonNegative = 0.5
    """How much the run's rewards count."""
    beta: NonNegative | None = None
    """1/nat: beta times a log-ratio is the run's reward. null: the beta that the run was trained with."""


class CriticalWeights(TwoRuns):
    kind: Literal["critical"]
    """Critical tokens (2411.19943): c = positive^(1 + contrast) / negative^contrast, of the token's
    probabilities, at most 1; the weight is c in chosen responses and 1 - c in rejected ones."""
    contrast: NonNegative = 1.0
    """How much the negative model counts."""
    only_rejected: bool = False
    """Give all tokens of chosen responses the weight 1."""


class SepoWeights(OneRun):
    kind: Literal["sepo"]
    """SePO (2408.13518): 1 on the tokens of the largest log-ratios of chosen responses and of the smallest
    ones of rejected responses, 0 on the others."""
    share: Annotated[float, Field(gt=0, le=1), IsNumber] = 0.3
    """Share of a response's tokens that are kept, one at least."""


class LogRatioWeights(OneRun):
    kind: Literal["log_ratio"]
    """|log policy - log reference| of each token."""


class MaskWeights(OneRun):
    kind: Literal["mask"]
    """The mask that the run scored with, as a learned mask of ours."""
    of: Literal["reward", "kl"] = "reward"
    """Which of the two masks."""


Weigh = Annotated[
    TisWeights | TgdpoWeights | CriticalWeights | SepoWeights | LogRatioWeights | MaskWeights, ByKind("tis")
]
