"""What of an objective's mask and of its L1 cannot be, or would do nothing."""

from collections.abc import Iterator

from sparsepo_jax.config.schema.masks import GATES, AnyMask, LearnedMask
from sparsepo_jax.config.schema.objectives import Mix, Objective
from sparsepo_jax.config.schema.weighing import Weighs


def mask_mistakes(objective: Objective) -> Iterator[str]:
    """Lines about `objective.mask`, `objective.l1_reward` and `objective.l1_kl`."""
    kind, weighs, mask = objective.kind, objective.weighs, objective.mask
    if mask is None:
        for name in _l1_of(objective):
            yield f"objective.{name}: there is no mask to be made sparse: set objective.mask"
    elif isinstance(weighs, str):
        yield f"objective.mask: {kind} takes no token mask: {weighs}; leave it out"
    else:
        if not weighs.kl and mask.on == "kl":
            yield f"objective.mask.on: objective {kind} has no KL term: take reward, or leave it out"
        for name in _l1_of(objective):
            if name == "l1_kl" and not weighs.kl:
                yield f"objective.l1_kl: objective {kind} has no KL term, whose mask this is: take l1_reward"
            elif (reason := _why_l1_is_idle(objective, mask, name)) is not None:
                yield f"objective.{name}: {reason}"


def warm_gate(mask: AnyMask | None, steps: int) -> str | None:
    """A line about a gate that is still warm when po ends; None: it is not.

    Args:
        mask: the objective's.
        steps: of po.
    """
    cooling = mask.temperature_steps if isinstance(mask, LearnedMask) else None
    if cooling is None or cooling <= steps:
        return None
    return (
        f"objective.mask.temperature_steps: {cooling} steps, and po ends after {steps}: held-out figures "
        "have the last temperature, which training would not reach; take fewer"
    )


def _l1_of(objective: Objective) -> list[str]:
    return [name for name in ("l1_reward", "l1_kl") if getattr(objective, name, 0.0) > 0]


def _why_l1_is_idle(objective: Objective, mask: AnyMask, name: str) -> str | None:
    """Why L1 of the reward or KL mask makes nothing sparse, and what to do; None: it does.

    Objective sparsepo has always taken L1 with masks that it does not move, where it only adds to the loss
    that is reported, and still does: settings of masks are compared by overriding them one by one.
    """
    if isinstance(mask, LearnedMask) and mask.mixer_activation in GATES:
        gate = mask.mixer_activation
        return f"the mean of gate {gate} is set by the gate, so L1 moves nothing: set {name} to 0"
    averaging = _averaging(objective)
    if averaging and isinstance(mask, LearnedMask) and not mask.normalise:
        return (
            f"{averaging} averages over the mask, so that its scale does not count, and L1 would shrink "
            "it to nothing: take a gate (objective.mask.mixer_activation: budget) and set this to 0"
        )
    if objective.kind == "sparsepo":
        return None
    if not isinstance(mask, LearnedMask):
        return f"a mask of kind {mask.kind} is not trained, so L1 moves nothing: set {name} to 0"
    if mask.normalise:
        return f"with objective.mask.normalise the mask's mean is 1, so L1 moves nothing: set {name} to 0"
    if mask.on in {"l1_reward": ("kl",), "l1_kl": ("reward", "reward_only")}[name]:
        return f"with objective.mask.on={mask.on} there is no such mask: set {name} to 0"
    return None


def _averaging(objective: Objective) -> str | None:
    """The objective, if it divides by the mask's sum (a mix: if all parts that count do)."""
    parts = [objective]
    if isinstance(objective, Mix):
        parts = [part.objective for part in objective.parts if part.weight > 0]
    declared = [part.weighs for part in parts]
    averages = all(isinstance(weighs, Weighs) and weighs.over == "mean" for weighs in declared)
    return f"objective {objective.kind}" if averages else None
