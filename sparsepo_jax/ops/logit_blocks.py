"""Blocks of logits: parts of the vocabulary, loops over blocks, and the sums that a forward pass keeps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.ops.logits import LogitForm

LEAST = float(jnp.finfo(jnp.float32).min)


def _as_it_is(x: Array) -> Array:
    return x


class HeadBlocks(NamedTuple):
    """How logits are computed.

    Attributes:
        tokens: of each row, in one block.
        vocabulary: entries of the vocabulary in one block, of each shard.
        shards: equal parts in which the vocabulary lies on different devices; each computes its own.
        keep: whether all logits are held from the forward to the backward pass instead of being computed
            again. This saves a third of the products and costs tokens x vocabulary x 4 bytes for each model.
        gather: pins the sharding of a part of a head [E, V, D] to what the products read, which is the whole
            width.
        scatter: pins the sharding of a head, or of a part of its gradient, to how it is kept, which is cut
            over devices. No device then holds more than a part of a cut head at a time.
    """

    tokens: int = 512
    vocabulary: int = 2048
    shards: int = 1
    keep: bool = False
    gather: Callable[[Array], Array] = _as_it_is
    scatter: Callable[[Array], Array] = _as_it_is


class VocabularyPart(NamedTuple):
    """A part of the vocabulary, of each shard.

    begin is its first column there. fresh_V says which columns are new: the last part overlaps the one before
    it where the size is no multiple.
    """

    begin: Int[Array, ""]
    fresh_V: Bool[Array, "V"]

    @staticmethod
    def of(number: Int[Array, ""], blocks: HeadBlocks, size: int) -> "VocabularyPart":
        """The part of a number.

        Args:
            number: from 0.
            blocks: how the vocabulary is cut up.
            size: entries of each shard.
        """
        begin = jnp.minimum(number * blocks.vocabulary, size - blocks.vocabulary)
        return VocabularyPart(begin, begin + jnp.arange(blocks.vocabulary) >= number * blocks.vocabulary)

    def part(self, head_EVD: Float[Array, "E V D"]) -> Float[Array, "E W D"]:
        """Its rows of a head.

        Args:
            head_EVD: the whole head, by shard.
        """
        return jax.lax.dynamic_slice_in_dim(head_EVD, self.begin, len(self.fresh_V), axis=1)

    def where_fresh(self, x: Array, other: float) -> Array:
        """x with `other` in the columns that are not new.

        Args:
            x: [..., V], numbers of this part's columns.
            other: what stands in for those that an earlier part has.
        """
        return jnp.where(self.fresh_V.reshape((1,) * (x.ndim - 1) + (-1,)), x, other)

    def label_here(self, label_RC: Array, size: int, shards: int) -> tuple[Array, Array]:
        """For each shard, [R, C, E]: the label's place in this part, and whether it is there and new.

        Args:
            label_RC: tokens.
            size: entries of each shard.
            shards: their number.
        """
        place = label_RC[..., None] - size * jnp.arange(shards)[None, None] - self.begin
        inside = (place >= 0) & (place < len(self.fresh_V))
        place = jnp.where(inside, place, 0)
        return place, inside & self.fresh_V[place]


def rows_of(x: Array, number: Array, tokens: int, axis: int = 1) -> Array:
    """A block of tokens of x.

    Args:
        x: whose `axis` runs over tokens.
        number: of the block, from 0.
        tokens: of each block.
        axis: of tokens.
    """
    return jax.lax.dynamic_slice_in_dim(x, number * tokens, tokens, axis=axis)


def with_rows(x: Array, part: Array, number: Array, tokens: int, axis: int = 1) -> Array:
    """x with a block of tokens replaced.

    Args:
        x: whose `axis` runs over tokens.
        part: what takes the block's place.
        number: of the block, from 0.
        tokens: of each block.
        axis: of tokens.
    """
    return jax.lax.dynamic_update_slice_in_dim(x, part, number * tokens, axis=axis)


def over_tokens(count: int, used: Array, visit: Callable[[Array, Any], Any], carried: Any) -> Any:
    """visit(number, carried) for the blocks of tokens in use.

    A single block is visited without a loop, so that nothing is copied into or out of what is carried.

    Args:
        count: blocks that there are.
        used: blocks that hold a valid token, the first ones.
        visit: gives what is carried on.
        carried: what the first visit gets.
    """
    return visit(jnp.int32(0), carried) if count == 1 else jax.lax.fori_loop(0, used, visit, carried)


def over_parts(
    count: int, visit: Callable[[Any, Array, Any], tuple[Any, Any]], carried: Any, inputs: Any = None
) -> tuple[Any, Any]:
    """A scan of visit(carried, number, input) over the parts of the vocabulary; no loop if there is one.

    Args:
        count: parts.
        visit: gives what is carried on, and its own output.
        carried: what the first visit gets.
        inputs: arrays whose first axis runs over the parts, or None.
    """
    if count > 1:
        return jax.lax.scan(lambda c, x: visit(c, *x), carried, (jnp.arange(count), inputs))
    carried, output = visit(carried, jnp.int32(0), jax.tree.map(lambda x: x[0], inputs))
    return carried, jax.tree.map(lambda x: x[None], output)


def block_logits(states_RCD: Array, head_EVD: Array, form: LogitForm) -> Array:
    """Logits [R, C, E, V] of a block, float32.

    Args:
        states_RCD: final states.
        head_EVD: rows of the head, by shard.
        form: what a model does to its logits.
    """
    (R, C, D), (E, V, _) = states_RCD.shape, head_EVD.shape
    z = jnp.einsum(
        "CD,VD->CV",
        states_RCD.reshape(R * C, D),
        head_EVD.reshape(E * V, D),
        preferred_element_type=jnp.float32,
    )
    return form.logits(z.reshape(R, C, E, V))


def _summed_together(terms: Sequence[Array]) -> list[Array]:
    """Sums over the last axis, all added up in the same order."""

    def add(left: tuple[Array, ...], right: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(x + y for x, y in zip(left, right, strict=True))

    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
    return list(jax.lax.reduce(tuple(terms), zeros, add, (terms[0].ndim - 1,)))


class LogitSums(NamedTuple):
    """Sums over the logits so far, by shard; of some tokens or of all.

    A runs over policy and reference. kl is the sum of exp(z_ref - largest_ref) (z_ref - z).
    """

    largest_ARME: Array
    total_ARME: Array
    label_ARME: Array
    kl_RME: Array

    def with_block(
        self, z_ARCEV: Sequence[Array], columns: VocabularyPart, label_RC: Array, size: int
    ) -> "LogitSums":
        """The sums of a block's tokens with the block added.

        Policy and reference go through the same operations in one loop, so that where they agree, their sums
        agree to the last bit. Both in one array would do so too, and copy what is largest in a step.

        Args:
            z_ARCEV: logits of the policy, and of the reference if there is one; LEAST where not new.
            columns: the part of the vocabulary that they are of.
            label_RC: the tokens that are there.
            size: entries of the vocabulary in each shard.
        """
        place_RCE, here_RCE = columns.label_here(label_RC, size, z_ARCEV[0].shape[2])
        largest = jnp.maximum(self.largest_ARME, jnp.stack([z.max(axis=-1) for z in z_ARCEV]))
        weights_ARCEV = [jnp.exp(z - of[..., None]) for z, of in zip(z_ARCEV, largest, strict=True)]
        terms = list(weights_ARCEV)
        if len(z_ARCEV) > 1:
            terms.append(weights_ARCEV[1] * (z_ARCEV[1] - z_ARCEV[0]))  # the weight is 0 where not new
        sums = _summed_together(terms)
        more = jnp.stack(sums[: len(z_ARCEV)])
        total = self.total_ARME * jnp.exp(self.largest_ARME - largest) + more
        picked = [jnp.take_along_axis(z, place_RCE[..., None], axis=-1)[..., 0] for z in z_ARCEV]
        label = self.label_ARME + jnp.where(here_RCE[None], jnp.stack(picked), 0.0)
        kl = self.kl_RME
        if len(z_ARCEV) > 1:
            kl = kl * jnp.exp(self.largest_ARME[1] - largest[1]) + sums[-1]
        return LogitSums(largest, total, label, kl)

    def results(self) -> tuple[tuple[Array, ...], Array]:
        """(log pi(y), log pi_ref(y), KL, largest log pi) [R, M] over all shards, and logsumexps [A, R, M]."""
        largest_ARM = self.largest_ARME.max(axis=-1)
        total_ARM = (self.total_ARME * jnp.exp(self.largest_ARME - largest_ARM[..., None])).sum(axis=-1)
        # Nothing was summed of padding, and the logarithm of 0 is not finite.
        lse_ARM = largest_ARM + jnp.log(jnp.maximum(total_ARM, jnp.finfo(jnp.float32).tiny))
        logp_ARM = self.label_ARME.sum(axis=-1) - lse_ARM
        best_RM = largest_ARM[0] - lse_ARM[0]
        if len(logp_ARM) == 1:
            return (logp_ARM[0], logp_ARM[0], jnp.zeros_like(best_RM), best_RM), lse_ARM
        share_RME = jnp.exp(self.largest_ARME[1] - lse_ARM[1, ..., None])
        kl_RM = (self.kl_RME * share_RME).sum(axis=-1) + (lse_ARM[0] - lse_ARM[1])
        # Rounding may leave -1e-8 where the two agree, but KL is never negative. Its gradient is the sum's.
        return (logp_ARM[0], logp_ARM[1], jnp.maximum(kl_RM, 0.0), best_RM), lse_ARM
