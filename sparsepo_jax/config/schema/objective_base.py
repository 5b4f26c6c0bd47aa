"""What every objective has, and types of their numbers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sparsepo_jax.config.schema.base import IsNumber, NonNegative, Section
from sparsepo_jax.config.schema.masks import Mask
from sparsepo_jax.config.schema.weighing import Weighs

Beta = Annotated[
    float,
    Field(
        gt=0,
        description="Scale of log-ratios, 1/nat: the larger, the closer the policy stays to the reference.",
    ),
    IsNumber,
]
LabelNoise = Annotated[
    float, Field(ge=0, lt=0.5, description="Share of pairs whose labels are taken to be exchanged."), IsNumber
]


class ObjectiveBase(Section):
    weighs: ClassVar[Weighs | str] = "it does not say what the weight of a token means"
    """What token masks do; text: why none can be taken."""
    reads: ClassVar[tuple[str, ...]] = ()
    """What the loss reads beside log-probs and KL. Of tokens: importance, baseline. Of rows: label. Of
    batches, in a pass before: mismatched (log-ratios of mismatched responses), running (of all rows)."""
    mask: Mask | None = None
    """A token mask; null: every token counts 1. What it means in each objective is told in the documentation
    of masks. A mapping without `kind` is a learned mask here."""
    nll_weight: NonNegative = 0.0
    """Adds this times the mean negative log-likelihood of the chosen response's tokens (RPO)."""
    policy_weight: Literal[False, True, "aligned"] = False
    """Multiplies the loss of each pair by exp of the sum of both responses' mean log-probs under the policy,
    without gradient (WPO, 2406.11827): pairs that the policy itself might have written count most. aligned:
    a token's probability is first divided by what those have on average that the policy draws there, so that
    no weight is small because many tokens would do (TRL's use_weighting)."""

    @property
    def reads_alignment(self) -> bool:
        """Whether the loss reads how probable the policy's own tokens are."""
        return self.policy_weight == "aligned"


class SparseBase(ObjectiveBase):
    l1_reward: NonNegative = 0.0
    """Weight of the sum of the reward mask's absolute values."""
    l1_kl: NonNegative = 0.0
    """Weight of the sum of the KL mask's absolute values. With a common mask each of the two weights counts
    half, as in the official code."""
