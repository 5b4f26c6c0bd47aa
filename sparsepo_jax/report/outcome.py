"""What happened in a run, in a line of words.

Whether it learnt, at what KL, how sparse the mask is, and whether the mask carries the preference. A share of
pairs, or of single responses, is believed only as far as its 95 % interval over pairs (Wilson) goes.
"""

from sparsepo_jax.report.intervals import Interval, wilson
from sparsepo_jax.report.table import cases_of, percent, unit_of, value

CHANCE = 0.5
# With fewer pairs the interval around one half reaches a tenth to either side: smaller effects cannot be
# seen.
FEW_PAIRS = 100
DELETED = "0.1"  # the share of deleted tokens that the line is about
UNMOVED_NATS = 1e-4  # a KL below this is rounding, or a learning rate that is as good as zero


def outcome(summary: dict) -> str | None:
    """The line for the content of summary.json.

    None if the summary does not say which share of how many pairs is preferred rightly.
    """
    share = value(summary, ("after", "accuracy_unmasked"))
    cases = cases_of(summary)
    if share is None or not 0 <= share <= 1 or cases is None:
        return None
    accuracy, pairs = wilson(share, cases), summary["pairs"]
    before = value(summary, ("before", "accuracy_unmasked"))
    kl = value(summary, ("after", "kl"))
    chance = _chance(summary)
    unit = unit_of(summary)
    verdict = _verdict(accuracy, before, kl, chance, unit)
    clauses = [
        f"{verdict}: {_preferred(summary, accuracy, pairs, before)}{_at_kl(kl)}",
        *_doubts(accuracy, before, kl, chance, unit),
        *_of_mask(summary, accuracy, learnt=verdict == "Learnt"),
    ]
    return "; ".join(clauses) + "."


def _chance(summary: dict) -> float:
    """What telling nothing apart gets right: half of the pairs, or the larger class of single responses."""
    desirable = value(summary, ("desirable",))
    if desirable is None or not 0 <= desirable <= 1:
        return CHANCE
    return max(desirable, 1 - desirable)


def _verdict(accuracy: Interval, before: float | None, kl: float | None, chance: float, unit: str) -> str:
    """Learnt: the interval lies above chance, and above what the policy did before."""
    if before is None:
        return "Not trained here"
    level = max(chance, before)
    if _unmoved(kl):
        return "Not learnt"
    if accuracy.low > level:
        return "Learnt"
    if accuracy.high < min(1 - chance, before):
        return "Learnt the wrong way round"
    if accuracy.n < FEW_PAIRS and accuracy.high > level:
        return f"Not learnt, as far as so few {unit} can tell"
    return "Not learnt"


def _unmoved(kl: float | None) -> bool:
    return kl is not None and kl < UNMOVED_NATS


def _preferred(summary: dict, accuracy: Interval, pairs: int, before: float | None) -> str:
    was = "" if before is None else f"; {before:.2f} before"
    what = "pairs are preferred rightly"
    if unit_of(summary) == "responses":
        what = "responses are judged rightly as desirable or not"
        was += f"; {_chance(summary):.2f} if all were called alike"
    if pairs == 1:
        what = what.replace("s are", " is", 1)
    return (
        f"{accuracy.mean:.2f} of the {pairs} held-out {what} "
        f"(95 % interval {accuracy.low:.2f} to {accuracy.high:.2f}{was})"
    )


def _at_kl(kl: float | None) -> str:
    if kl is None:
        return ""
    digits = ".1g" if 0 < abs(kl) < 0.01 else ".2f"  # 0.004 is not 0
    return f" at a KL of {kl:{digits}} nats a response"


def _doubts(
    accuracy: Interval, before: float | None, kl: float | None, chance: float, unit: str
) -> list[str]:
    """Why a run has not learnt, or why its interval says little."""
    if before is None:
        return ["no preference optimisation has run in this directory"]
    if _unmoved(kl):
        return ["the policy is where it was"]
    if accuracy.low <= max(chance, before) <= accuracy.high and accuracy.n < FEW_PAIRS:
        unit = unit.removesuffix("s") if accuracy.n == 1 else unit
        width = accuracy.high - accuracy.low
        return [f"the interval of {accuracy.n} independent {unit} is {width:.2f} wide: evaluate on more"]
    return []


def _of_mask(summary: dict, accuracy: Interval, *, learnt: bool) -> list[str]:
    """The mask's zeros; and, if a preference was learnt, what is left of it without the mask's top tokens."""
    zeros = value(summary, ("mask", "sparsity_end"))
    if zeros is None:
        return []
    clauses = [_zeros(zeros, of_kl=summary.get("masked") == "kl")]
    everything = value(summary, ("mask", "deletion", "0", "accuracy_top"))
    without_top = value(summary, ("mask", "deletion", DELETED, "accuracy_top"))
    without_any = value(summary, ("mask", "deletion", DELETED, "accuracy_random"))
    if zeros == 1 or not learnt or everything is None or without_top is None or without_any is None:
        return clauses
    if 0 <= without_top <= 1:
        change = "falls to" if without_top < everything else "is"
        clauses.append(
            f"without its top tenth of tokens accuracy {change} {without_top:.2f}, without any tenth "
            f"{without_any:.2f}: {_carries(wilson(without_top, accuracy.n), without_any)}"
        )
    return clauses


def _carries(without_top: Interval, without_any: float) -> str:
    if without_top.high < without_any:
        return "it carries the preference"
    if without_top.low > without_any:
        return "its top tokens matter less than any others, so it does not carry the preference"
    return "whether it carries the preference cannot be told from that"


def _zeros(share: float, *, of_kl: bool) -> str:
    """of_kl: whether the mask is that of the KL alone."""
    mask, term = ("KL mask", "KL") if of_kl else ("mask", "preference")
    if share == 1:
        return f"the {mask} is zero on every token: it lets no {term} through"
    if share == 0:
        return f"the {mask} has no zeros"
    if share >= 0.01:
        return f"the {mask} has {percent(share)} zeros"
    return f"the {mask} has hardly any zeros ({100 * share:.2g} %)"
