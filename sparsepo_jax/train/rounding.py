"""Numbers that are held in bfloat16 and changed in float32, rounded at random so that no change is lost.

bfloat16 has eight binary digits. A change of less than half of the last one would be lost at every step if
the result were rounded to the nearest number: a weight of 1 would never see an update of 1e-4, and a mean
square with b2 = 0.999 would never fall. So a result is rounded up with the probability of its distance from
the number below: on average it is exact.

The random bits are a hash of (seed, step, path of the array, place of the element), made where they are used.
So they are the same on any mesh, need no state, and a run that is continued draws what it would have drawn.

References:
    Gupta et al., Deep Learning with Limited Numerical Precision, arXiv 1502.02551, 2015 (where rounding at
    random is called stochastic rounding).
"""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Int, UInt32

from sparsepo_jax.core.tree import Weights

Words = UInt32[Array, "2"]


def rounding_words(seed: int | Int[Array, ""], step: int | Int[Array, ""]) -> Words:
    """What a step's random bits are made of.

    Args:
        seed: of the run.
        step: number of the step, from 0.
    """
    return jax.random.bits(jax.random.fold_in(jax.random.key(seed), step), (2,), jnp.uint32)


def round_at_random(x: Float[Array, "*X"], words: Words, path: str) -> BFloat16[Array, "*X"]:
    """x in bfloat16: one of its two neighbours there, and x on average.

    Numbers of bfloat16 and what is not finite stay as they are.

    Args:
        x: float32.
        words: of `rounding_words`.
        path: of the array; arrays of other paths draw other bits.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    up = bits + (_random_bits(x.shape, words, path) >> 16)
    rounded = jax.lax.bitcast_convert_type((up >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _random_bits(shape: tuple[int, ...], words: Words, path: str) -> UInt32[Array, "*X"]:
    """Elements that are a multiple of 2^32 places apart get the same bits."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    start = _mixed(words[0] ^ jnp.uint32(zlib.crc32(path.encode())))
    return _mixed(_mixed(place ^ start) + words[1])


def _mixed(x: UInt32[Array, "*X"]) -> UInt32[Array, "*X"]:
    """The last step of MurmurHash3: each bit of x changes each bit of the result with a chance of a half."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def widened(tree: Any) -> Any:
    """The tree with its bfloat16 arrays in float32.

    Args:
        tree: of arrays.
    """
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def narrowed_like(tree: Any, like: Any, words: Words) -> Any:
    """The tree with those arrays rounded at random that are bfloat16 in `like`.

    Args:
        tree: of arrays.
        like: a tree of the same structure.
        words: of `rounding_words`.
    """

    def narrowed(path: tuple[Any, ...], x: Array, old: Array) -> Array:
        if old.dtype != jnp.bfloat16:
            return x
        return round_at_random(x.astype(jnp.float32), words, jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(narrowed, tree, like)


def apply_updates(weights: Any, updates: Any, words: Words) -> Any:
    """optax.apply_updates, with the sums rounded at random where weights are bfloat16.

    Args:
        weights: a tree of arrays.
        updates: what is added to them, float32.
        words: of `rounding_words`.
    """
    sums = jax.tree.map(jnp.add, widened(weights), updates)
    return narrowed_like(sums, weights, words)


def spread(weights: Weights, seed: int) -> Weights:
    """Weights moved at random within what rounds to the same number of bfloat16.

    Rounded to the nearest number they are what they were. But where all weights are numbers of bfloat16, as
    most checkpoints have them, none would round to another one before it has moved by half of its last digit,
    and a step that computes with rounded weights would see nearly nothing of what training changes. From
    random places a part of them crosses over at once, as large as the change: on average nothing is lost.

    Args:
        weights: float32 by path. Emptied: an array at a time is there twice. Those of them that are no
            numbers of bfloat16 stay as they are, and zeros.
        seed: of the run.
    """
    words = rounding_words(seed, 0)
    moved = {}
    for path in sorted(weights):
        x = weights.pop(path)
        moved[path] = jax.device_put(_spread_one(x, words, path), x.sharding)
    return moved


@functools.partial(jax.jit, static_argnames="path")
def _spread_one(x: Float[Array, "*X"], words: Words, path: str) -> Float[Array, "*X"]:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    half = jnp.uint32(2**15)
    # From half a digit below to half a digit above, both left out: there the nearest number would be another.
    offset = jnp.maximum(_random_bits(x.shape, words, path) >> 16, 1) - half
    is_narrow = ((bits << 16) == 0) & (x != 0) & jnp.isfinite(x)
    return jnp.where(is_narrow, jax.lax.bitcast_convert_type(bits + offset, jnp.float32), x)
