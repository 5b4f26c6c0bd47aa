"""Optimizers and schedules, from optax; policy and masks are separate groups of one optimizer."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from optax import contrib

from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import Scalar
from sparsepo_jax.masks.learned import is_decayed as is_decayed_mask
from sparsepo_jax.models.lora import is_trained_matrix
from sparsepo_jax.train.rounding import Words, narrowed_like, widened

StepCount = int | Int[Array, ""]
Decayed = Callable[[Weights], dict[str, bool]]  # which weights of a group decay
MakeRule = Callable[[optax.Schedule, Scalar, Decayed], optax.GradientTransformation]
MomentType = Literal["float32", "bfloat16"]


class Rates(NamedTuple):
    """The numbers of an optimizer and its schedule, which its programs take as arguments.

    Attributes:
        policy_peak: the policy's largest learning rate.
        policy_decay: the policy's weight decay, scaled by the learning rate.
        mask_peak: the largest learning rate of the mask nets.
        mask_decay: their weight decay.
        steps: of the whole stage.
        warmup_steps: 0 to `steps`.
        end: the learning rate after the last step, as a share of its peak.
        clip_norm: the largest global norm of the gradient; None: it is not clipped.
    """

    policy_peak: Scalar
    policy_decay: Scalar
    mask_peak: Scalar
    mask_decay: Scalar
    steps: StepCount
    warmup_steps: StepCount
    end: Scalar
    clip_norm: Scalar | None


def _linear(done: Array) -> Array:
    return done


def _cosine(done: Array) -> Array:
    return (1 - jnp.cos(jnp.pi * done)) / 2


_FALLS: dict[str, Callable[[Array], Array]] = {
    "constant": jnp.zeros_like,
    "linear": _linear,
    "cosine": _cosine,
}


def make_schedule(
    kind: str, *, peak: Scalar, steps: StepCount, warmup_steps: StepCount, end: Scalar
) -> optax.Schedule:
    """Linear warm-up, then a constant, linear or cosine fall.

    Unlike optax's own schedules it does not branch on numbers of steps, so that these can be arguments of a
    program.

    Args:
        kind: "constant", "linear" or "cosine".
        peak: the learning rate at the end of the warm-up.
        steps: of the whole stage.
        warmup_steps: 0: none. The first step moves already: step n, from 1, has n / warmup_steps of the peak.
        end: what is left after `steps`, as a share of the peak; without meaning if constant.

    Returns:
        `schedule(step)`, the learning rate of a step, from 0.
    """
    fall = _FALLS[kind]

    def schedule(step: StepCount) -> Float[Array, ""]:
        warmup = (step + 1) / jnp.maximum(warmup_steps, 1)
        done = jnp.clip((step - warmup_steps) / jnp.maximum(steps - warmup_steps, 1), 0.0, 1.0)
        return peak * jnp.where(step < warmup_steps, warmup, 1 - (1 - end) * fall(done))

    return schedule


def make_optimizer(
    make_rule: MakeRule,
    *,
    policy_schedule: optax.Schedule,
    policy_decay: Scalar,
    mask_schedule: optax.Schedule,
    mask_decay: Scalar,
    clip_norm: Scalar | None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of {"policy": weights, "masks": weights}.

    Its update takes three arguments more than optax's: `update(gradient, state, weights, norm=, sound=,
    words=)`. norm is the gradient's global norm if it is known already. If sound is False, the state stays as
    it was and the updates have no meaning. words, of rounding_words, are needed where moments are held in
    bfloat16. Weights in bfloat16 are read as float32; the updates are float32.

    Args:
        make_rule: makes the rule of one group: adamw_rule, lion_rule and those that follow them.
        policy_schedule: learning rate of the policy.
        policy_decay: weight decay of the policy.
        mask_schedule: learning rate of the mask nets.
        mask_decay: weight decay of the mask nets.
        clip_norm: largest global norm of both groups together, as in the official code; None: no clipping.
    """
    rules = {
        "policy": make_rule(policy_schedule, policy_decay, _chosen_by(is_decayed)),
        "masks": make_rule(mask_schedule, mask_decay, _chosen_by(is_decayed_mask)),
    }
    grouped = optax.partition(rules, _labels)
    rule = grouped if clip_norm is None else optax.chain(clip_by_norm(clip_norm), grouped)

    def init(weights: Any) -> Any:
        return rule.init(widened(weights))

    def update(gradient: Any, state: Any, weights: Any = None, **extra: Any) -> tuple[Any, Any]:
        return rule.update(gradient, state, widened(weights), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _chosen_by(is_chosen: Callable[[str], bool]) -> Decayed:
    def chosen(weights: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: is_chosen(str(path[-1].key)), weights)

    return chosen


def _labels(weights: dict[str, Any]) -> dict[str, Any]:
    """For optax.partition: each weight's group."""
    return {group: dict.fromkeys(weights[group], group) for group in weights}


def is_decayed(path: str) -> bool:
    """Whether weight decay applies to a weight of the policy, as in transformers' Trainer and so in TRL.

    Args:
        path: the weight's path. Biases, norms and the speeds at which memories decay do not.
    """
    return not path.endswith(("bias", ".scale", ".log_speed"))


def clip_by_norm(largest: Scalar) -> optax.GradientTransformationExtraArgs:
    """optax.clip_by_global_norm by multiplication with one factor.

    A product is fused into what comes next, whereas XLA's CPU compiler writes optax's quotient to memory
    first.

    Args:
        largest: the largest norm that is left as it is.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, norm: Scalar | None = None, **_: Any
    ) -> tuple[Any, Any]:
        if norm is None:
            norm = optax.tree.norm(updates)
        factor = jnp.minimum(1.0, largest / norm)
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def kept(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A rule whose state stays as it was where the step is not sound.

    Args:
        rule: any of optax. The new rule's update takes `sound`, a bool, True by default.
    """
    rule = optax.with_extra_args_support(rule)

    def update(
        updates: Any, state: Any, params: Any = None, *, sound: bool | Bool[Array, ""] = True, **extra: Any
    ) -> tuple[Any, Any]:
        updates, new_state = rule.update(updates, state, params, **extra)
        return updates, jax.tree.map(lambda new, old: jnp.where(sound, new, old), new_state, state)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def held(rule: optax.GradientTransformation, moments: MomentType) -> optax.GradientTransformationExtraArgs:
    """A rule whose state holds what belongs to matrices in another type between the steps.

    It computes in float32. What is held in bfloat16 is rounded at random (see rounding): rounded to the
    nearest number, a mean square with b2 close to 1 would stay where it is. With b2 = 0.999 rounding makes a
    mean square noisy by about 5 %, and so the step by half as much.

    Args:
        rule: any of optax. The new rule's update takes `words`, of rounding_words.
        moments: the type.
    """
    rule = optax.with_extra_args_support(rule)
    if moments == "float32":
        return rule

    def init(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x.astype(jnp.bfloat16) if _is_of_matrix(path) else x, rule.init(params)
        )

    def update(
        updates: Any, state: Any, params: Any = None, *, words: Words | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        if words is None:
            raise ValueError("moments in bfloat16 need the step's words of rounding_words")
        updates, new_state = rule.update(updates, widened(state), params, **extra)
        return updates, narrowed_like(new_state, state, words)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_of_matrix(path: tuple[Any, ...]) -> bool:
    """Whether a leaf of a state belongs to a matrix of the policy."""
    last = path[-1]
    return isinstance(last, jax.tree_util.DictKey) and is_trained_matrix(str(last.key))


def scale_by_adam(
    b1: float, b2: float, eps: float, moments: MomentType = "float32"
) -> optax.GradientTransformationExtraArgs:
    """optax.scale_by_adam, kept, whose updates are made of the moments after the choice of `kept`.

    So a weight's update reads nothing that was overwritten before. If it read the new moments before the
    choice, XLA's CPU compiler would compute them a second time beside it, from the old ones, and copy those
    first, for all weights at once.

    Args:
        b1: decay rate of the mean, 0 to 1.
        b2: decay rate of the mean square, 0 to 1.
        eps: added to the root of the mean square, > 0.
        moments: type in which both are held for matrices.
    """
    rule = kept(held(optax.scale_by_adam(b1, b2, eps), moments))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        _, state = rule.update(updates, state, **extra)
        mean = optax.tree.bias_correction(widened(state.mu), b1, state.count)
        square = optax.tree.bias_correction(widened(state.nu), b2, state.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square), state

    return optax.GradientTransformationExtraArgs(rule.init, update)


# The rules are cached: asked for the same settings again, they are the same objects, so that programs built
# on them are not compiled again.


@functools.cache
def adamw_rule(b1: float, b2: float, eps: float, moments: MomentType = "float32") -> MakeRule:
    """optax.adamw, kept.

    Args:
        b1: decay rate of the mean, 0 to 1.
        b2: decay rate of the mean square, 0 to 1.
        eps: added to the root of the mean square, > 0.
        moments: type in which both are held for matrices.
    """

    def rule(schedule: optax.Schedule, decay: Scalar, decayed: Decayed) -> optax.GradientTransformation:
        return optax.chain(scale_by_adam(b1, b2, eps, moments), *_decay_and_rate(schedule, decay, decayed))

    return rule


@functools.cache
def lion_rule(b1: float, b2: float, moments: MomentType = "float32") -> MakeRule:
    """optax.lion, kept.

    Args:
        b1: share of the momentum in the update's sign, 0 to 1.
        b2: decay rate of the momentum, 0 to 1.
        moments: type in which the momentum of matrices is held.
    """

    def rule(schedule: optax.Schedule, decay: Scalar, decayed: Decayed) -> optax.GradientTransformation:
        return optax.chain(
            kept(held(optax.scale_by_lion(b1, b2), moments)), *_decay_and_rate(schedule, decay, decayed)
        )

    return rule


@functools.cache
def muon_rule(beta: float, b1: float, b2: float, eps: float, moments: MomentType = "float32") -> MakeRule:
    """optax.contrib.muon, kept: Muon for the matrices of blocks, Adam for all else.

    A stack of layers [L, in, out] is L matrices. Updates are scaled to the root mean square of Adam's, so
    that one learning rate and one weight decay suit both.

    Args:
        beta: decay rate of the momentum, 0 to 1.
        b1: decay rate of Adam's mean, 0 to 1.
        b2: decay rate of Adam's mean square, 0 to 1.
        eps: added to the root of Adam's mean square, > 0.
        moments: type in which all of them are held for matrices.

    References:
        Jordan et al., Muon, https://kellerjordan.github.io/posts/muon, 2024. Liu et al., Muon is Scalable for
        LLM Training, arXiv 2502.16982, 2025 (equation 4: the scale 0.2 sqrt(max(in, out))).
    """

    def rule(schedule: optax.Schedule, decay: Scalar, decayed: Decayed) -> optax.GradientTransformation:
        momentum = contrib.scale_by_muon(beta=beta, weight_dimension_numbers=_matrix_axes)
        rules = {
            "muon": optax.chain(kept(held(momentum, moments)), _scale_as_adam()),
            "adam": scale_by_adam(b1, b2, eps, moments),
        }
        return optax.chain(optax.partition(rules, _muon_labels), *_decay_and_rate(schedule, decay, decayed))

    return rule


def _scale_as_adam() -> optax.GradientTransformation:
    """Gives an orthogonal matrix the root mean square 0.2, which is about that of Adam's updates."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda x: 0.2 * max(x.shape[-2:]) ** 0.5 * x, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _muon_labels(weights: Any) -> Any:
    """For optax.partition: which rule each weight of a group has."""
    return jax.tree.map_with_path(
        lambda path, _: "muon" if _is_muon_s(str(path[-1].key)) else "adam", weights
    )


def _is_muon_s(path: str) -> bool:
    return is_trained_matrix(path) and path.startswith("blocks.")


def _matrix_axes(weights: Any) -> Any:
    """For optax.contrib: a matrix's axes in a stack of layers [L, in, out]."""
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(-2, -1), weights)


@functools.cache
def rmsprop_rule(b2: float, eps: float, moments: MomentType = "float32") -> MakeRule:
    """RMSProp as torch.optim.RMSprop computes it, which DPO's own code trains with, kept.

    The weight decay is decoupled as for the others, where PyTorch's is added to the gradient.

    Args:
        b2: decay rate of the mean square, 0 to 1.
        eps: added to its root, > 0.
        moments: type in which the mean square of matrices is held.
    """

    def rule(schedule: optax.Schedule, decay: Scalar, decayed: Decayed) -> optax.GradientTransformation:
        squares = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
        return optax.chain(kept(held(squares, moments)), *_decay_and_rate(schedule, decay, decayed))

    return rule


@functools.cache
def adafactor_rule() -> MakeRule:
    """Adafactor, kept, with AdamW's weight decay.

    Not optax.adafactor, whose decay is not scaled by the learning rate: the same weight_decay would mean
    another decay than AdamW's.
    """

    def rule(schedule: optax.Schedule, decay: Scalar, decayed: Decayed) -> optax.GradientTransformation:
        return kept(
            optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(decay, decayed),
                optax.scale_by_learning_rate(schedule),
            )
        )

    return rule


def _decay_and_rate(
    schedule: optax.Schedule, decay: Scalar, decayed: Decayed
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The end of a rule: weight decay, and the learning rate over both."""
    return optax.add_decayed_weights(decay, decayed), kept(optax.scale_by_learning_rate(schedule))
