"""The section `objective`: one class for each loss. beta is in 1/nat."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from sparsepo_jax.config.schema.base import ByKind, IsNumber, NonNegative, PositiveFloat, Section, Share
from sparsepo_jax.config.schema.masks import ActivationMask, LearnedMask, Mask, MaskOfMaPO
from sparsepo_jax.config.schema.objective_base import Beta, LabelNoise, ObjectiveBase, SparseBase
from sparsepo_jax.config.schema.unpaired import Unpaired
from sparsepo_jax.config.schema.weighing import MEAN, MEAN_OF_LOGPS, SUM, SUM_WITH_KL, Weighs


class SparsePO(SparseBase):
    kind: Literal["sparsepo"] = "sparsepo"
    """Log-ratio and KL of each token, weighted by a token mask (2410.05102)."""
    weighs = SUM_WITH_KL
    own = ("mask", "l1_reward", "l1_kl")
    beta: Beta = 0.8
    mask: Mask = LearnedMask()
    """The token mask. A mapping without `kind` is a learned mask here."""


class MaPO(ObjectiveBase):
    kind: Literal["mapo"]
    """SparsePO's loss on activation masks, without L1 (2410.05102)."""
    weighs = SUM_WITH_KL
    own = ("mask",)
    beta: Beta = 0.8
    mask: MaskOfMaPO = ActivationMask()
    """The token mask. A mapping without `kind` is an activation mask here."""


class Dpo(SparseBase):
    kind: Literal["dpo"]
    """Direct preference optimisation (2305.18290)."""
    weighs = SUM
    beta: Beta = 0.1


class Cdpo(SparseBase):
    kind: Literal["cdpo"]
    """Conservative DPO: cross-entropy with smoothed labels (Mitchell 2023)."""
    weighs = SUM
    beta: Beta = 0.1
    label_smoothing: LabelNoise = 0.1


class Robust(SparseBase):
    kind: Literal["robust"]
    """DPO made unbiased under exchanged labels (2403.00409)."""
    weighs = SUM
    beta: Beta = 0.1
    label_smoothing: LabelNoise = 0.1


class Ipo(SparseBase):
    kind: Literal["ipo"]
    """Squared distance of the mean log-ratios' difference from 1/(2 beta) (2310.12036)."""
    weighs = MEAN
    beta: Beta = 0.1


class Hinge(SparseBase):
    kind: Literal["hinge"]
    """SLiC's hinge on log-ratios (2305.10425, 2309.06657)."""
    weighs = SUM
    beta: Beta = 0.1


class SimPO(SparseBase):
    kind: Literal["simpo"]
    """Mean log-probs with a target margin, without a reference (2405.14734)."""
    weighs = MEAN_OF_LOGPS
    beta: PositiveFloat = 2.0
    """Scale of the mean log-probs."""
    gamma: NonNegative = 1.0
    """Target margin: taken off beta times the difference of mean log-probs."""


class Orpo(SparseBase):
    kind: Literal["orpo"]
    """Likelihood plus an odds ratio, without a reference (2403.07691)."""
    weighs = dataclasses.replace(MEAN_OF_LOGPS, note="its NLL counts every token")
    odds_weight: NonNegative = 0.1
    """lambda: weight of the odds-ratio term."""


class Cpo(SparseBase):
    kind: Literal["cpo"]
    """DPO's comparison of log-probs without a reference, plus likelihood (2401.08417)."""
    weighs = Weighs("log-prob", "sum", note="its NLL counts every token")
    beta: PositiveFloat = 0.1
    """Scale of the summed log-probs."""
    alpha: NonNegative = 1.0
    """Weight of the chosen response's mean NLL."""


class Dpop(SparseBase):
    kind: Literal["dpop"]
    """DPO that keeps the chosen response from becoming less likely (Smaug, 2402.13228)."""
    weighs = dataclasses.replace(SUM, note="in the penalty, too")
    beta: Beta = 0.3
    penalty: NonNegative = 50.0
    """lambda: weight of max(0, -sum of the chosen log-ratios)."""


class Rdpo(SparseBase):
    kind: Literal["rdpo"]
    """DPO with a length penalty (2403.19159)."""
    weighs = dataclasses.replace(SUM, note="lengths count every token")
    beta: Beta = 0.1
    alpha: NonNegative = 0.01
    """Added to the margin for each token by which the chosen response is longer."""


class Tdpo1(SparseBase):
    kind: Literal["tdpo1"]
    """DPO minus the difference of the responses' KL (2404.11999)."""
    weighs = SUM_WITH_KL
    beta: Beta = 0.1


class Tdpo2(SparseBase):
    kind: Literal["tdpo2"]
    """TDPO-1 with a weighted KL term and no gradient through the chosen response's KL (2404.11999)."""
    weighs = dataclasses.replace(
        SUM_WITH_KL, note="no gradient passes through the chosen response's KL to its mask"
    )
    beta: Beta = 0.1
    alpha: NonNegative = 0.5
    """Weight of the KL term."""


class D2po(SparseBase):
    kind: Literal["d2po"]
    """DPO whose token weights fall with the position (2502.14340)."""
    weighs = dataclasses.replace(SUM, note="times the objective's own weights")
    beta: Beta = 0.1
    gamma: Annotated[float, Field(gt=0, le=1), IsNumber] = 0.98
    """Weight gamma**t of response token t = 1, 2, ..."""


class Sampo(SparseBase):
    kind: Literal["sampo"]
    """DPO on as many drawn tokens of each response as the shorter one has (2406.10957)."""
    weighs = dataclasses.replace(SUM, note="of the drawn tokens")
    beta: Beta = 0.1


class Ldpo(SparseBase):
    kind: Literal["ldpo"]
    """DPO that counts the longer response's surplus tokens less (LD-DPO, 2409.06411)."""
    weighs = dataclasses.replace(SUM, note="times the objective's own weights")
    beta: Beta = 0.1
    alpha: Share = 0.5
    """Weight of tokens past the shorter response's length."""


class Confpo(SparseBase):
    kind: Literal["confpo"]
    """SimPO on the tokens that the policy is unsure of (2506.08712)."""
    weighs = dataclasses.replace(
        MEAN_OF_LOGPS, note="of the unsure tokens, which are chosen without the mask"
    )
    beta: PositiveFloat = 2.0
    """Scale of the mean log-probs."""
    gamma: NonNegative = 1.0
    """Target margin, as in simpo."""


class Caldpo(SparseBase):
    kind: Literal["caldpo"]
    """DPO whose rewards are calibrated to 1/(2 beta) and -1/(2 beta) (2412.14516)."""
    weighs = SUM
    beta: Beta = 0.1


class DpoNorm(SparseBase):
    kind: Literal["dpo_norm"]
    """DPO on mean log-ratios, the default of Tulu 3 and OLMo (2411.15124)."""
    weighs = MEAN
    beta: Beta = 5.0


class AlphaPO(SparseBase):
    kind: Literal["alphapo"]
    """SimPO with another shape of the reward (2501.03884)."""
    weighs = MEAN_OF_LOGPS
    beta: PositiveFloat = 2.0
    """Scale of the rewards."""
    gamma: NonNegative = 1.0
    """Target margin, as in simpo."""
    alpha: Annotated[float, Field(ge=-10, le=10), IsNumber] = 0.25
    """Shape of the reward; 0 gives SimPO."""


class Exo(SparseBase):
    kind: Literal["exo"]
    """Reverse KL to smoothed labels, for pairs (2402.00856)."""
    weighs = SUM
    beta: Beta = 0.1
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5), IsNumber] = 1e-3
    """Share of pairs whose labels are taken to be exchanged."""


class Discopop(SparseBase):
    kind: Literal["discopop"]
    """A blend of logistic and exponential loss (2406.08414)."""
    weighs = SUM
    beta: Beta = 0.05
    temperature: PositiveFloat = 0.05
    """How softly one passes into the other."""


class BregmanBase(SparseBase):
    beta: Beta = 0.1
    power: NonNegative | None = 0.2
    """Of Basu's divergence: 0 gives KLIEP, 1 gives LSIF, but for their scale; null the logistic loss."""
    scale: PositiveFloat = 4.0
    """Divides the loss of Basu's divergence; with 4 a margin of zero has the slope that DPO gives it."""


class Bpo(BregmanBase):
    kind: Literal["bpo"]
    """DPO as the estimate of a ratio by a Bregman divergence (2505.19601)."""
    weighs = SUM


class TbpoA(BregmanBase):
    kind: Literal["tbpo_a"]
    """BPO token by token, on advantages under the reference (2605.12288)."""
    weighs = Weighs("log-ratio", "token", kl=True, note="the mean is over all compared tokens")


class Fdpo(SparseBase):
    kind: Literal["fdpo"]
    """DPO under another divergence from the reference than the reverse KL (2309.16240)."""
    weighs = SUM
    beta: Beta = 0.1
    alpha: Annotated[float, Field(ge=-10, le=10), IsNumber] | None = 0.5
    """Of an alpha-divergence: 1 is DPO, 0 takes the forward KL; null that of Jensen and Shannon."""


class Nca(SparseBase):
    kind: Literal["nca"]
    """Noise contrastive alignment of pairs (2402.05369)."""
    weighs = SUM
    beta: Beta = 0.1


class BcoPair(SparseBase):
    kind: Literal["bco_pair"]
    """A classifier of chosen and rejected responses (2404.04656), without the shift of rewards."""
    weighs = SUM
    beta: Beta = 0.1


class Sppo(SparseBase):
    kind: Literal["sppo"]
    """Self-play preference optimisation with certain labels (2405.00675)."""
    weighs = SUM
    beta: Beta = 0.001


class ApoZero(SparseBase):
    kind: Literal["apo_zero"]
    """Anchored: the chosen response grows likelier, the rejected one less likely (2408.06266)."""
    weighs = SUM
    beta: Beta = 0.1


class ApoDown(SparseBase):
    kind: Literal["apo_down"]
    """Anchored: both responses grow less likely, the rejected one more so (2408.06266)."""
    weighs = SUM
    beta: Beta = 0.1


class TbpoQ(BregmanBase):
    kind: Literal["tbpo_q"]
    """BPO token by token, with a learned baseline (2605.12288)."""
    weighs = Weighs("log-ratio", "token", note="baselines, too; the mean is over all compared tokens")
    reads = ("baseline",)
    power: NonNegative | None = 0.0
    """Of Basu's divergence: 0 gives KLIEP, 1 gives LSIF, but for their scale; null the logistic loss."""
    baseline_limit: PositiveFloat = 10.0
    """The centred difference of baselines is kept within plus and minus this, nats."""


class TiDpo(SparseBase):
    kind: Literal["tidpo"]
    """TDPO-2 whose token weights follow the gradient of the policy's prediction (2505.19653)."""
    weighs = dataclasses.replace(SUM_WITH_KL, note="times the importance of tokens, in the reward")
    reads = ("importance",)
    beta: Beta = 0.2
    alpha: NonNegative = 0.5
    """Weight of the KL term."""
    attribution: Share = 0.8
    """Share of the measured importance in a token's weight; the rest is a Gaussian's around the middle."""
    prior_width: PositiveFloat = 4.0
    """The Gaussian's deviation is the response's length over this, but one token at least."""


class AotBase(SparseBase):
    weighs = dataclasses.replace(SUM, note="before the sums are sorted over the batch")
    beta: Beta = 0.1
    label_smoothing: LabelNoise = 0.0


class Aot(AotBase):
    kind: Literal["aot"]
    """Alignment by optimal transport: sorted margins of the policy against those of the reference
    (2406.05882)."""


class AotUnpaired(AotBase):
    kind: Literal["aot_unpaired"]
    """Sorted rewards of chosen responses against those of rejected ones (2406.05882)."""


Single = (
    Dpo
    | Cdpo
    | Robust
    | Ipo
    | Hinge
    | SimPO
    | Orpo
    | Cpo
    | Dpop
    | Rdpo
    | Tdpo1
    | Tdpo2
    | D2po
    | Sampo
    | Ldpo
    | Confpo
    | Caldpo
    | DpoNorm
    | AlphaPO
    | Exo
    | Discopop
    | Bpo
    | TbpoA
    | TbpoQ
    | TiDpo
    | Fdpo
    | Nca
    | BcoPair
    | Sppo
    | ApoZero
    | ApoDown
    | Aot
    | AotUnpaired
)


class Part(Section):
    weight: NonNegative = 1.0
    """What the loss of this part counts."""
    objective: Annotated[Single, ByKind("dpo")]
    """The part: an objective without a mask of its own."""


class Mix(SparseBase):
    kind: Literal["mix"]
    """A sum of objectives with weights (TRL's lists of loss types; MPO, 2411.10442)."""
    parts: Annotated[list[Part], Field(min_length=1)]
    """The objectives and their weights. Margin and rewards that are reported are those of the first."""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """What any of the parts reads."""
        return tuple(name for part in self.parts for name in part.objective.reads)

    @property
    def reads_alignment(self) -> bool:
        """For the weight of the sum, or of any part."""
        return super().reads_alignment or any(part.objective.reads_alignment for part in self.parts)

    @property
    def weighs(self) -> Weighs | str:  # type: ignore[override]
        """As each part has it; a KL term is there if any of them has one."""
        declared = [part.objective.weighs for part in self.parts]
        refusal = next((weighs for weighs in declared if isinstance(weighs, str)), None)
        return refusal or Weighs("log-ratio", "sum", kl=any(weighs.kl for weighs in declared))


Objective = Annotated[SparsePO | MaPO | Single | Unpaired | Mix, ByKind("sparsepo")]
