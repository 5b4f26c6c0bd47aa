"""The optimizer of a training stage."""

from collections.abc import Callable
from typing import Any

import optax

from sparsepo_jax.config.derive import warmup_steps
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.train import optimizer as optimizers


def optimizer_rates(config: Config, training: Training, steps: int, width: int) -> optimizers.Rates:
    """The numbers of a stage's optimizer, which its program takes as an argument.

    Args:
        steps: of the stage.
        width: of the policy's states.
    """
    rule, schedule, mask = training.optimizer, training.schedule, config.objective.mask
    return optimizers.Rates(
        policy_peak=rule.learning_rate,
        policy_decay=rule.weight_decay,
        mask_peak=mask_rate(mask, rule.learning_rate, width),
        mask_decay=getattr(mask, "weight_decay", 0.0),
        steps=steps,
        warmup_steps=warmup_steps(schedule, steps),
        end=schedule.end,
        clip_norm=training.clip_norm,
    )


def mask_rate(mask: Any | None, of_policy: float, width: int) -> float:
    """The learning rate of the mask nets.

    It is objective.mask.learning_rate if set; under `official` the policy's, as in the released code, at
    which the nets hardly move; else 0.3 / width, which suits states of any width.

    Args:
        of_policy: the policy's learning rate.
    """
    if mask is None or mask.kind != "learned":
        return of_policy
    if mask.learning_rate is not None:
        return mask.learning_rate
    return of_policy if mask.official else 0.3 / width


def optimizer_kind(training: Training) -> tuple[Callable, str]:
    """(maker of the rule of a group of weights, kind of schedule).

    What an optimizer's program is compiled with.
    """
    rule = training.optimizer
    make_rule = {
        "adamw": lambda: optimizers.adamw_rule(rule.b1, rule.b2, rule.eps, rule.moments),
        "lion": lambda: optimizers.lion_rule(rule.b1, rule.b2, rule.moments),
        "muon": lambda: optimizers.muon_rule(rule.beta, rule.b1, rule.b2, rule.eps, rule.moments),
        "rmsprop": lambda: optimizers.rmsprop_rule(rule.b2, rule.eps, rule.moments),
        "adafactor": optimizers.adafactor_rule,
    }[rule.kind]()
    return make_rule, training.schedule.kind


def make_optimizer(
    config: Config, training: Training, steps: int, width: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of {"policy", "masks"} and the policy's learning-rate schedule."""
    return build_optimizer(optimizer_kind(training), optimizer_rates(config, training, steps, width))


def build_optimizer(
    kind: tuple[Callable, str], rates: optimizers.Rates
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    make_rule, schedule = kind
    of_policy, of_masks = (
        optimizers.make_schedule(
            schedule, peak=peak, steps=rates.steps, warmup_steps=rates.warmup_steps, end=rates.end
        )
        for peak in (rates.policy_peak, rates.mask_peak)
    )
    return optimizers.make_optimizer(
        make_rule,
        policy_schedule=of_policy,
        policy_decay=rates.policy_decay,
        mask_schedule=of_masks,
        mask_decay=rates.mask_decay,
        clip_norm=rates.clip_norm,
    ), of_policy
