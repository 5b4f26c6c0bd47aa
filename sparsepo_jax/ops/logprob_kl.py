"""Log-probability of the tokens that are there, and KL(ref || policy) over the vocabulary, from final states and head matrices.

The only place where logits exist, and they exist in blocks: of some tokens and a part of the vocabulary. Forward, each block adds to running
sums, so that of the whole only a few numbers a token are kept; the gradient in the logits is written down instead of derived. With cotangents a of
log pi(y) and b of the KL,

    d/dlogits = a (onehot(y) - pi) + b (pi - p_ref)

so the backward pass makes each block again. Nothing of size [tokens, vocabulary] is needed, and padding costs nothing: the loop over tokens ends
with the last one that is there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int


def _as_it_lies(x: Array) -> Array:
    return x


class HeadBlocks(NamedTuple):
    """How logits are made. tokens of each row, and entries of the vocabulary, at a time; shards: equal parts in which the vocabulary lies on
    different devices, of which each makes its own. keep: hold all logits from forward to backward instead of making them again (memory for time: a third
    of the products). gather, scatter: pin a part of a head [K, V, D], of K shards, to how devices read it (the whole width), and a head, or a part
    of its gradient, to how it is kept (cut over them): of a head that is cut, no device holds more than a part at a time."""

    tokens: int = 512
    vocabulary: int = 2048
    shards: int = 1
    keep: bool = False
    gather: Callable[[Array], Array] = _as_it_lies
    scatter: Callable[[Array], Array] = _as_it_lies


def logprob_kl(
    states_RMD: Float[Array, "R M D"],
    head_VD: Float[Array, "V D"],
    ref_states_RMD: Float[Array, "R M D"] | None,
    ref_head_VD: Float[Array, "V D"] | None,
    label_RM: Int[Array, "R M"],
    valid_RM: Bool[Array, "R M"],
    *,
    blocks: HeadBlocks = HeadBlocks(),
    softcaps: tuple[float | None, float | None] = (None, None),
) -> tuple[Float[Array, "R M"], Float[Array, "R M"], Float[Array, "R M"]]:
    """(log pi(y), log pi_ref(y), KL) of each response token, natural logs, float32 sums; zero, with zero gradient, outside `valid_RM`.

    states: what the decoders give after the final norm at the positions that predict each token; a row's tokens come first, its padding last. Heads
    are taken in the states' type. The reference is a constant. Without a reference (None, None) ref_logp is the policy's own, detached, and the KL is
    zero. softcaps: of the policy's and the reference's logits, see soft_cap.
    """
    return _statistics(
        states_RMD, head_VD, ref_states_RMD, ref_head_VD, label_RM, valid_RM, blocks, softcaps
    )[:3]


def logprob_best(
    states_RMD: Float[Array, "R M D"],
    head_VD: Float[Array, "V D"],
    label_RM: Int[Array, "R M"],
    valid_RM: Bool[Array, "R M"],
    *,
    blocks: HeadBlocks = HeadBlocks(),
    softcap: float | None = None,
) -> tuple[Float[Array, "R M"], Float[Array, "R M"]]:
    """(log pi(y), the largest log pi of any token) of each response token, as logprob_kl; equal, to the last bit, where y is a most probable token."""
    logp, _, _, best = _statistics(
        states_RMD, head_VD, None, None, label_RM, valid_RM, blocks, (softcap, None)
    )
    return logp, best


def _statistics(
    states_RMD, head_VD, ref_states_RMD, ref_head_VD, label_RM, valid_RM, blocks, softcaps
) -> tuple[Array, Array, Array, Array]:
    """What logprob_kl gives, and the policy's largest log-probability."""
    R, M, D = states_RMD.shape
    V = head_VD.shape[0]
    tokens = min(blocks.tokens, M)
    shards = blocks.shards if V % blocks.shards == 0 else 1
    blocks = blocks._replace(tokens=tokens, vocabulary=min(blocks.vocabulary, V // shards), shards=shards)
    pad = ((0, 0), (0, -M % tokens))
    # Padding must not reach the sums: its states may be anything, NaN included.
    inert = lambda x: jnp.pad(jnp.where(valid_RM[..., None], x, 0), (*pad, (0, 0)))
    cut = lambda head_VD, like: blocks.scatter(head_VD.astype(like.dtype).reshape(shards, V // shards, D))
    ref = None
    if ref_states_RMD is not None and ref_head_VD is not None:
        ref = jax.lax.stop_gradient((inert(ref_states_RMD), cut(ref_head_VD, ref_states_RMD)))
    label = jnp.pad(jnp.where(valid_RM, label_RM, 0), pad)
    used = -(-valid_RM.sum(axis=1).max() // tokens)
    out = _blocked(blocks, softcaps, inert(states_RMD), cut(head_VD, states_RMD), ref, label, used)
    logp, ref_logp, kl, best = (jnp.where(valid_RM, x[:, :M], 0.0) for x in out)
    return logp, jax.lax.stop_gradient(ref_logp), kl, jax.lax.stop_gradient(best)


def soft_cap(logits: Array, softcap: float | None) -> Array:
    """softcap * tanh(logits / softcap), or the logits as they are (None). Gemma 2, 2408.00118, section 2."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


class _Columns(NamedTuple):
    """A part of the vocabulary, of each shard: its first column there, and which of its columns are new (parts may overlap at the end)."""

    begin: Array
    fresh_V: Array

    @staticmethod
    def of(number: Array, blocks: HeadBlocks, size: int) -> "_Columns":
        begin = jnp.minimum(number * blocks.vocabulary, size - blocks.vocabulary)
        return _Columns(begin, begin + jnp.arange(blocks.vocabulary) >= number * blocks.vocabulary)

    def part(self, head_KVD: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(head_KVD, self.begin, len(self.fresh_V), axis=1)

    def label_here(self, label_RC: Array, size: int, shards: int) -> tuple[Array, Array]:
        """For each shard, [R, C, K]: the label's place in this part, and whether it is there and new."""
        place = label_RC[..., None] - size * jnp.arange(shards) - self.begin
        inside = (place >= 0) & (place < len(self.fresh_V))
        place = jnp.where(inside, place, 0)
        return place, inside & self.fresh_V[place]


def _rows(x: Array, number: Array, tokens: int, axis: int = 1) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, number * tokens, tokens, axis=axis)


def _put(x: Array, part: Array, number: Array, tokens: int, axis: int = 1) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, number * tokens, axis=axis)


def _logits(states_RCD: Array, head_KVD: Array, softcap: float | None) -> Array:
    (R, C, D), (K, V, _) = states_RCD.shape, head_KVD.shape
    z = jnp.einsum(
        "ND,VD->NV",
        states_RCD.reshape(R * C, D),
        head_KVD.reshape(K * V, D),
        preferred_element_type=jnp.float32,
    )
    return soft_cap(z.reshape(R, C, K, V), softcap)


class _Sums(NamedTuple):
    """Of the logits so far, by shard. First axis of the first three: policy, reference. kl: sum of exp(z_ref - largest_ref) (z_ref - z)."""

    largest_ARMK: Array
    total_ARMK: Array
    label_ARMK: Array
    kl_RMK: Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(blocks, softcaps, states_RMD, head_KVD, ref, label_RM, used):
    return _forward(blocks, softcaps, states_RMD, head_KVD, ref, label_RM, used)[0]


def _forward(blocks, softcaps, states_RMD, head_KVD, ref, label_RM, used):
    (R, M, _), (K, size, _), tokens = states_RMD.shape, head_KVD.shape, blocks.tokens
    sides = [(states_RMD, head_KVD, softcaps[0])] + ([] if ref is None else [(*ref, softcaps[1])])
    A, least, overlap = len(sides), jnp.finfo(jnp.float32).min, size % blocks.vocabulary != 0
    zeros_ARMK = jnp.zeros((A, R, M, K))
    start = _Sums(jnp.full_like(zeros_ARMK, least), zeros_ARMK, zeros_ARMK, zeros_ARMK[0])

    def of_columns(sums, number):
        columns = _Columns.of(number, blocks, size)
        heads = [blocks.gather(columns.part(head)) for _, head, _ in sides]

        def of_tokens(n, carried):
            sums, kept = carried
            z_ARCKV = [
                _logits(_rows(states, n, tokens), head, softcap)
                for (states, _, softcap), head in zip(sides, heads)
            ]
            place_RCK, here_RCK = columns.label_here(_rows(label_RM, n, tokens), size, K)
            # Policy and reference side by side through the same operations: where they agree, so do their sums to the last bit.
            both_ARCKV = jnp.stack(z_ARCKV)
            if overlap:
                both_ARCKV = jnp.where(columns.fresh_V, both_ARCKV, least)
            old = _Sums(*(_rows(x, n, tokens, axis=-2) for x in sums))
            largest = jnp.maximum(old.largest_ARMK, both_ARCKV.max(axis=-1))
            total = old.total_ARMK * jnp.exp(old.largest_ARMK - largest) + jnp.exp(
                both_ARCKV - largest[..., None]
            ).sum(axis=-1)
            picked = jnp.take_along_axis(both_ARCKV, place_RCK[None, ..., None], axis=-1)[..., 0]
            label, kl = old.label_ARMK + jnp.where(here_RCK, picked, 0.0), old.kl_RMK
            if ref is not None:
                weight = jnp.exp(both_ARCKV[1] - largest[1, ..., None])  # 0 where not new
                kl = kl * jnp.exp(old.largest_ARMK[1] - largest[1]) + (
                    weight * (z_ARCKV[1] - z_ARCKV[0])
                ).sum(axis=-1)
            new = _Sums(largest, total, label, kl)
            if blocks.keep:
                kept = _put(kept, both_ARCKV, n, tokens, axis=2)
            return _Sums(*(_put(x, part, n, tokens, axis=-2) for x, part in zip(sums, new))), kept

        kept = jnp.zeros((A, R, M, K, blocks.vocabulary)) if blocks.keep else None
        return jax.lax.fori_loop(0, used, of_tokens, (sums, kept))

    sums, kept = jax.lax.scan(of_columns, start, jnp.arange(-(-size // blocks.vocabulary)))
    # The shards' sums become one.
    largest_ARM = sums.largest_ARMK.max(axis=-1)
    total_ARM = (sums.total_ARMK * jnp.exp(sums.largest_ARMK - largest_ARM[..., None])).sum(axis=-1)
    lse_ARM = largest_ARM + jnp.log(
        jnp.maximum(total_ARM, jnp.finfo(jnp.float32).tiny)
    )  # of padding nothing was summed
    logp_ARM = sums.label_ARMK.sum(axis=-1) - lse_ARM
    best_RM = largest_ARM[0] - lse_ARM[0]
    if ref is None:
        out = logp_ARM[0], logp_ARM[0], jnp.zeros((R, M)), best_RM
    else:
        share_RMK = jnp.exp(sums.largest_ARMK[1] - lse_ARM[1, ..., None])
        kl_RM = (sums.kl_RMK * share_RMK).sum(axis=-1) + (lse_ARM[0] - lse_ARM[1])
        # Rounding may leave -1e-8 where the two agree; KL is never negative. The gradient is that of the sum.
        out = logp_ARM[0], logp_ARM[1], jnp.maximum(kl_RM, 0.0), best_RM
    return out, (states_RMD, head_KVD, ref, label_RM, used, lse_ARM, kept)


def _forward_rule(blocks, softcaps, *primals):
    return _forward(
        blocks, softcaps, *jax.tree.map(lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed"))
    )


def _backward(blocks, softcaps, saved, cotangents):
    states_RMD, head_KVD, ref, label_RM, used, lse_ARM, kept = saved
    (R, M, D), (K, size, _), tokens = states_RMD.shape, head_KVD.shape, blocks.tokens
    given = lambda x: None if isinstance(x, SymbolicZero) else x
    a_RM, _, b_RM, _ = map(given, cotangents)  # the reference's log-prob and the best one are constants
    overlap = size % blocks.vocabulary != 0
    with_kl = (
        ref is not None and b_RM is not None
    )  # an objective without a KL term needs no product with the reference's head
    a_RM = jnp.zeros((R, M)) if a_RM is None else a_RM

    def of_columns(carried, inputs):
        d_head_KVD, d_states_RMKD = carried
        number, kept = inputs
        columns = _Columns.of(number, blocks, size)
        head, ref_head = (
            blocks.gather(columns.part(head_KVD)),
            blocks.gather(columns.part(ref[1])) if with_kl else None,
        )

        def of_tokens(n, carried):
            d_part, d_states_RMKD = carried
            rows = lambda x: _rows(x, n, tokens)[:, :, None, None]
            logits = lambda side, states, head: (
                _logits(_rows(states, n, tokens), head, softcaps[side])
                if kept is None
                else _rows(kept[side], n, tokens)
            )
            z = logits(0, states_RMD, head)
            place_RCK, here_RCK = columns.label_here(_rows(label_RM, n, tokens), size, K)
            onehot = jnp.where(here_RCK, place_RCK, -1)[..., None] == jnp.arange(blocks.vocabulary)
            a, b = rows(a_RM), rows(b_RM) if with_kl else 0.0
            d_z = (b - a) * jnp.exp(z - rows(lse_ARM[0])) + jnp.where(onehot, a, 0.0)
            if with_kl:
                d_z -= b * jnp.exp(logits(1, ref[0], ref_head) - rows(lse_ARM[1]))
            if softcaps[0] is not None:
                d_z *= 1 - (z / softcaps[0]) ** 2
            d_z = (jnp.where(columns.fresh_V, d_z, 0.0) if overlap else d_z).astype(states_RMD.dtype)
            states_ND = _rows(states_RMD, n, tokens).reshape(R * tokens, D)
            d_part += jnp.einsum(
                "NV,ND->VD", d_z.reshape(R * tokens, -1), states_ND, preferred_element_type=jnp.float32
            ).reshape(d_part.shape)
            more = jnp.einsum(
                "NKV,KVD->NKD", d_z.reshape(R * tokens, K, -1), head, preferred_element_type=jnp.float32
            )
            return d_part, _put(
                d_states_RMKD, _rows(d_states_RMKD, n, tokens) + more.reshape(R, tokens, K, D), n, tokens
            )

        d_part, d_states_RMKD = jax.lax.fori_loop(
            0, used, of_tokens, (jnp.zeros(head.shape, jnp.float32), d_states_RMKD)
        )
        # Parts overlap at the end, where the later one is zero.
        d_part = columns.part(d_head_KVD) + blocks.scatter(d_part)
        d_head_KVD = blocks.scatter(
            jax.lax.dynamic_update_slice_in_dim(d_head_KVD, d_part, columns.begin, axis=1)
        )
        return (d_head_KVD, d_states_RMKD), None

    start = blocks.scatter(jnp.zeros(head_KVD.shape, jnp.float32)), jnp.zeros((R, M, K, D))
    (d_head_KVD, d_states_RMKD), _ = jax.lax.scan(
        of_columns, start, (jnp.arange(-(-size // blocks.vocabulary)), kept)
    )
    return (
        d_states_RMKD.sum(axis=2).astype(states_RMD.dtype),
        d_head_KVD.astype(head_KVD.dtype),
        None,
        None,
        None,
    )


_blocked.defvjp(_forward_rule, _backward, symbolic_zeros=True)
