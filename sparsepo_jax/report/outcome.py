"""What happened in a run, in one line of words: learnt or not, at what KL, how sparse the mask is, and whether it carries the preference.

A share of pairs is believed only as far as its 95 % interval over pairs (Wilson) goes.
"""

from sparsepo_jax.report.intervals import Interval, wilson
from sparsepo_jax.report.table import value

CHANCE = 0.5
FEW_PAIRS = (
    100  # with fewer, the interval around one half reaches a tenth to either side: less is not to be seen
)
DELETED = "0.1"  # the share of deleted tokens that is spoken of
UNMOVED_NATS = 1e-4  # a KL below this is rounding, or a rate that is as good as zero


def outcome(summary: dict) -> str | None:
    """The line for the content of summary.json; None if it does not say how many pairs are preferred rightly."""
    share, pairs = value(summary, ("after", "accuracy_unmasked")), summary.get("pairs")
    if share is None or not 0 <= share <= 1 or type(pairs) is not int or pairs < 1:
        return None
    independent = value(summary, ("independent_pairs",))
    found = wilson(share, pairs if independent is None else round(max(1.0, min(independent, pairs))))
    before, kl = value(summary, ("before", "accuracy_unmasked")), value(summary, ("after", "kl"))
    verdict = _verdict(found, before, kl)
    clauses = [f"{verdict}: {_preferred(found, pairs, before)}{_at_kl(kl)}", *_doubts(found, before, kl)]
    return "; ".join(clauses + _of_mask(summary, found, learnt=verdict == "Learnt")) + "."


def _verdict(found: Interval, before: float | None, kl: float | None) -> str:
    """Learnt: the interval lies above chance, and above what the policy did before."""
    if before is None:
        return "Not trained here"
    level = max(CHANCE, before)
    if kl is not None and kl < UNMOVED_NATS:
        return "Not learnt"
    if found.low > level:
        return "Learnt"
    if found.high < min(CHANCE, before):
        return "Learnt the wrong way round"
    return (
        "Not learnt, as far as so few pairs can tell"
        if found.n < FEW_PAIRS and found.high > level
        else "Not learnt"
    )


def _preferred(found: Interval, pairs: int, before: float | None) -> str:
    was = "" if before is None else f"; {before:.2f} before"
    return f"{found.mean:.2f} of the {pairs} held-out pairs are preferred rightly (95 % interval {found.low:.2f} to {found.high:.2f}{was})"


def _at_kl(kl: float | None) -> str:
    return "" if kl is None else f" at a KL of {kl:.2f} nats a response"


def _doubts(found: Interval, before: float | None, kl: float | None) -> list[str]:
    """Why a run that has not learnt, or an interval that says little, is to be read with care."""
    if before is None:
        return ["no preference optimisation has run in this directory"]
    if kl is not None and kl < UNMOVED_NATS:
        return ["the policy is where it was"]
    if found.low <= max(CHANCE, before) <= found.high and found.n < FEW_PAIRS:
        return [
            f"the interval of {found.n} independent pair{'s' * (found.n > 1)} is {found.high - found.low:.2f} wide: evaluate on more"
        ]
    return []


def _of_mask(summary: dict, found: Interval, *, learnt: bool) -> list[str]:
    """Its zeros; and, if there is a preference to carry, what is left of it without the tokens of the largest mask."""
    zeros = value(summary, ("mask", "sparsity_end"))
    clauses = [] if zeros is None else [_zeros(zeros)]
    everything, top, chance = (
        value(summary, ("mask", "deletion", *path))
        for path in (("0", "accuracy_top"), (DELETED, "accuracy_top"), (DELETED, "accuracy_random"))
    )
    if zeros is None or zeros == 1 or not learnt or None in (everything, top, chance) or not 0 <= top <= 1:
        return clauses
    without_top = wilson(top, found.n)
    if without_top.high < chance:
        carries = "it carries the preference"
    elif without_top.low > chance:
        carries = "its top tokens matter less than any others, so it does not carry the preference"
    else:
        carries = "whether it carries the preference cannot be told from that"
    change = "falls to" if top < everything else "is"
    return [
        *clauses,
        f"without its top tenth of tokens accuracy {change} {top:.2f}, without any tenth {chance:.2f}: {carries}",
    ]


def _zeros(share: float) -> str:
    if share == 1:
        return "the mask is zero on every token: it lets no preference through"
    if share == 0:
        return "the mask has no zeros"
    return (
        f"the mask has {100 * share:.0f} % zeros"
        if share >= 0.01
        else f"the mask has hardly any zeros ({100 * share:.2g} %)"
    )
