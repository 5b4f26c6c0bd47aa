"""What the doctor says where something else is learnt than was meant, or from pairs that teach little.

Thresholds stand beside the rule, with their reason.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sparsepo_jax.report.evidence import Evidence, mean, squared_error
from sparsepo_jax.report.intervals import wilson
from sparsepo_jax.report.table import cases_of, number_or_none, value

# ---------------------------------------------------------------- what is learnt is not what was meant

LESS_LIKELY_NATS = 1.0  # a response that is less than 1 / e as likely as before


def chosen_falls(evidence: Evidence) -> str | None:
    """The chosen responses are less likely than by the reference, in the mean over the last quarter.

    By more than LESS_LIKELY_NATS and twice its standard error. Preference losses ask for a difference only
    and may lower both (Pal et al., arXiv:2402.13228); below one nat a response that is drift.
    """
    chosen = evidence.late("log_ratio/chosen")
    rejected = evidence.late_mean("log_ratio/rejected")
    if not chosen or rejected is None:
        return None
    if mean(chosen) + 2 * math.sqrt(squared_error(chosen)) > -LESS_LIKELY_NATS:
        return None
    weight = evidence.number("objective.nll_weight") or 0.0
    if evidence.setting("objective.kind") == "dpop":
        penalty = evidence.number("objective.penalty")
        remedy = f"raise objective.penalty ({penalty:g}), or lower the learning rate"
    else:
        remedy = f"raise objective.nll_weight ({weight:g})" if weight > 0 else "set objective.nll_weight=0.1"
        if evidence.unit == "pairs":  # single responses need another objective
            remedy += ", or take objective.kind=dpop"
    better, worse = ("chosen", "rejected") if evidence.unit == "pairs" else ("desirable", "undesirable")
    return (
        f"the {better} responses have become less likely (log-ratio to the reference {mean(chosen):.1f} nats "
        f"a response; {worse} {rejected:.1f}): {remedy}"
    )


ONLY_BY_MASK = 0.1  # of masked margin: odds of 1.1
# By the mask's kind, beside a higher rate.
OTHER_REMEDIES = {
    "learned": ", or lower objective.mask.learning_rate",
    "given": "; weights that depend on which answer was chosen can lower the loss by themselves: "
    "take weights that do not",
}


class Margins(NamedTuple):
    """masked, unmasked: means. only_masked: whether the unmasked margin cannot be told from zero."""

    masked: float
    unmasked: float
    only_masked: bool


def margin_only_by_mask(evidence: Evidence) -> str | None:
    """The masked margin has grown beyond ONLY_BY_MASK, and the unmasked one has not grown."""
    if evidence.setting("objective.mask") is None:
        return None
    margins = _evaluated_margins(evidence.summary) or _late_margins(evidence)
    if margins is None or not margins.only_masked:
        return None
    if margins.masked < ONLY_BY_MASK or margins.masked <= margins.unmasked:
        return None
    other_remedy = OTHER_REMEDIES.get(evidence.setting("objective.mask.kind"), "")
    return (
        f"the margin grows only through the mask (masked {margins.masked:.2g}, unmasked "
        f"{margins.unmasked:.2g}): the policy itself prefers nothing yet; raise po.optimizer.learning_rate"
        f"{other_remedy}"
    )


def _evaluated_margins(summary: Mapping[str, Any]) -> Margins | None:
    """On held-out pairs.

    only_masked: of the two accuracies' 95 % intervals, only that of the masked one lies above one half.
    """
    masked, unmasked, with_mask, without = (
        value(summary, ("after", name))
        for name in ("margin", "margin_unmasked", "accuracy", "accuracy_unmasked")
    )
    n = cases_of(summary)
    if masked is None or unmasked is None or with_mask is None or without is None:
        return None
    if n is None or not (0 <= with_mask <= 1 and 0 <= without <= 1):
        return None
    return Margins(masked, unmasked, wilson(with_mask, n).low > 0.5 >= wilson(without, n).low)


def _late_margins(evidence: Evidence) -> Margins | None:
    """Before an evaluation: the unmasked margin of the last quarter is below two of its standard errors."""
    masked = evidence.late_mean("rewards/margins")
    late = evidence.late("margin_unmasked")
    if masked is None or len(late) < 4:  # fewer have no spread to speak of
        return None
    return Margins(masked, mean(late), mean(late) <= 2 * math.sqrt(squared_error(late)))


NO_ZEROS = 0.01


def mask_without_zeros(evidence: Evidence) -> str | None:
    """At the end a learned mask has fewer than NO_ZEROS zeros, and nothing that asks for any."""
    if not evidence.ended or evidence.setting("objective.mask.kind") != "learned":
        return None
    if any(evidence.number(f"objective.{name}") for name in ("l1_reward", "l1_kl")):
        return None
    if evidence.setting("objective.mask.on") == "kl":
        zeros = evidence.late_mean("mask/kl_sparsity")
    else:
        zeros = value(evidence.summary, ("mask", "sparsity_end"))
        if zeros is None:
            zeros = evidence.late_mean("mask/reward_sparsity")
    if zeros is None or zeros >= NO_ZEROS:
        return None
    return (
        f"the mask has no zeros ({100 * zeros:.2g} %), and there is no L1 term that would make some: "
        "objective.l1_reward=1e-3 (and l1_kl, with a KL term) makes it sparse"
    )


FAR_NATS, FAR_NATS_A_TOKEN = 20.0, 0.5
FAR_NATS_OF_ANY_LENGTH = 50.0  # where the number of tokens is unknown


def kl_far(evidence: Evidence) -> str | None:
    """The KL of a response is above FAR_NATS, and above FAR_NATS_A_TOKEN times its tokens.

    The frontiers that objectives are compared on end at 20 nats (Rafailov et al., arXiv:2305.18290, figure 2:
    responses of some 60 tokens, a third of a nat a token). Longer responses may go farther; at half a nat a
    token a policy writes another text.
    """
    kl = evidence.kl()
    tokens = evidence.count("response_tokens")
    limit = max(FAR_NATS, FAR_NATS_A_TOKEN * tokens) if tokens else FAR_NATS_OF_ANY_LENGTH
    if kl is None or kl <= limit:
        return None
    beta = evidence.number("objective.beta")
    knob = "" if beta is None else f"raise objective.beta ({beta:g}), or "
    return (
        f"the KL to the reference is {kl:.3g} nats a response, beyond what a frontier is about ({limit:.3g} "
        f"here): the policy has left the reference; {knob}lower po.optimizer.learning_rate or po.steps"
    )


# ---------------------------------------------------------------- the pairs

SEEN_SHARE = 0.01  # fewer rows in a hundred change no result that could be told
USELESS_SHARE = 0.1


def responses_cut(evidence: Evidence) -> str | None:
    """At least SEEN_SHARE of the responses."""
    cut = _cut(evidence, "responses_cut", "responses")
    if cut is None:
        return None
    raising = "" if _is_longest(evidence) else f"raise data.max_length{_now(evidence, 'max_length')}, or "
    return (
        f"{cut} responses are cut and have lost their end, EOS included: the policy does not see how they "
        f"end; {raising}leave these {evidence.unit} out"
    )


def prompts_cut(evidence: Evidence) -> str | None:
    """At least SEEN_SHARE of the pairs."""
    cut = _cut(evidence, "prompts_cut", "rows")
    if cut is None:
        return None
    total = ", which takes from the responses" if _is_longest(evidence) else " and data.max_length"
    return (
        f"{cut} {evidence.unit} are longer than the limit and have lost the beginning of their prompt; raise "
        f"data.max_prompt_length{_now(evidence, 'max_prompt_length')}{total}"
    )


def _cut(evidence: Evidence, count: str, of: str) -> str | None:
    """As in "20 of 2000"; None if they are fewer than SEEN_SHARE."""
    cut, total = evidence.count(count), evidence.count(of)
    if not cut or cut < SEEN_SHARE * total:
        return None
    return f"{cut:.0f} of {total:.0f}"


def _now(evidence: Evidence, name: str) -> str:
    """The limit in force, in parentheses."""
    tokens = _limit(evidence, name)
    return "" if tokens is None else f" ({tokens:.0f} tokens)"


def _is_longest(evidence: Evidence) -> bool:
    """Whether rows may be as long as the model's positions already."""
    tokens, positions = (_limit(evidence, name) for name in ("max_length", "positions"))
    return tokens is not None and positions is not None and tokens >= positions


def _limit(evidence: Evidence, name: str) -> float | None:
    limits = evidence.facts.get("limits")
    of_run = number_or_none(limits.get(name)) if isinstance(limits, Mapping) else None
    return evidence.number(f"data.{name}") or of_run


def pairs_useless(evidence: Evidence) -> str | None:
    """At least USELESS_SHARE of the pairs teach nothing.

    Both responses are the same, or the same pair is there the other way round, too.
    """
    rows, equal, against = (evidence.count(name) for name in ("rows", "equal_pairs", "contradicting_pairs"))
    if not equal + against or equal + against < USELESS_SHARE * rows:
        return None
    kinds = []
    if equal:
        kinds.append(f"{equal:.0f} have equal responses")
    if against:
        kinds.append(f"{against:.0f} are there the other way round, too")
    return f"of {rows:.0f} pairs {' and '.join(kinds)}: they teach nothing; leave them out of data.train"
