"""Optimizers and schedules, from optax; policy and masks are separate groups of one optimizer."""

from collections.abc import Callable

import jax
import optax

from sparsepo_jax.masks.learned import is_decayed as is_decayed_mask


def make_schedule(kind: str, *, peak: float, steps: int, warmup_steps: int, end: float) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over warmup_steps, then constant, linear or cosine to end * peak at `steps`."""
    after = max(1, steps - warmup_steps)
    rest = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end * peak, after),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, alpha=end),
    }[kind]()
    if not warmup_steps:
        return rest
    # The first step already moves: step n of the warm-up has n / warmup_steps of the peak, n from 1.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, rest], [warmup_steps])


def make_optimizer(
    make_rule: Callable[[optax.Schedule, float, Callable], optax.GradientTransformation],
    *,
    policy_schedule: optax.Schedule,
    policy_decay: float,
    mask_schedule: optax.Schedule,
    mask_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """The optimizer of {"policy": weights, "masks": weights}. clip_norm: largest global norm of both groups together, as the official code clips.

    make_rule(schedule, decay, decay_mask) makes AdamW, Lion, ... of one group.
    """
    chosen_by = lambda is_decayed: lambda weights: {path: is_decayed(path) for path in weights}  # noqa: E731
    policy_rule = make_rule(policy_schedule, policy_decay, chosen_by(is_decayed))
    mask_rule = make_rule(mask_schedule, mask_decay, chosen_by(is_decayed_mask))
    labels = lambda weights: {group: jax.tree.map(lambda _: group, weights[group]) for group in weights}  # noqa: E731
    grouped = optax.partition({"policy": policy_rule, "masks": mask_rule}, labels)
    return grouped if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), grouped)


def is_decayed(path: str) -> bool:
    """Whether weight decay applies to a weight of the policy: not to biases and norms, as in transformers' Trainer and so in TRL."""
    return not path.endswith(("bias", ".scale"))


def adamw_rule(b1: float, b2: float, eps: float):
    return lambda schedule, decay, decayed: optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=decay, mask=decayed)


def lion_rule(b1: float, b2: float):
    return lambda schedule, decay, decayed: optax.lion(schedule, b1=b1, b2=b2, weight_decay=decay, mask=decayed)


def adafactor_rule():
    # Not optax.adafactor: its decay is not scaled by the learning rate, so the same weight_decay would be another than AdamW's.
    return lambda schedule, decay, decayed: optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.add_decayed_weights(decay, decayed), optax.scale_by_learning_rate(schedule)
    )
