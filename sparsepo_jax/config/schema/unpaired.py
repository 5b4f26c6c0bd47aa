"""The objectives of single responses with a label, in the section `objective`."""

import dataclasses
from typing import ClassVar, Literal

from sparsepo_jax.config.schema.base import NonNegative
from sparsepo_jax.config.schema.objective_base import Beta, SparseBase
from sparsepo_jax.config.schema.weighing import SUM


class UnpairedBase(SparseBase):
    """Objectives of single responses with a label: rows (prompt, completion, label), or pairs as two rows."""

    weighs = SUM
    reads: ClassVar[tuple[str, ...]] = ("label",)
    beta: Beta = 0.1
    desirable_weight: NonNegative = 1.0
    """Weight of the loss of desirable responses (label true, or chosen)."""
    undesirable_weight: NonNegative = 1.0
    """Weight of the loss of undesirable responses. Where one class has more rows, the weights can even
    that out: desirable_weight times desirable rows over the same of the others, from 1 to 4/3 (KTO)."""


class Kto(UnpairedBase):
    kind: Literal["kto"]
    """Kahneman-Tversky optimisation of single responses: each against the batch's KL (2402.01306)."""
    weighs = dataclasses.replace(SUM, note="in the baseline, too")
    reads = ("label", "mismatched")


class Bco(UnpairedBase):
    kind: Literal["bco"]
    """A classifier of single responses: each against the mean reward so far (2404.04656)."""
    weighs = dataclasses.replace(SUM, note="in the running mean, too")
    reads = ("label", "running")


class ApoZeroUnpaired(UnpairedBase):
    kind: Literal["apo_zero_unpaired"]
    """APO-zero of single responses: desirable ones grow likelier, others less likely (2408.06266)."""


Unpaired = Kto | Bco | ApoZeroUnpaired
