"""Optimizers and schedules, from optax; policy and masks are separate groups of one optimizer."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from sparsepo_jax.core.types import Scalar
from sparsepo_jax.masks.learned import is_decayed as is_decayed_mask

Count = int | Int[Array, ""]


class Rates(NamedTuple):
    """The numbers of an optimizer and its schedule, which its programs take as arguments. Peaks are learning rates, `end` a share of them."""

    policy_peak: Scalar
    policy_decay: Scalar
    mask_peak: Scalar
    mask_decay: Scalar
    steps: Count
    warmup_steps: Count
    end: Scalar
    clip_norm: Scalar | None


def make_schedule(
    kind: str, *, peak: Scalar, steps: Count, warmup_steps: Count, end: Scalar
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over warmup_steps, then constant, linear or cosine to end * peak at `steps`. Not optax's own, which branch on
    numbers of steps, so that these could not be arguments of a program."""
    fall = {
        "constant": jnp.zeros_like,
        "linear": lambda done: done,
        "cosine": lambda done: (1 - jnp.cos(jnp.pi * done)) / 2,
    }[kind]

    def schedule(step: Count) -> Scalar:
        # The first step already moves: step n of the warm-up has n / warmup_steps of the peak, n from 1.
        warmup = (step + 1) / jnp.maximum(warmup_steps, 1)
        done = jnp.clip((step - warmup_steps) / jnp.maximum(steps - warmup_steps, 1), 0.0, 1.0)
        return peak * jnp.where(step < warmup_steps, warmup, 1 - (1 - end) * fall(done))

    return schedule


def make_optimizer(
    make_rule: Callable[[optax.Schedule, Scalar, Callable], optax.GradientTransformation],
    *,
    policy_schedule: optax.Schedule,
    policy_decay: Scalar,
    mask_schedule: optax.Schedule,
    mask_decay: Scalar,
    clip_norm: Scalar | None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of {"policy": weights, "masks": weights}. clip_norm: largest global norm of both groups together, as the official code clips.

    update(gradient, state, weights, norm=, sound=). norm: the gradient's global norm, if it is known already. sound: whether the state moves; if not it stays
    as it was, and the updates are of no use.

    make_rule(schedule, decay, decay_mask) makes AdamW, Lion, ... of one group.
    """
    chosen_by = lambda is_decayed: (
        lambda weights: jax.tree_util.tree_map_with_path(
            lambda path, _: is_decayed(str(path[-1].key)), weights
        )
    )
    policy_rule = make_rule(policy_schedule, policy_decay, chosen_by(is_decayed))
    mask_rule = make_rule(mask_schedule, mask_decay, chosen_by(is_decayed_mask))
    labels = lambda weights: {group: jax.tree.map(lambda _: group, weights[group]) for group in weights}
    grouped = optax.partition({"policy": policy_rule, "masks": mask_rule}, labels)
    return grouped if clip_norm is None else optax.chain(clip_by_norm(clip_norm), grouped)


def is_decayed(path: str) -> bool:
    """Whether weight decay applies to a weight of the policy: not to biases and norms, as in transformers' Trainer and so in TRL."""
    return not path.endswith(("bias", ".scale"))


def clip_by_norm(largest: Scalar) -> optax.GradientTransformationExtraArgs:
    """optax.clip_by_global_norm, but by a product with one number, which what comes next takes in: a quotient XLA's CPU compiler writes to memory first."""

    def update(updates, state, params=None, *, norm: Scalar | None = None, **_):
        factor = jnp.minimum(1.0, largest / (optax.global_norm(updates) if norm is None else norm))
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def kept(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A rule whose state stays as it was where the step is not sound."""

    def update(updates, state, params=None, *, sound: bool | Bool[Array, ""] = True, **_):
        updates, new_state = rule.update(updates, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(sound, new, old), new_state, state)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """optax.scale_by_adam, kept, with updates that are made of the moments as they are kept.

    So a weight's update reads nothing that was overwritten before. If it read the new moments before the choice, XLA's CPU compiler would make them again
    beside it, from the old ones, and copy these first: of all weights, at the same time.
    """
    moments = kept(optax.scale_by_adam(b1, b2, eps))

    def update(updates, state, params=None, **extra):
        _, state = moments.update(updates, state, **extra)
        mean, square = (
            optax.tree.bias_correction(state.mu, b1, state.count),
            optax.tree.bias_correction(state.nu, b2, state.count),
        )
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square), state

    return optax.GradientTransformationExtraArgs(moments.init, update)


@functools.cache  # the same rule for the same settings: programs that are built on it are found again
def adamw_rule(b1: float, b2: float, eps: float):
    return lambda schedule, decay, decayed: optax.chain(  # optax.adamw's
        scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(decay, decayed),
        kept(optax.scale_by_learning_rate(schedule)),
    )


@functools.cache
def lion_rule(b1: float, b2: float):
    return lambda schedule, decay, decayed: kept(
        optax.lion(schedule, b1=b1, b2=b2, weight_decay=decay, mask=decayed)
    )


@functools.cache
def adafactor_rule():
    # Not optax.adafactor: its decay is not scaled by the learning rate, so the same weight_decay would be another than AdamW's.
    return lambda schedule, decay, decayed: kept(
        optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(decay, decayed),
            optax.scale_by_learning_rate(schedule),
        )
    )
