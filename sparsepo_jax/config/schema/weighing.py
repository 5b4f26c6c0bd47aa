"""What token weights mean in an objective: which terms they weigh, and how these are added up.

`config/schema/objectives.py` says it of each objective.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Weighs:
    """What an objective does with the token masks m^u (of rewards) and m^d (of KL).

    Every objective declares it once, as `weighs`. Checks of configs and the table in the docs read it, and a
    test holds the losses to it.
    """

    term: Literal["log-ratio", "log-prob"]
    """What m^u weighs: log pi - log pi_ref of a token, or log pi alone."""
    over: Literal["sum", "mean", "token"]
    """sum: of m^u_t times the term; mean: that sum over the sum of |m^u_t|, so that the mask's scale does not
    count; token: each token's weighted term goes into a loss of its own."""
    kl: bool = False
    """Whether there is a KL term, which m^d weighs."""
    note: str = ""
    """What the mask does not reach, or what weights of the objective's own it is multiplied with."""


SUM = Weighs("log-ratio", "sum")
SUM_WITH_KL = Weighs("log-ratio", "sum", kl=True)
MEAN = Weighs("log-ratio", "mean")
MEAN_OF_LOGPS = Weighs("log-prob", "mean")
