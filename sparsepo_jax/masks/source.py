"""Where the masks of a run come from: what to keep of the reference's activations, the weights to train, and how both become masks.

Asked for again, a source is the same object: programs that are built on it are found again.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from sparsepo_jax.core.layout import at_tokens, to_pairs
from sparsepo_jax.core.tree import Weights, merge_module, split_module
from sparsepo_jax.core.types import PairBatch, TokenMasks, TokenStats
from sparsepo_jax.masks.activation import activation_mask
from sparsepo_jax.masks.fixed import (
    confidence_mask,
    given_mask,
    normalise,
    ones_mask,
    place,
    positional_mask,
    random_mask,
)
from sparsepo_jax.masks.learned import MaskNet


class MaskSource(NamedTuple):
    """keep(name, activation [R S X], at_RM): what to keep of a named activation of the reference, at the positions that predict response tokens, or None.
    make(weights, kept, batch, stats, key_B, training): the masks. init(rngs): the weights to train, {} if there are none.
    shared: whether reward and KL share one mask (then each L1 factor counts half). reads_activations: whether `kept` is needed; untrained masks
    that do can be computed once and given with the batch.
    """

    keep: Callable[[str, Array, Array], Array | None]
    make: Callable[[Weights, dict[str, Array], PairBatch, TokenStats, Array, bool], TokenMasks]
    init: Callable[[nnx.Rngs], Weights]
    shared: bool
    reads_activations: bool = False


@functools.cache
def learned_source(
    *,
    net: str,
    sharing: str,
    on: str,
    normalised: bool,
    num_layers: int,
    width: int,
    norm_eps: float,
    init: str,
    layer_activation: str,
    mixer_activation: str,
    dropout: float,
) -> MaskSource:
    """SparsePO. Weights are named `common.*`, or `reward.*` and `kl.*`; a mask on one of the two needs one net only."""
    roles = (
        ("common",) if sharing == "common" else {"both": ("reward", "kl"), "kl": ("kl",)}.get(on, ("reward",))
    )

    def make_net(rngs: nnx.Rngs) -> MaskNet:
        return MaskNet(
            net,
            num_layers=num_layers,
            width=width,
            norm_eps=norm_eps,
            init=init,
            layer_activation=layer_activation,
            mixer_activation=mixer_activation,
            dropout=dropout,
            rngs=rngs,
        )

    graph = nnx.split(nnx.eval_shape(lambda: make_net(nnx.Rngs(0))), nnx.Param)[0]

    def keep(name: str, x: Array, at_RM: Array) -> Array | None:
        wanted = name == "final_norm" or (name == "block_out" and net.endswith("_all"))
        return at_tokens(x, at_RM) if wanted else None

    def make(weights, kept, batch, stats, key_B, training):
        states_LRMD = kept["final_norm"][None]
        if net.endswith("_all"):  # the last block's state is taken after the final norm
            states_LRMD = jnp.concatenate([kept["block_out"][:-1], states_LRMD])

        def run(role: str) -> Array:
            mine = {
                path.removeprefix(f"{role}."): value
                for path, value in weights.items()
                if path.startswith(f"{role}.")
            }
            mask_BPT = merge_module(graph, mine)(states_LRMD, batch, key_B if training else None)
            return normalise(mask_BPT, batch.valid_BPT) if normalised else mask_BPT

        if len(roles) == 1:
            return place(run(roles[0]), batch.valid_BPT, on)
        return TokenMasks(reward_BPT=run("reward"), kl_BPT=run("kl"))

    def init_weights(rngs: nnx.Rngs) -> Weights:
        return {
            f"{role}.{path}": value
            for role in roles
            for path, value in split_module(make_net(rngs))[1].items()
        }

    return MaskSource(keep, make, init_weights, shared=sharing == "common", reads_activations=True)


def _untrained(keep, mask_of, on: str, normalised: bool) -> MaskSource:
    def make(weights, kept, batch, stats, key_B, training):
        mask_BPT = mask_of(kept, batch, stats, key_B)
        return place(normalise(mask_BPT, batch.valid_BPT) if normalised else mask_BPT, batch.valid_BPT, on)

    return MaskSource(keep, make, lambda rngs: {}, shared=True)


def activation_source(
    *, points: dict[str, tuple[str, ...]], mapping: str, on: str, normalised: bool
) -> MaskSource:
    """MaPO: of each activation only the feature mean is kept."""
    return _activation_source(tuple(points.items()), mapping, on, normalised)


@functools.cache
def _activation_source(
    points_of_groups: tuple[tuple[str, tuple[str, ...]], ...], mapping: str, on: str, normalised: bool
) -> MaskSource:
    points = dict(points_of_groups)
    names = {name for group in points.values() for name in group}

    def keep(name: str, x: Array, at_RM: Array) -> Array | None:
        return at_tokens(x.astype(jnp.float32).mean(axis=-1), at_RM) if name in names else None

    def mask_of(kept, batch, stats, key_B):
        means = {name: to_pairs(x, batch) for name, x in kept.items() if name in names}
        return activation_mask(means, batch.valid_BPT, points, mapping)

    made = _untrained(keep, mask_of, on, normalised)
    return made._replace(reads_activations=True)


@functools.cache
def fixed_source(
    kind: str, *, on: str, normalised: bool, decay: float = 1.0, model: str = "reference"
) -> MaskSource:
    """ones, random, positional (decay), confidence (model: reference or policy), given (with the data)."""
    masks = {
        "ones": lambda batch, stats, key_B: ones_mask(batch.valid_BPT),
        "random": lambda batch, stats, key_B: random_mask(key_B, batch.valid_BPT),
        "positional": lambda batch, stats, key_B: positional_mask(batch.valid_BPT, decay=decay),
        "confidence": lambda batch, stats, key_B: confidence_mask(
            jax.lax.stop_gradient(stats.logp_BPT if model == "policy" else stats.ref_logp_BPT),
            batch.valid_BPT,
        ),
        "given": lambda batch, stats, key_B: given_mask(batch.weights_BPT, batch.valid_BPT),
    }
    return _untrained(lambda name, x, at_RM: None, lambda kept, *rest: masks[kind](*rest), on, normalised)
