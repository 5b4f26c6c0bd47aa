"""The doctor: what looks wrong with a preference optimisation.

Each line says what was seen, what it usually means and what to set. A rule reads the evidence and gives its
line, or None where it does not apply or cannot be told. Thresholds stand beside the rule, with their reason.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sparsepo_jax.report.evidence import Evidence, last_quarter, mean, squared_error
from sparsepo_jax.report.intervals import wilson
from sparsepo_jax.report.series import collect
from sparsepo_jax.report.table import number_or_none, value

FIRST_STEPS = 10  # after so many the doctor speaks for the first time
# Objectives whose loss (without L1 and NLL) is ln 2 while the policy is the reference, since their margin is
# 0 there.
STARTS_AT_LN2 = (
    "sparsepo",
    "mapo",
    "dpo",
    "cdpo",
    "robust",
    "dpop",
    "tdpo1",
    "tdpo2",
    "d2po",
    "sampo",
    "ldpo",
    "dpo_norm",
    "fdpo",
)
LN2 = math.log(2.0)


def diagnose(evidence: Evidence) -> list[str]:
    """The lines that apply, in the order of RULES; none for a run that never trained on preferences."""
    if not evidence.series:
        return []
    return [line for rule in RULES if (line := rule(evidence)) is not None]


class FirstSteps:
    """Called after every step of po with what it measured.

    It returns the doctor's lines after FIRST_STEPS steps, and none before or later.
    """

    def __init__(self, config: Mapping[str, Any], facts: Mapping[str, Any]):
        self._config = config
        self._facts = facts
        self._rows: list[dict[str, Any]] = []

    def __call__(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        if step > FIRST_STEPS:
            return []
        self._rows.append({"stage": "po", "step": step} | metrics)
        if step < FIRST_STEPS:
            return []
        series = {name: values for (_, name), values in collect(self._rows)[0].items()}
        steps = number_or_none(self._facts.get("steps"))
        ended = steps is not None and steps <= FIRST_STEPS
        return diagnose(Evidence(self._config, series, ended, self._facts))


# ---------------------------------------------------------------- nothing is learnt

# Distance from ln 2: a margin of 0.01, an accuracy that no evaluation of fewer than 10,000 pairs could tell
# from 1/2.
STAYS_WITHIN = 0.005
NEVER_LEFT = 0.02  # four times that: what single batches may do by chance where nothing is learnt


def loss_stays(evidence: Evidence) -> str | None:
    """The loss is where it was when the policy was the reference.

    At the end: the last quarter is within STAYS_WITHIN of ln 2, and no record is farther away than
    NEVER_LEFT. Early, the learning rate still warms up, and the loss may have hardly moved. The largest move
    so far is then scaled by all the learning rate that is to come over what there was so far (Adam's steps
    are as long as its rate): so far the loss could get in the rest of the steps.
    """
    losses = evidence.preference_loss()
    kind = evidence.setting("objective.kind")
    other_reference = any(evidence.setting(f"reference.{name}") is not None for name in ("path", "adapter"))
    is_weighted = evidence.setting("objective.policy_weight")
    if not losses or kind not in STARTS_AT_LN2 or other_reference or is_weighted:
        return loss_does_not_fall(evidence)
    farthest = max(abs(x - LN2) for x in losses)
    if evidence.ended:
        stays = abs(mean(last_quarter(losses)) - LN2) < STAYS_WITHIN and farthest < NEVER_LEFT
    else:
        stays = farthest * _rate_to_come(evidence) < STAYS_WITHIN
    return f"the loss stays at ln 2 ({losses[-1]:.5f}): {_why_nothing_moves(evidence)}" if stays else None


def _rate_to_come(evidence: Evidence) -> float:
    """The sum of the learning rates of all steps over that of the steps so far, at most."""
    so_far = sum(evidence.values("learning_rate"))
    peak = evidence.number("po.optimizer.learning_rate")
    if so_far == 0:
        return 1.0
    if evidence.steps is None or peak is None:
        return math.inf
    return max(1.0, peak * evidence.steps / so_far)


def _why_nothing_moves(evidence: Evidence) -> str:
    pairs = evidence.count("rows")
    useless = evidence.count("equal_pairs") + evidence.count("contradicting_pairs")
    kl = evidence.kl()
    rates = evidence.values("learning_rate")
    if _mask_is_dead(evidence):
        return "the reward mask is zero everywhere (see below)"
    if rates and max(rates) == 0:
        return "the learning rate is 0; set po.optimizer.learning_rate"
    if pairs and useless >= 0.4 * pairs:
        return "most pairs are equal or contradict each other (see below)"
    if kl is not None and kl > 0.05:
        return (
            f"the policy has moved (KL {kl:.2g} nats a response), but does not tell chosen from rejected; "
            "look at the pairs with 'stages=[inspect]': are they noise, or swapped?"
        )
    rate = f" ({max(rates):.2g} at most)" if rates else ""
    return (
        f"the policy has hardly moved; the learning rate{rate} is too low for so few steps: raise "
        "po.optimizer.learning_rate (with po.lora tenfold and more), or po.steps"
    )


def loss_does_not_fall(evidence: Evidence) -> str | None:
    """The same for objectives that do not start at ln 2.

    The last quarter is not below the first by more than twice the standard error of that difference. Said at
    the end only, and from eight records on: quarters of one record have no spread.
    """
    losses = evidence.preference_loss()
    quarter = len(losses) // 4
    if not evidence.ended or quarter < 2:
        return None
    first, last = losses[:quarter], losses[-quarter:]
    if mean(first) - mean(last) > 2 * math.sqrt(squared_error(first) + squared_error(last)):
        return None
    return (
        f"the loss does not fall ({mean(first):.4f} in the first quarter, {mean(last):.4f} in the last): the "
        "learning rate is too low or too high, or the pairs do not say what is better; try "
        "po.optimizer.learning_rate, and look at the pairs with 'stages=[inspect]'"
    )


NO_GRADIENT = 1e-8  # AdamW's eps: a gradient below it moves nothing
NOTHING_TO_LOWER = 1e-3  # of loss: pairs that are all won have no gradient either


def gradient_zero(evidence: Evidence) -> str | None:
    """The gradient's norm is below NO_GRADIENT over the last quarter, though there is a loss to lower."""
    norms = evidence.late("grad_norm")
    losses = evidence.preference_loss()
    if not norms or max(norms) >= NO_GRADIENT or not losses or losses[-1] < NOTHING_TO_LOWER:
        return _mask_without_gradient(evidence)
    if _mask_is_dead(evidence):
        why = "the reward mask is zero everywhere"
    else:
        why = (
            "no pair says anything about these weights; look at po.lora.targets, and at the pairs with "
            "'stages=[inspect]'"
        )
    return f"the gradient is zero (norm {max(norms):.2g}): nothing moves; {why}"


def _mask_without_gradient(evidence: Evidence) -> str | None:
    """The mask's gradient is exactly zero after the first step, where policy = reference gives it none."""
    norms = list(evidence.series.get("grad_norm/masks", {}).values())
    moves = max(evidence.values("learning_rate"), default=0.0) > 0
    never_learns = str(evidence.setting("objective.mask.net")).startswith("binary")
    if not moves or never_learns or len(norms) < 2 or any(x != 0 for x in norms[1:]):
        return None
    return (
        "the mask gets no gradient: it stays as it began; objective.mask.init=ones starts it near 1, where "
        "every token has one"
    )


def _mask_is_dead(evidence: Evidence) -> bool:
    """On every token of the last quarter."""
    late = evidence.late("mask/reward_sparsity")
    return bool(late) and evidence.setting("objective.mask.on") != "kl" and min(late) == 1.0


def mask_dead(evidence: Evidence) -> str | None:
    """The reward mask is zero on every token of the last quarter."""
    if not _mask_is_dead(evidence):
        return None
    l1 = evidence.number("objective.l1_reward") or 0.0
    if evidence.setting("objective.mask.kind") == "given":
        remedy = "the columns chosen_weights and rejected_weights are all zero"
    elif l1 > 0:
        remedy = f"lower objective.l1_reward ({l1:g}), or objective.mask.learning_rate"
    else:
        remedy = "set objective.mask.init=ones and a lower objective.mask.learning_rate"
    return f"the reward mask is dead, zero on every token: no preference passes through it; {remedy}"


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
    elif weight > 0:
        remedy = f"raise objective.nll_weight ({weight:g}), or take objective.kind=dpop"
    else:
        remedy = "objective.nll_weight=0.1 or more, or objective.kind=dpop, holds them up"
    return (
        f"the chosen responses have become less likely (log-ratio to the reference {mean(chosen):.1f} nats a "
        f"response; rejected {rejected:.1f}): {remedy}"
    )


ONLY_BY_MASK = 0.1  # of masked margin: odds of 1.1


class Margins(NamedTuple):
    """masked, unmasked: means. only_masked: whether the unmasked margin cannot be told from zero."""

    masked: float
    unmasked: float
    only_masked: bool


def margin_only_by_mask(evidence: Evidence) -> str | None:
    """The masked margin has grown beyond ONLY_BY_MASK, the unmasked one has not."""
    if evidence.setting("objective.mask") is None:
        return None
    margins = _evaluated_margins(evidence.summary) or _late_margins(evidence)
    if margins is None or not margins.only_masked or margins.masked < ONLY_BY_MASK:
        return None
    return (
        f"the margin grows only through the mask (masked {margins.masked:.2g}, unmasked "
        f"{margins.unmasked:.2g}): the policy itself prefers nothing yet; raise po.optimizer.learning_rate, "
        "or lower objective.mask.learning_rate"
    )


def _evaluated_margins(summary: Mapping[str, Any]) -> Margins | None:
    """On held-out pairs.

    only_masked: of the two accuracies' 95 % intervals, only that of the masked one lies above one half.
    """
    masked, unmasked, with_mask, without = (
        value(summary, ("after", name))
        for name in ("margin", "margin_unmasked", "accuracy", "accuracy_unmasked")
    )
    pairs = number_or_none(summary.get("independent_pairs", summary.get("pairs")))
    if masked is None or unmasked is None or with_mask is None or without is None:
        return None
    if not pairs or not math.isfinite(pairs) or not (0 <= with_mask <= 1 and 0 <= without <= 1):
        return None
    n = max(1, round(pairs))
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
    return (
        f"{cut} responses are cut and have lost their end, EOS included: the policy does not see how they "
        f"end; raise data.max_length{_now(evidence, 'max_length')}, or leave these pairs out"
    )


def prompts_cut(evidence: Evidence) -> str | None:
    """At least SEEN_SHARE of the pairs."""
    cut = _cut(evidence, "prompts_cut", "rows")
    if cut is None:
        return None
    return (
        f"{cut} pairs are longer than the limit and have lost the beginning of their prompt; raise "
        f"data.max_prompt_length{_now(evidence, 'max_prompt_length')} and data.max_length"
    )


def _cut(evidence: Evidence, count: str, of: str) -> str | None:
    """As in "20 of 2000"; None if they are fewer than SEEN_SHARE."""
    cut, total = evidence.count(count), evidence.count(of)
    if not cut or cut < SEEN_SHARE * total:
        return None
    return f"{cut:.0f} of {total:.0f}"


def _now(evidence: Evidence, name: str) -> str:
    """The limit in force, in parentheses."""
    limits = evidence.facts.get("limits")
    of_run = number_or_none(limits.get(name)) if isinstance(limits, Mapping) else None
    tokens = evidence.number(f"data.{name}") or of_run
    return "" if tokens is None else f" ({tokens:.0f} tokens)"


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


RULES = (
    loss_stays,
    gradient_zero,
    mask_dead,
    chosen_falls,
    margin_only_by_mask,
    mask_without_zeros,
    kl_far,
    responses_cut,
    prompts_cut,
    pairs_useless,
)
