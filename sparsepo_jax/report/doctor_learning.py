"""What the doctor says where nothing is learnt: rules on loss, gradient and mask.

Thresholds stand beside the rule, with their reason.
"""

import itertools
import math

from sparsepo_jax.report.evidence import Evidence, last_quarter, mean, squared_error

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
    "aot",
    "aot_unpaired",
    "tidpo",
)
LN2 = math.log(2.0)

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
    rates = sorted(evidence.series.get("learning_rate", {}).items())
    # A record is of its own step and stands for those since the one before: they lie on a line between.
    ends = [(0, rates[0][1] if rates and rates[0][0] == 1 else 0.0), *rates]
    so_far = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in itertools.pairwise(ends))
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
    peak = evidence.number("po.optimizer.learning_rate")
    rate = f" ({peak:.2g} at most)" if peak is not None else ""
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
    error = math.sqrt(squared_error(first) + squared_error(last))
    if mean(first) - mean(last) > 2 * error:
        return None
    quarters = f"{mean(first):.4f} in the first quarter, {mean(last):.4f} in the last"
    if mean(last) < mean(first):
        said = f"falls no further than by chance ({quarters}, standard error of the difference {error:.2g})"
    else:
        said = f"does not fall ({quarters})"
    parts = [name for name, part in (("L1", "loss/l1"), ("NLL", "loss/nll")) if any(evidence.values(part))]
    loss = f"the loss without its {' and '.join(parts)}" if parts else "the loss"
    return (
        f"{loss} {said}: the learning rate is too low or too high, or the {evidence.unit} do not say "
        f"what is better; try po.optimizer.learning_rate, and look at the {evidence.unit} with "
        "'stages=[inspect]'"
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
        unit = evidence.unit
        why = (
            f"no {unit.removesuffix('s')} says anything about these weights; look at po.lora.targets, and at "
            f"the {unit} with 'stages=[inspect]'"
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


ROUNDING = 1e-6  # of a mean of ones by weights, in float32


def _mask_is_dead(evidence: Evidence) -> bool:
    """On every token of the last quarter."""
    late = evidence.late("mask/reward_sparsity")
    return bool(late) and evidence.setting("objective.mask.on") != "kl" and min(late) > 1 - ROUNDING


def mask_dead(evidence: Evidence) -> str | None:
    """The reward mask is zero on every token of the last quarter."""
    if not _mask_is_dead(evidence):
        return None
    l1 = evidence.number("objective.l1_reward") or 0.0
    if evidence.setting("objective.mask.kind") == "given":
        columns = (
            "completion_weights" if evidence.unit == "responses" else "chosen_weights and rejected_weights"
        )
        remedy = f"the columns {columns} are all zero"
    elif l1 > 0:
        remedy = f"lower objective.l1_reward ({l1:g}), or objective.mask.learning_rate"
    else:
        remedy = "set objective.mask.init=ones and a lower objective.mask.learning_rate"
    return f"the reward mask is dead, zero on every token: no preference passes through it; {remedy}"
