"""The doctor: what looks wrong with a preference optimisation, a line each: what was seen, what it usually means, what to set.

Each rule reads the evidence and gives its line, or None where it does not apply or cannot be told. Thresholds stand beside the rule, with their reason.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.report import plots
from sparsepo_jax.report.files import read_if_sound, read_metrics, read_settings
from sparsepo_jax.report.intervals import wilson
from sparsepo_jax.report.table import number_or_none, value

FIRST_STEPS = 10  # after so many the doctor speaks for the first time
# Objectives whose loss (without L1 and NLL) is ln 2 where the policy is the reference, since their margin is 0 there.
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
)
LN2 = math.log(2.0)


class Evidence(NamedTuple):
    """What is known of a run's stage po.

    config: nested settings. series: metric -> step -> value, of training. ended: whether all steps are done. facts: what the run wrote down when the
    stage began (facts_path). summary: of the evaluation; {} before it.
    """

    config: Mapping[str, Any]
    series: Mapping[str, plots.Series]
    ended: bool
    facts: Mapping[str, Any] = {}
    summary: Mapping[str, Any] = {}

    def setting(self, path: str) -> Any:
        found: Any = self.config
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def number(self, path: str) -> float | None:
        return number_or_none(self.setting(path))

    def count(self, name: str) -> float:
        """Of the training pairs, see data/facts.py; 0 where it is unknown."""
        data = self.facts.get("data")
        return (number_or_none(data.get(name)) if isinstance(data, Mapping) else None) or 0.0

    def values(self, name: str) -> list[float]:
        """By step, the finite ones."""
        return [x for x in self.series.get(name, {}).values() if math.isfinite(x)]

    def late(self, name: str) -> list[float]:
        """Of the last quarter."""
        values = self.values(name)
        return values[len(values) - max(1, len(values) // 4) :] if values else []

    def late_mean(self, name: str) -> float | None:
        return mean(late) if (late := self.late(name)) else None

    def preference_loss(self) -> list[float]:
        """The loss without what L1 and NLL add."""
        added = [self.series.get(name, {}) for name in ("loss/l1", "loss/nll")]
        losses = {
            step: x - sum(part.get(step, 0.0) for part in added)
            for step, x in self.series.get("loss", {}).items()
        }
        return [x for x in losses.values() if math.isfinite(x)]

    def kl(self) -> float | None:
        """The largest known, nats a response: on held-out pairs, of what the policy writes, else the last in training."""
        known = [
            x
            for name in ("kl", "generated_kl")
            if (x := value(self.summary, ("after", name))) is not None and math.isfinite(x)
        ]
        if known:
            return max(known)
        chosen, rejected = self.late_mean("kl/chosen"), self.late_mean("kl/rejected")
        return None if chosen is None or rejected is None else (chosen + rejected) / 2


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def squared_error(values: Sequence[float]) -> float:
    """Square of the standard error of the mean of these."""
    middle = mean(values)
    return math.fsum((x - middle) ** 2 for x in values) / max(len(values) - 1, 1) / len(values)


def diagnose(evidence: Evidence) -> list[str]:
    """The lines that apply, in the order of RULES; none for a run that never trained on preferences."""
    return [line for rule in RULES if evidence.series and (line := rule(evidence)) is not None]


def facts_path(output_dir: Path, stage: str) -> Path:
    return output_dir / stage / "facts.json"


def read_facts(output_dir: Path, stage: str) -> dict[str, Any]:
    return read_if_sound(facts_path(output_dir, stage), stage=stage, broken=[])


def read_evidence(output_dir: Path) -> Evidence:
    """Of a run's files; what is missing or broken there is unknown."""
    facts, metrics = read_facts(output_dir, "po"), read_metrics(output_dir / "metrics.jsonl")[0]
    series = {
        name: found
        for (stage, name), found in metrics.items()
        if stage == "po" and not name.startswith("eval/")
    }
    last, steps = (
        max((step for found in series.values() for step in found), default=0),
        number_or_none(facts.get("steps")),
    )
    summary = read_if_sound(output_dir / "summary.json", stage="eval", broken=[])
    return Evidence(read_settings(output_dir), series, steps is None or last >= steps, facts, summary)


class FirstSteps:
    """Called after every step of po with what it measured; gives the doctor's lines after the first ten, and none before or later."""

    def __init__(self, config: Mapping[str, Any], facts: Mapping[str, Any]):
        self._config, self._facts, self._rows = config, facts, []

    def __call__(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        if step > FIRST_STEPS:
            return []
        self._rows.append({"stage": "po", "step": step} | metrics)
        if step < FIRST_STEPS:
            return []
        series = {name: found for (_, name), found in plots.collect(self._rows)[0].items()}
        steps = number_or_none(self._facts.get("steps"))
        return diagnose(
            Evidence(self._config, series, steps is not None and steps <= FIRST_STEPS, self._facts)
        )


# ---------------------------------------------------------------- nothing is learnt

STAYS_WITHIN = 0.005  # of ln 2: a margin of 0.01, an accuracy that no evaluation of fewer than 10,000 pairs could tell from a half
NEVER_LEFT = 0.02  # four times that: what single batches may do by chance where nothing is learnt


def loss_stays(evidence: Evidence) -> str | None:
    """The loss is where it was when the policy was the reference.

    Early, the rate still warms up: the loss may have moved hardly at all. It is held against the largest move that the rest of the steps can make:
    that of the first ones, times all the learning rate that is to come over what there was so far (Adam's steps are as long as its rate).
    At the end: the last quarter within STAYS_WITHIN of ln 2, and no record farther than NEVER_LEFT.
    """
    losses = evidence.preference_loss()
    kind = evidence.setting("objective.kind")
    other_reference = any(evidence.setting(f"reference.{name}") is not None for name in ("path", "adapter"))
    if not losses or kind not in STARTS_AT_LN2 or other_reference:
        return loss_does_not_fall(evidence)
    farthest = max(abs(x - LN2) for x in losses)
    if evidence.ended:
        last = mean(losses[len(losses) - max(1, len(losses) // 4) :])
        stays = abs(last - LN2) < STAYS_WITHIN and farthest < NEVER_LEFT
    else:
        stays = farthest * _rate_to_come(evidence) < STAYS_WITHIN
    return f"the loss stays at ln 2 ({losses[-1]:.5f}): {_why_nothing_moves(evidence)}" if stays else None


def _rate_to_come(evidence: Evidence) -> float:
    """Sum of the learning rates of all steps over that of the steps so far, at the most."""
    so_far, steps = sum(evidence.values("learning_rate")), number_or_none(evidence.facts.get("steps"))
    peak = evidence.number("po.optimizer.learning_rate")
    if so_far == 0:
        return 1.0
    return math.inf if steps is None or peak is None else max(1.0, peak * steps / so_far)


def _why_nothing_moves(evidence: Evidence) -> str:
    pairs, useless = (
        evidence.count("rows"),
        evidence.count("equal_pairs") + evidence.count("contradicting_pairs"),
    )
    kl, rates = evidence.kl(), evidence.values("learning_rate")
    if _mask_is_dead(evidence):
        return "the reward mask is zero everywhere (see below)"
    if rates and max(rates) == 0:
        return "the learning rate is 0; set po.optimizer.learning_rate"
    if pairs and useless >= 0.4 * pairs:
        return "most pairs are equal or contradict each other (see below)"
    if kl is not None and kl > 0.05:
        return (
            f"the policy has moved (KL {kl:.2g} nats a response), but does not tell chosen from rejected; look at the pairs with "
            "'stages=[inspect]': are they noise, or swapped?"
        )
    rate = f" ({max(rates):.2g} at most)" if rates else ""
    return (
        f"the policy has hardly moved; the learning rate{rate} is too low for so few steps: raise po.optimizer.learning_rate "
        "(with po.lora tenfold and more), or po.steps"
    )


def loss_does_not_fall(evidence: Evidence) -> str | None:
    """The same for objectives that do not start at ln 2: the last quarter is not below the first by more than twice the standard error of that
    difference. Told at the end only and from eight records on: quarters of one record have no spread."""
    losses = evidence.preference_loss()
    quarter = len(losses) // 4
    if not evidence.ended or quarter < 2:
        return None
    first, last = losses[:quarter], losses[-quarter:]
    if mean(first) - mean(last) > 2 * math.sqrt(squared_error(first) + squared_error(last)):
        return None
    return (
        f"the loss does not fall ({mean(first):.4f} in the first quarter, {mean(last):.4f} in the last): the learning rate is too low or too "
        "high, or the pairs do not say what is better; try po.optimizer.learning_rate, and look at the pairs with 'stages=[inspect]'"
    )


NO_GRADIENT = 1e-8  # AdamW's eps: below it a gradient moves nothing


def gradient_zero(evidence: Evidence) -> str | None:
    """The gradient's norm is below NO_GRADIENT over the last quarter, though there is a loss to lower (above 1e-3: pairs that are all won have no
    gradient either)."""
    norms, losses = evidence.late("grad_norm"), evidence.preference_loss()
    if not norms or max(norms) >= NO_GRADIENT or not losses or losses[-1] < 1e-3:
        return _mask_without_gradient(evidence)
    if _mask_is_dead(evidence):
        why = "the reward mask is zero everywhere"
    else:
        why = "no pair says anything about these weights; look at po.lora.targets, and at the pairs with 'stages=[inspect]'"
    return f"the gradient is zero (norm {max(norms):.2g}): nothing moves; {why}"


def _mask_without_gradient(evidence: Evidence) -> str | None:
    """The mask's alone, exactly zero after the first step (at which policy = reference leaves it none)."""
    norms = list(evidence.series.get("grad_norm/masks", {}).items())
    moves = max(evidence.values("learning_rate"), default=0.0) > 0
    if (
        not moves
        or len(norms) < 2
        or any(x != 0 for _, x in norms[1:])
        or str(evidence.setting("objective.mask.net")).startswith("binary")
    ):
        return None
    return "the mask gets no gradient: it stays as it began; objective.mask.init=ones starts it near 1, where every token has one"


def _mask_is_dead(evidence: Evidence) -> bool:
    """On every token of the last quarter."""
    late = evidence.late("mask/reward_sparsity")
    return bool(late) and evidence.setting("objective.mask.on") != "kl" and min(late) == 1.0


def mask_dead(evidence: Evidence) -> str | None:
    if not _mask_is_dead(evidence):
        return None
    kind, l1 = evidence.setting("objective.mask.kind"), evidence.number("objective.l1_reward") or 0.0
    if kind == "given":
        remedy = "the columns chosen_weights and rejected_weights are all zero"
    elif l1 > 0:
        remedy = f"lower objective.l1_reward ({l1:g}), or objective.mask.learning_rate"
    else:
        remedy = "set objective.mask.init=ones and a lower objective.mask.learning_rate"
    return f"the reward mask is dead, zero on every token: no preference passes through it; {remedy}"


# ---------------------------------------------------------------- what is learnt is not what was meant

LESS_LIKELY_NATS = 1.0  # a response that is less than 1 / e as likely as before


def chosen_falls(evidence: Evidence) -> str | None:
    """Over the last quarter the chosen responses are, in the mean, less likely than by the reference by LESS_LIKELY_NATS and twice its standard error.

    Preference losses ask for a difference only and may lower both (Pal et al., 2402.13228); below one nat a response that is drift.
    """
    chosen, rejected = evidence.late("log_ratio/chosen"), evidence.late_mean("log_ratio/rejected")
    if (
        not chosen
        or rejected is None
        or mean(chosen) + 2 * math.sqrt(squared_error(chosen)) > -LESS_LIKELY_NATS
    ):
        return None
    weight, kind = evidence.number("objective.nll_weight") or 0.0, evidence.setting("objective.kind")
    if kind == "dpop":
        remedy = (
            f"raise objective.penalty ({evidence.number('objective.penalty'):g}), or lower the learning rate"
        )
    elif weight > 0:
        remedy = f"raise objective.nll_weight ({weight:g}), or take objective.kind=dpop"
    else:
        remedy = "objective.nll_weight=0.1 or more, or objective.kind=dpop, holds them up"
    return (
        f"the chosen responses have become less likely (log-ratio to the reference {mean(chosen):.1f} nats a response; rejected "
        f"{rejected:.1f}): {remedy}"
    )


ONLY_BY_MASK = 0.1  # of masked margin: an odds of 1.1


def margin_only_by_mask(evidence: Evidence) -> str | None:
    """The masked margin has grown beyond ONLY_BY_MASK, the unmasked one not: on held-out pairs the masked accuracy lies above one half beyond its
    95 % interval and the unmasked does not; before there is an evaluation, the unmasked margin of the last quarter is within two standard errors
    of zero, or below."""
    if evidence.setting("objective.mask") is None:
        return None
    masked, unmasked = (
        value(evidence.summary, ("after", "margin")),
        value(evidence.summary, ("after", "margin_unmasked")),
    )
    shares = [value(evidence.summary, ("after", name)) for name in ("accuracy", "accuracy_unmasked")]
    pairs = evidence.summary.get("independent_pairs", evidence.summary.get("pairs"))
    if (
        masked is not None
        and unmasked is not None
        and number_or_none(pairs)
        and all(x is not None and 0 <= x <= 1 for x in shares)
    ):
        with_mask, without = (wilson(x, max(1, round(pairs))) for x in shares)
        only = with_mask.low > 0.5 >= without.low
    else:
        masked, late = evidence.late_mean("rewards/margins"), evidence.late("margin_unmasked")
        if masked is None or len(late) < 4:  # fewer have no spread to speak of
            return None
        unmasked = mean(late)
        only = unmasked <= 2 * math.sqrt(squared_error(late))
    if not only or masked < ONLY_BY_MASK:
        return None
    return (
        f"the margin grows only through the mask (masked {masked:.2g}, unmasked {unmasked:.2g}): the policy itself prefers nothing yet; raise "
        "po.optimizer.learning_rate, or lower objective.mask.learning_rate"
    )


NO_ZEROS = 0.01


def mask_without_zeros(evidence: Evidence) -> str | None:
    """At the end a learned mask has fewer than NO_ZEROS zeros, and nothing that asks for any."""
    if not evidence.ended or evidence.setting("objective.mask.kind") != "learned":
        return None
    terms = [evidence.number(f"objective.{name}") for name in ("l1_reward", "l1_kl")]
    role = "kl" if evidence.setting("objective.mask.on") == "kl" else "reward"
    zeros = value(evidence.summary, ("mask", "sparsity_end")) if role == "reward" else None
    zeros = evidence.late_mean(f"mask/{role}_sparsity") if zeros is None else zeros
    if zeros is None or zeros >= NO_ZEROS or any(terms):
        return None
    return (
        f"the mask has no zeros ({100 * zeros:.2g} %), and there is no L1 term that would make some: objective.l1_reward=1e-3 (and l1_kl) "
        "makes it sparse"
    )


FAR_NATS, FAR_NATS_A_TOKEN = 20.0, 0.5
FAR_NATS_OF_ANY_LENGTH = 50.0


def kl_far(evidence: Evidence) -> str | None:
    """The KL of a response is above FAR_NATS and above FAR_NATS_A_TOKEN times its tokens (FAR_NATS_OF_ANY_LENGTH where their number is unknown).

    The frontiers that objectives are compared on end at 20 nats (Rafailov et al., 2305.18290, figure 2, responses of some 60 tokens: a third of a nat a
    token). Longer responses may go farther; at half a nat a token a policy writes another text.
    """
    kl, tokens = evidence.kl(), evidence.count("response_tokens")
    limit = max(FAR_NATS, FAR_NATS_A_TOKEN * tokens) if tokens else FAR_NATS_OF_ANY_LENGTH
    if kl is None or kl <= limit:
        return None
    beta = evidence.number("objective.beta")
    knob = "" if beta is None else f"raise objective.beta ({beta:g}), or "
    return (
        f"the KL to the reference is {kl:.3g} nats a response, beyond what a frontier is about ({limit:.3g} here): the policy has left the "
        f"reference; {knob}lower po.optimizer.learning_rate or po.steps"
    )


# ---------------------------------------------------------------- the pairs

SEEN_SHARE = 0.01  # fewer rows in a hundred change no result that could be told
USELESS_SHARE = 0.1


def responses_cut(evidence: Evidence) -> str | None:
    """SEEN_SHARE of the responses and more."""
    cut, responses = evidence.count("responses_cut"), evidence.count("responses")
    if not cut or cut < SEEN_SHARE * responses:
        return None
    return (
        f"{cut:.0f} of {responses:.0f} responses are cut and have lost their end, EOS included: the policy does not see how they end; raise "
        f"data.max_length{_now(evidence, 'data.max_length')}, or leave these pairs out"
    )


def prompts_cut(evidence: Evidence) -> str | None:
    """SEEN_SHARE of the pairs and more."""
    cut, rows = evidence.count("prompts_cut"), evidence.count("rows")
    if not cut or cut < SEEN_SHARE * rows:
        return None
    return (
        f"{cut:.0f} of {rows:.0f} pairs are longer than the limit and have lost the beginning of their prompt; raise data.max_prompt_length"
        f"{_now(evidence, 'data.max_prompt_length')} and data.max_length"
    )


def _now(evidence: Evidence, name: str) -> str:
    limits = evidence.facts.get("limits")
    known = evidence.number(name) or (
        number_or_none(limits.get(name.removeprefix("data."))) if isinstance(limits, Mapping) else None
    )
    return "" if known is None else f" ({known:.0f} tokens)"


def pairs_useless(evidence: Evidence) -> str | None:
    """USELESS_SHARE of the pairs and more teach nothing: both responses are the same, or the same pair is there the other way round, too."""
    rows, equal, against = (evidence.count(name) for name in ("rows", "equal_pairs", "contradicting_pairs"))
    if not equal + against or equal + against < USELESS_SHARE * rows:
        return None
    seen = [f"{equal:.0f} have equal responses"] * (equal > 0) + [
        f"{against:.0f} are there the other way round, too"
    ] * (against > 0)
    return f"of {rows:.0f} pairs {' and '.join(seen)}: they teach nothing; leave them out of data.train"


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
