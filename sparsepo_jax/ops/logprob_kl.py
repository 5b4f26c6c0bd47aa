"""Log-probability of response tokens, and KL(ref || policy) over the vocabulary, from final states and heads.

This is the only place where logits exist, and they exist in blocks of some tokens and a part of the
vocabulary. In the forward pass each block adds to running sums, so that only a few numbers per token are
kept. The gradient in the logits is written down instead of derived. With cotangents a of log pi(y) and b of
the KL,

    d/dlogits = a (onehot(y) - pi) + b (pi - p_ref)

so the backward pass computes each block again. Nothing of size [tokens, vocabulary] is needed, and padding
costs nothing, because the loop over tokens ends with the last valid one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.ops.logit_blocks import (
    LEAST,
    HeadBlocks,
    LogitSums,
    VocabularyPart,
    block_logits,
    over_parts,
    over_tokens,
    rows_of,
    with_rows,
)
from sparsepo_jax.ops.logits import LogitForm

LogitForms = tuple[LogitForm, LogitForm]
_PLAIN = LogitForm()
_BLOCKS = HeadBlocks()


def logprob_kl(
    states_RMD: Float[Array, "R M D"],
    head_VD: Float[Array, "V D"],
    ref_states_RMX: Float[Array, "R M X"] | None,
    ref_head_VX: Float[Array, "V X"] | None,
    label_RM: Int[Array, "R M"],
    valid_RM: Bool[Array, "R M"],
    *,
    blocks: HeadBlocks = _BLOCKS,
    forms: LogitForms = (_PLAIN, _PLAIN),
) -> tuple[Float[Array, "R M"], Float[Array, "R M"], Float[Array, "R M"]]:
    """Log-probabilities of the labels under policy and reference, and the KL between the two distributions.

    Heads are cast to the states' type; sums are float32. The reference is a constant.

    Args:
        states_RMD: what the policy gives after its final norm at the position that predicts each token. A
            row's tokens come first, its padding last.
        head_VD: the policy's head; logits are states times its transpose.
        ref_states_RMX: the same of the reference, whose width X may be another. None: there is no reference;
            ref_logp is then the policy's own log pi, without gradient, and the KL is zero.
        ref_head_VX: the same of the reference, or None.
        label_RM: the tokens themselves, 0 to V - 1.
        valid_RM: True on response tokens.
        blocks: how logits are computed; changes time and memory alone.
        forms: of the policy's and of the reference's logits.

    Returns:
        log pi(y), log pi_ref(y) and KL(ref || policy) >= 0 of each response token, in nats. They are zero,
        with zero gradient, outside valid_RM.
    """
    return _statistics(states_RMD, head_VD, ref_states_RMX, ref_head_VX, label_RM, valid_RM, blocks, forms)[
        :3
    ]


def logprob_best(
    states_RMD: Float[Array, "R M D"],
    head_VD: Float[Array, "V D"],
    label_RM: Int[Array, "R M"],
    valid_RM: Bool[Array, "R M"],
    *,
    blocks: HeadBlocks = _BLOCKS,
    form: LogitForm = _PLAIN,
) -> tuple[Float[Array, "R M"], Float[Array, "R M"]]:
    """Log-probability of the labels, and of the most probable tokens in their places.

    Args:
        states_RMD: see `logprob_kl`.
        head_VD: see `logprob_kl`.
        label_RM: see `logprob_kl`.
        valid_RM: True on response tokens.
        blocks: how logits are computed.
        form: of the logits.

    Returns:
        log pi(y) and the largest log pi of any token, in nats. The two are equal, to the last bit, where y is
        a most probable token.
    """
    logp, _, _, best = _statistics(
        states_RMD, head_VD, None, None, label_RM, valid_RM, blocks, (form, _PLAIN)
    )
    return logp, best


@jax.named_scope("head")
def _statistics(
    states_RMD: Array,
    head_VD: Array,
    ref_states_RMD: Array | None,
    ref_head_VD: Array | None,
    label_RM: Array,
    valid_RM: Array,
    blocks: HeadBlocks,
    forms: LogitForms,
) -> tuple[Array, Array, Array, Array]:
    """What logprob_kl gives, and the policy's largest log-probability."""
    M = states_RMD.shape[1]
    V = head_VD.shape[0]
    tokens = min(blocks.tokens, M)
    shards = blocks.shards if V % blocks.shards == 0 else 1
    blocks = blocks._replace(tokens=tokens, vocabulary=min(blocks.vocabulary, V // shards), shards=shards)
    pad = ((0, 0), (0, -M % tokens))

    def inert(x_RMD: Array) -> Array:
        # Padding must not reach the sums: its states may be anything, NaN included.
        return jnp.pad(jnp.where(valid_RM[..., None], x_RMD, 0), (*pad, (0, 0)))

    def cut(head_VD: Array, like: Array) -> Array:
        return blocks.scatter(head_VD.astype(like.dtype).reshape(shards, V // shards, -1))

    ref = None
    if ref_states_RMD is not None and ref_head_VD is not None:
        ref = jax.lax.stop_gradient((inert(ref_states_RMD), cut(ref_head_VD, ref_states_RMD)))
    label = jnp.pad(jnp.where(valid_RM, label_RM, 0), pad)
    used = -(-valid_RM.sum(axis=1).max() // tokens)
    out = _blocked(blocks, forms, inert(states_RMD), cut(head_VD, states_RMD), ref, label, used)
    logp, ref_logp, kl, best = (jnp.where(valid_RM, x[:, :M], 0.0) for x in out)
    return logp, jax.lax.stop_gradient(ref_logp), kl, jax.lax.stop_gradient(best)


class _Saved(NamedTuple):
    """What the forward pass keeps for the backward pass.

    kept: all logits, of the policy and of the reference [parts, R, M, E, V], or None.
    """

    states_RMD: Array
    head_EVD: Array
    ref: tuple[Array, Array] | None
    label_RM: Array
    used: Array
    lse_ARM: Array
    kept: list[Array] | None


_Carried = tuple[LogitSums, list[Array] | None]  # the sums so far, and the logits that are kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(
    blocks: HeadBlocks,
    forms: LogitForms,
    states_RMD: Array,
    head_EVD: Array,
    ref: tuple[Array, Array] | None,
    label_RM: Array,
    used: Array,
) -> tuple[Array, ...]:
    """used: how many blocks of tokens hold valid ones."""
    return _forward(blocks, forms, states_RMD, head_EVD, ref, label_RM, used)[0]


def _forward(
    blocks: HeadBlocks,
    forms: LogitForms,
    states_RMD: Array,
    head_EVD: Array,
    ref: tuple[Array, Array] | None,
    label_RM: Array,
    used: Array,
) -> tuple[tuple[Array, ...], _Saved]:
    """The results, and what the backward pass needs."""
    R, M, _ = states_RMD.shape
    E, size, _ = head_EVD.shape
    tokens = blocks.tokens
    sides = [(states_RMD, head_EVD, forms[0])]
    if ref is not None:
        sides.append((*ref, forms[1]))
    A = len(sides)
    overlap = size % blocks.vocabulary != 0

    def of_columns(sums: LogitSums, number: Array, _: None) -> tuple[LogitSums, list[Array] | None]:
        columns = VocabularyPart.of(number, blocks, size)
        heads = [blocks.gather(columns.part(head)) for _, head, _ in sides]

        def of_tokens(n: Array, carried: _Carried) -> _Carried:
            sums, kept = carried
            z_ARCEV = [
                block_logits(rows_of(states, n, tokens), head, form)
                for (states, _, form), head in zip(sides, heads, strict=True)
            ]
            if overlap:
                z_ARCEV = [columns.where_fresh(z, LEAST) for z in z_ARCEV]
            old = LogitSums(*(rows_of(x, n, tokens, axis=-2) for x in sums))
            new = old.with_block(z_ARCEV, columns, rows_of(label_RM, n, tokens), size)
            if kept is not None:
                kept = [with_rows(x, z, n, tokens) for x, z in zip(kept, z_ARCEV, strict=True)]
            sums = LogitSums(
                *(with_rows(x, part, n, tokens, axis=-2) for x, part in zip(sums, new, strict=True))
            )
            return sums, kept

        kept = [jnp.zeros((R, M, E, blocks.vocabulary)) for _ in sides] if blocks.keep else None
        return over_tokens(M // tokens, used, of_tokens, (sums, kept))

    zeros_ARME = jnp.zeros((A, R, M, E))
    start = LogitSums(jnp.full_like(zeros_ARME, LEAST), zeros_ARME, zeros_ARME, zeros_ARME[0])
    sums, kept = over_parts(-(-size // blocks.vocabulary), of_columns, start)
    out, lse_ARM = sums.results()
    return out, _Saved(states_RMD, head_EVD, ref, label_RM, used, lse_ARM, kept)


def _forward_rule(blocks: HeadBlocks, forms: LogitForms, *primals: Any) -> tuple[tuple[Array, ...], _Saved]:
    """_forward, on arguments that say whether they are differentiated (symbolic_zeros)."""
    values = jax.tree.map(lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed"))
    return _forward(blocks, forms, *values)


def _array_or_none(cotangent: Any) -> Array | None:
    return None if isinstance(cotangent, SymbolicZero) else cotangent


class _LogitGradient(NamedTuple):
    """The gradient in the logits, block by block. b_RM None: there is no gradient of the KL."""

    blocks: HeadBlocks
    forms: LogitForms
    saved: _Saved
    a_RM: Array
    b_RM: Array | None

    def of_block(
        self, n: Array, columns: VocabularyPart, kept: list[Array] | None, head: Array, ref_head: Array | None
    ) -> Array:
        """[R, C, E, V], in the states' type. kept: the logits of these columns, if they were kept."""
        saved, tokens = self.saved, self.blocks.tokens
        E, size, _ = saved.head_EVD.shape

        def rows(x_RM: Array) -> Array:
            return rows_of(x_RM, n, tokens)[:, :, None, None]

        def logits(side: int, states_RMD: Array, head: Array) -> Array:
            if kept is not None:
                return rows_of(kept[side], n, tokens)
            return block_logits(rows_of(states_RMD, n, tokens), head, self.forms[side])

        z = logits(0, saved.states_RMD, head)
        place_RCE, here_RCE = columns.label_here(rows_of(saved.label_RM, n, tokens), size, E)
        numbers = jnp.arange(self.blocks.vocabulary)[None, None, None]
        onehot = jnp.where(here_RCE, place_RCE, -1)[..., None] == numbers
        a = rows(self.a_RM)
        b = 0.0 if self.b_RM is None else rows(self.b_RM)
        d_z = (b - a) * jnp.exp(z - rows(saved.lse_ARM[0])) + jnp.where(onehot, a, 0.0)
        if saved.ref is not None and ref_head is not None:
            d_z -= b * jnp.exp(logits(1, saved.ref[0], ref_head) - rows(saved.lse_ARM[1]))
        d_z = self.forms[0].to_products(d_z, z)
        if size % self.blocks.vocabulary != 0:
            d_z = columns.where_fresh(d_z, 0.0)
        return d_z.astype(saved.states_RMD.dtype)


@jax.named_scope("head_gradient")
def _backward(blocks: HeadBlocks, forms: LogitForms, saved: _Saved, cotangents: tuple) -> tuple:
    R, M, D = saved.states_RMD.shape
    E, size, _ = saved.head_EVD.shape
    tokens = blocks.tokens
    # The log-probabilities of the reference and of the best token are constants.
    a_RM, _, b_RM, _ = map(_array_or_none, cotangents)
    a_RM = jnp.zeros((R, M)) if a_RM is None else a_RM
    # An objective without a KL term needs no product with the reference's head.
    ref_head_EVD = None if saved.ref is None or b_RM is None else saved.ref[1]
    gradient = _LogitGradient(blocks, forms, saved, a_RM, None if ref_head_EVD is None else b_RM)

    def of_columns(
        carried: tuple[Array, Array], number: Array, kept: list[Array] | None
    ) -> tuple[tuple[Array, Array], None]:
        d_head_EVD, d_states_RMED = carried
        columns = VocabularyPart.of(number, blocks, size)
        head = blocks.gather(columns.part(saved.head_EVD))
        ref_head = None if ref_head_EVD is None else blocks.gather(columns.part(ref_head_EVD))

        def of_tokens(n: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
            d_part, d_states_RMED = carried
            d_z = gradient.of_block(n, columns, kept, head, ref_head)
            states_CD = rows_of(saved.states_RMD, n, tokens).reshape(R * tokens, D)
            d_z_CV = d_z.reshape(R * tokens, -1)
            more = jnp.einsum("CV,CD->VD", d_z_CV, states_CD, preferred_element_type=jnp.float32)
            d_part += more.reshape(d_part.shape)
            d_z_CEV = d_z.reshape(R * tokens, E, -1)
            more = jnp.einsum("CEV,EVD->CED", d_z_CEV, head, preferred_element_type=jnp.float32)
            more = rows_of(d_states_RMED, n, tokens) + more.reshape(R, tokens, E, D)
            return d_part, with_rows(d_states_RMED, more, n, tokens)

        start = (jnp.zeros(head.shape, jnp.float32), d_states_RMED)
        d_part, d_states_RMED = over_tokens(M // tokens, saved.used, of_tokens, start)
        # Parts overlap at the end, where the later one is zero.
        d_part = columns.part(d_head_EVD) + blocks.scatter(d_part)
        d_head_EVD = jax.lax.dynamic_update_slice_in_dim(d_head_EVD, d_part, columns.begin, axis=1)
        return (blocks.scatter(d_head_EVD), d_states_RMED), None

    start = (blocks.scatter(jnp.zeros(saved.head_EVD.shape, jnp.float32)), jnp.zeros((R, M, E, D)))
    parts = -(-size // blocks.vocabulary)
    (d_head_EVD, d_states_RMED), _ = over_parts(parts, of_columns, start, saved.kept)
    d_states_RMD = d_states_RMED.sum(axis=2).astype(saved.states_RMD.dtype)
    return d_states_RMD, d_head_EVD.astype(saved.head_EVD.dtype), None, None, None


_blocked.defvjp(_forward_rule, _backward, symbolic_zeros=True)
