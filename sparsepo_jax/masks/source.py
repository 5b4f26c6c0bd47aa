"""Where a run's masks come from.

A source says what to keep of the reference's activations, which weights to train, and how both become masks.
Asking for the same source again gives the same object, so that the programs built on it are found again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from sparsepo_jax.core.draws import Draw, keys_for
from sparsepo_jax.core.layout import at_tokens, to_pairs
from sparsepo_jax.core.tree import Kept, Weights, merge_module, split_module
from sparsepo_jax.core.types import PairBatch, TokenMasks, TokenStats
from sparsepo_jax.masks.activation import activation_mask
from sparsepo_jax.masks.fixed import (
    MaskedTerms,
    confidence_mask,
    given_mask,
    normalise,
    ones_mask,
    place,
    positional_mask,
    random_mask,
)
from sparsepo_jax.masks.gates import annealed
from sparsepo_jax.masks.learned import MaskNet, NetSettings

Keep = Callable[[str, Array, Array], Any]  # an array or a tree of arrays, or None
Make = Callable[..., TokenMasks]
MaskOf = Callable[[Kept, PairBatch, TokenStats, Array | None], Array]


class MaskSource(NamedTuple):
    """The masks of one objective.

    Attributes:
        keep: keep(name, activation [R, S, X], at_RM) -> what to keep of a named activation of the reference
            at the positions that predict response tokens, or None.
        make: make(weights, kept, batch, stats, key_B, training, step=None) -> the masks. weights are those
            that are trained; kept is what `keep` returned, by name; step counts the batches before this one,
            for masks that change while they are trained, None where nothing is trained.
        init: init(rngs) -> the weights to train, {} if there are none.
        shared: whether reward and KL share one mask; each L1 factor then counts half.
        reads_activations: whether `kept` is needed. Masks that read activations and are not trained can be
            computed once, and given with the batch.
        reported: whether masks are among the metrics.
    """

    keep: Keep
    make: Make
    init: Callable[[nnx.Rngs], Weights]
    shared: bool
    reads_activations: bool = False
    reported: bool = True


@functools.cache
def learned_source(
    settings: NetSettings,
    *,
    sharing: str,
    on: MaskedTerms,
    normalised: bool,
    temperature_start: float | None = None,
    temperature_steps: int | None = None,
) -> MaskSource:
    """SparsePO's masks. Their weights are named `common.*`, or `reward.*` and `kl.*`.

    Args:
        settings: of each net.
        sharing: `common`, one net for reward and KL; or `independent`, one for each.
        on: see masks/fixed.place. A mask on one of the two needs one net alone.
        normalised: whether each response's mask is scaled to mean 1.
        temperature_start: of gates at the first step; None: that of the settings.
        temperature_steps: steps from one to the other.
    """
    roles = _roles(sharing, on)
    reads_all = settings.net.endswith("_all")
    graph = nnx.split(nnx.eval_shape(lambda: MaskNet(settings, rngs=nnx.Rngs(0))), nnx.Param)[0]

    def keep(name: str, x: Array, at_RM: Array) -> Array | None:
        is_read = name == "final_norm" or (name == "block_out" and reads_all)
        return at_tokens(x, at_RM) if is_read else None

    def temperature_at(step: Array | None) -> Array | None:
        if temperature_start is None or temperature_steps is None or step is None:
            return None
        return annealed(temperature_start, settings.temperature, temperature_steps, step)

    def make(
        weights: Weights,
        kept: Kept,
        batch: PairBatch,
        stats: TokenStats,
        key_B: Array | None,
        training: bool,
        step: Array | None = None,
    ) -> TokenMasks:
        states_LRMD = kept["final_norm"][None]
        if reads_all:  # the last block's state is taken after the final norm
            states_LRMD = jnp.concatenate([kept["block_out"][:-1], states_LRMD])

        def mask_of(role: str) -> Array:
            net_of_role = merge_module(graph, _below(weights, role))
            own_key_B = _keys_of(role, key_B) if training else None
            mask_BPT = net_of_role(states_LRMD, batch, own_key_B, temperature_at(step))
            return normalise(mask_BPT, batch.valid_BPT) if normalised else mask_BPT

        if len(roles) == 1:
            return place(mask_of(roles[0]), batch.valid_BPT, on)
        return TokenMasks(reward_BPT=mask_of("reward"), kl_BPT=mask_of("kl"))

    def init_weights(rngs: nnx.Rngs) -> Weights:
        return {
            f"{role}.{path}": value
            for role in roles
            for path, value in split_module(MaskNet(settings, rngs=rngs))[1].items()
        }

    return MaskSource(keep, make, init_weights, shared=sharing == "common", reads_activations=True)


def _roles(sharing: str, on: MaskedTerms) -> tuple[str, ...]:
    """The names of the nets."""
    if sharing == "common":
        return ("common",)
    if on == "both":
        return ("reward", "kl")
    return ("kl",) if on == "kl" else ("reward",)


def _keys_of(role: str, key_B: Array | None) -> Array | None:
    """The keys of one net: the two draw apart."""
    return keys_for(Draw.KL_NET, key_B) if key_B is not None and role == "kl" else key_B


def _below(weights: Weights, role: str) -> Weights:
    """The weights of one net, by their paths in it."""
    prefix = f"{role}."
    return {path.removeprefix(prefix): x for path, x in weights.items() if path.startswith(prefix)}


def _untrained(keep: Keep, mask_of: MaskOf, on: MaskedTerms, normalised: bool) -> MaskSource:
    def make(
        weights: Weights,
        kept: Kept,
        batch: PairBatch,
        stats: TokenStats,
        key_B: Array | None,
        training: bool,
        step: Array | None = None,
    ) -> TokenMasks:
        mask_BPT = mask_of(kept, batch, stats, key_B)
        return place(normalise(mask_BPT, batch.valid_BPT) if normalised else mask_BPT, batch.valid_BPT, on)

    return MaskSource(keep, make, lambda rngs: {}, shared=True)


def activation_source(
    *, points: dict[str, tuple[str, ...]], mapping: str, on: MaskedTerms, normalised: bool
) -> MaskSource:
    """MaPO's masks. Of each activation only the mean over its features is kept.

    Args:
        points: the activations of each group; see masks/activation.choose_points.
        mapping: from feature means to weights; see masks/activation.map_means.
        on: see masks/fixed.place.
        normalised: whether each response's mask is scaled to mean 1.
    """
    return _activation_source(tuple(points.items()), mapping, on, normalised)


@functools.cache
def _activation_source(
    points_of_groups: tuple[tuple[str, tuple[str, ...]], ...],
    mapping: str,
    on: MaskedTerms,
    normalised: bool,
) -> MaskSource:
    points = dict(points_of_groups)
    names = {name for group in points.values() for name in group}

    def keep(name: str, x: Array, at_RM: Array) -> Array | None:
        return at_tokens(x.astype(jnp.float32).mean(axis=-1), at_RM) if name in names else None

    def mask_of(kept: Kept, batch: PairBatch, stats: TokenStats, key_B: Array | None) -> Array:
        means = {name: to_pairs(x, batch) for name, x in kept.items() if name in names}
        return activation_mask(means, batch.valid_BPT, points, mapping)

    return _untrained(keep, mask_of, on, normalised)._replace(reads_activations=True)


@functools.cache
def unit_source() -> MaskSource:
    """Ones, for an objective without masks: there is nothing to report of them."""
    return fixed_source("ones", on="both", normalised=False)._replace(reported=False)


@functools.cache
def fixed_source(
    kind: str, *, on: MaskedTerms, normalised: bool, decay: float = 1.0, model: str = "reference"
) -> MaskSource:
    """Masks that neither are trained nor read activations.

    Args:
        kind: `ones`, `random`, `positional`, `confidence`, or `given` with the data; see masks/fixed.
        on: see masks/fixed.place.
        normalised: whether each response's mask is scaled to mean 1.
        decay: of the positional mask, in (0, 1].
        model: whose confidence counts, `reference` or `policy`.
    """

    def mask_of(kept: Kept, batch: PairBatch, stats: TokenStats, key_B: Array | None) -> Array:
        if kind == "ones":
            return ones_mask(batch.valid_BPT)
        if kind == "random":
            assert key_B is not None
            return random_mask(key_B, batch.valid_BPT)
        if kind == "positional":
            return positional_mask(batch.valid_BPT, decay=decay)
        if kind == "confidence":
            logp_BPT = stats.logp_BPT if model == "policy" else stats.ref_logp_BPT
            return confidence_mask(jax.lax.stop_gradient(logp_BPT), batch.valid_BPT)
        if kind == "given":
            assert batch.weights_BPT is not None
            return given_mask(batch.weights_BPT, batch.valid_BPT)
        raise ValueError(f"unknown kind of mask {kind!r}")

    def keep(name: str, x: Array, at_RM: Array) -> None:
        return None

    return _untrained(keep, mask_of, on, normalised)
