"""The change of weights and optimizer's state by a gradient: all weights at once, or one after another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from sparsepo_jax.core.host_memory import is_on_host, on_device, on_host
from sparsepo_jax.train.rounding import Words, apply_updates


class Facts(NamedTuple):
    """What the change of every weight depends on.

    Attributes:
        norm: the gradient's global norm.
        sound: whether there is to be a change.
        words: of rounding_words.
    """

    norm: Float[Array, ""]
    sound: Bool[Array, ""]
    words: Words


def changed(
    optimizer: optax.GradientTransformationExtraArgs, gradient: Any, weights: Any, state: Any, facts: Facts
) -> tuple[Any, Any]:
    """(weights, optimizer's state) after a step; as they were if it is not sound.

    Args:
        optimizer: one of make_optimizer.
        gradient: of the mean loss, as the weights, float32.
        weights: {"policy": ..., "masks": ...}.
        state: the optimizer's.
        facts: norm, soundness and random words of the step.
    """
    updates, state = optimizer.update(gradient, state, weights, **facts._asdict())
    new = apply_updates(weights, updates, facts.words)
    return jax.tree.map(lambda new, old: jnp.where(facts.sound, new, old), new, weights), state


def changed_in_turn(
    optimizer: optax.GradientTransformationExtraArgs, gradient: Any, weights: Any, state: Any, facts: Facts
) -> tuple[Any, Any]:
    """The same, one weight after another, so that the device holds the state of few, if it lies on the host.

    XLA would otherwise bring all of it to the device at once, and nothing would be saved. Every rule of
    train/optimizer treats weights one by one, apart from the norm, which is given.

    Args:
        optimizer: as for `changed`.
        gradient: as for `changed`.
        weights: as for `changed`.
        state: as for `changed`; parts of it lie on the host, and come back there.
        facts: as for `changed`.
    """
    parts, tree = jax.tree.flatten(state, is_leaf=_is_by_path)
    new_parts: list[Any] = [{} if _is_by_path(part) else part for part in parts]
    new_weights: dict[str, Any] = {group: {} for group in weights}
    done: Any = facts.norm
    for path, group in [(path, group) for group, of_group in weights.items() for path in of_group]:
        kept = [_only(part, path) if _is_by_path(part) else part for part in parts]
        # Not before the last weight is done.
        kept, (new_weights, done) = jax.lax.optimization_barrier((kept, (new_weights, done)))
        is_away = jax.tree.map(is_on_host, kept)
        new, new_state = changed(
            optimizer,
            {name: _only(gradient[name], path) if name == group else {} for name in gradient},
            {name: _only(weights[name], path) if name == group else {} for name in weights},
            jax.tree.unflatten(tree, on_device(kept)),
            facts,
        )
        new_kept = jax.tree.leaves(new_state, is_leaf=_is_by_path)
        kept = jax.tree.map(lambda x, away: on_host(x) if away else x, new_kept, is_away)
        new_weights = {name: new_weights[name] | new[name] for name in weights}
        new_parts = [
            before | part if _is_by_path(before) else part
            for before, part in zip(new_parts, kept, strict=True)
        ]
    return new_weights, jax.tree.unflatten(tree, new_parts)


def _is_by_path(x: Any) -> bool:
    """Whether a part of a state is a dictionary by paths of weights."""
    return isinstance(x, dict) and (not x or any("." in key for key in x))


def _only(part: dict[str, Any], path: str) -> dict[str, Any]:
    return {path: part[path]} if path in part else {}
