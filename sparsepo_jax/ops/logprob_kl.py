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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.ops.logits import LogitForm

LogitForms = tuple[LogitForm, LogitForm]
_PLAIN = LogitForm()
_LEAST = float(jnp.finfo(jnp.float32).min)


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


_BLOCKS = HeadBlocks()


def logprob_kl(
    states_RMD: Float[Array, "R M D"],
    head_VD: Float[Array, "V D"],
    ref_states_RMD: Float[Array, "R M D"] | None,
    ref_head_VD: Float[Array, "V D"] | None,
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
        ref_states_RMD: the same of the reference. None: there is no reference; ref_logp is then the policy's
            own log pi, without gradient, and the KL is zero.
        ref_head_VD: the same of the reference, or None.
        label_RM: the tokens themselves, 0 to V - 1.
        valid_RM: True on response tokens.
        blocks: how logits are computed; changes time and memory alone.
        forms: of the policy's and of the reference's logits.

    Returns:
        log pi(y), log pi_ref(y) and KL(ref || policy) >= 0 of each response token, in nats. They are zero,
        with zero gradient, outside valid_RM.
    """
    return _statistics(states_RMD, head_VD, ref_states_RMD, ref_head_VD, label_RM, valid_RM, blocks, forms)[
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


class _Columns(NamedTuple):
    """A part of the vocabulary, of each shard.

    begin is its first column there. fresh_V says which columns are new: the last part overlaps the one before
    it where the size is no multiple.
    """

    begin: Int[Array, ""]
    fresh_V: Bool[Array, "V"]

    @staticmethod
    def of(number: Array, blocks: HeadBlocks, size: int) -> "_Columns":
        begin = jnp.minimum(number * blocks.vocabulary, size - blocks.vocabulary)
        return _Columns(begin, begin + jnp.arange(blocks.vocabulary) >= number * blocks.vocabulary)

    def part(self, head_EVD: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(head_EVD, self.begin, len(self.fresh_V), axis=1)

    def where_fresh(self, x: Array, other: float) -> Array:
        """x [..., V], with `other` in the columns that are not new."""
        return jnp.where(self.fresh_V.reshape((1,) * (x.ndim - 1) + (-1,)), x, other)

    def label_here(self, label_RC: Array, size: int, shards: int) -> tuple[Array, Array]:
        """For each shard, [R, C, E]: the label's place in this part, and whether it is there and new."""
        place = label_RC[..., None] - size * jnp.arange(shards)[None, None] - self.begin
        inside = (place >= 0) & (place < len(self.fresh_V))
        place = jnp.where(inside, place, 0)
        return place, inside & self.fresh_V[place]


def _rows(x: Array, number: Array, tokens: int, axis: int = 1) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, number * tokens, tokens, axis=axis)


def _put(x: Array, part: Array, number: Array, tokens: int, axis: int = 1) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, number * tokens, axis=axis)


def _over_tokens(count: int, used: Array, visit: Callable[[Array, Any], Any], carried: Any) -> Any:
    """visit(number, carried) for the blocks of tokens in use.

    A single block is visited without a loop, so that nothing is copied into or out of what is carried.
    """
    return visit(jnp.int32(0), carried) if count == 1 else jax.lax.fori_loop(0, used, visit, carried)


def _over_columns(
    count: int, visit: Callable[[Any, Array, Any], tuple[Any, Any]], carried: Any, inputs: Any = None
) -> tuple[Any, Any]:
    """A scan of visit(carried, number, input) over the parts of the vocabulary; no loop if there is one."""
    if count > 1:
        return jax.lax.scan(lambda c, x: visit(c, *x), carried, (jnp.arange(count), inputs))
    carried, output = visit(carried, jnp.int32(0), jax.tree.map(lambda x: x[0], inputs))
    return carried, jax.tree.map(lambda x: x[None], output)


def _logits(states_RCD: Array, head_EVD: Array, form: LogitForm) -> Array:
    """[R, C, E, V], float32."""
    (R, C, D), (E, V, _) = states_RCD.shape, head_EVD.shape
    z = jnp.einsum(
        "CD,VD->CV",
        states_RCD.reshape(R * C, D),
        head_EVD.reshape(E * V, D),
        preferred_element_type=jnp.float32,
    )
    return form.logits(z.reshape(R, C, E, V))


class _Sums(NamedTuple):
    """Sums over the logits so far, by shard; of some tokens or of all.

    A runs over policy and reference. kl is the sum of exp(z_ref - largest_ref) (z_ref - z).
    """

    largest_ARME: Array
    total_ARME: Array
    label_ARME: Array
    kl_RME: Array

    def with_block(
        self, z_ARCEV: list[Array], columns: _Columns, label_RC: Array, size: int, overlap: bool
    ) -> tuple["_Sums", Array]:
        """The sums of a block's tokens with the block added, and its logits, least where not new."""
        place_RCE, here_RCE = columns.label_here(label_RC, size, z_ARCEV[0].shape[2])
        # Policy and reference go through the same operations side by side, so that where they agree, their
        # sums agree to the last bit.
        both_ARCEV = jnp.stack(z_ARCEV)
        if overlap:
            both_ARCEV = columns.where_fresh(both_ARCEV, _LEAST)
        largest = jnp.maximum(self.largest_ARME, both_ARCEV.max(axis=-1))
        more = jnp.exp(both_ARCEV - largest[..., None]).sum(axis=-1)
        total = self.total_ARME * jnp.exp(self.largest_ARME - largest) + more
        picked = jnp.take_along_axis(both_ARCEV, place_RCE[None, ..., None], axis=-1)[..., 0]
        label = self.label_ARME + jnp.where(here_RCE[None], picked, 0.0)
        kl = self.kl_RME
        if len(z_ARCEV) > 1:
            weight = jnp.exp(both_ARCEV[1] - largest[1, ..., None])  # 0 where not new
            more = (weight * (z_ARCEV[1] - z_ARCEV[0])).sum(axis=-1)
            kl = kl * jnp.exp(self.largest_ARME[1] - largest[1]) + more
        return _Sums(largest, total, label, kl), both_ARCEV

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


class _Saved(NamedTuple):
    """What the forward pass keeps for the backward pass. kept: all logits [parts, A, R, M, E, V], or None."""

    states_RMD: Array
    head_EVD: Array
    ref: tuple[Array, Array] | None
    label_RM: Array
    used: Array
    lse_ARM: Array
    kept: Array | None


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

    def of_columns(sums: _Sums, number: Array, _: None) -> tuple[_Sums, Array | None]:
        columns = _Columns.of(number, blocks, size)
        heads = [blocks.gather(columns.part(head)) for _, head, _ in sides]

        def of_tokens(n: Array, carried: tuple[_Sums, Array | None]) -> tuple[_Sums, Array | None]:
            sums, kept = carried
            z_ARCEV = [
                _logits(_rows(states, n, tokens), head, form)
                for (states, _, form), head in zip(sides, heads, strict=True)
            ]
            old = _Sums(*(_rows(x, n, tokens, axis=-2) for x in sums))
            new, both_ARCEV = old.with_block(z_ARCEV, columns, _rows(label_RM, n, tokens), size, overlap)
            if kept is not None:
                kept = _put(kept, both_ARCEV, n, tokens, axis=2)
            sums = _Sums(*(_put(x, part, n, tokens, axis=-2) for x, part in zip(sums, new, strict=True)))
            return sums, kept

        kept = jnp.zeros((A, R, M, E, blocks.vocabulary)) if blocks.keep else None
        return _over_tokens(M // tokens, used, of_tokens, (sums, kept))

    zeros_ARME = jnp.zeros((A, R, M, E))
    start = _Sums(jnp.full_like(zeros_ARME, _LEAST), zeros_ARME, zeros_ARME, zeros_ARME[0])
    sums, kept = _over_columns(-(-size // blocks.vocabulary), of_columns, start)
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
        self, n: Array, columns: _Columns, kept: Array | None, head: Array, ref_head: Array | None
    ) -> Array:
        """[R, C, E, V], in the states' type. kept: the logits of these columns, if they were kept."""
        saved, tokens = self.saved, self.blocks.tokens
        E, size, _ = saved.head_EVD.shape

        def rows(x_RM: Array) -> Array:
            return _rows(x_RM, n, tokens)[:, :, None, None]

        def logits(side: int, states_RMD: Array, head: Array) -> Array:
            if kept is not None:
                return _rows(kept[side], n, tokens)
            return _logits(_rows(states_RMD, n, tokens), head, self.forms[side])

        z = logits(0, saved.states_RMD, head)
        place_RCE, here_RCE = columns.label_here(_rows(saved.label_RM, n, tokens), size, E)
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
        carried: tuple[Array, Array], number: Array, kept: Array | None
    ) -> tuple[tuple[Array, Array], None]:
        d_head_EVD, d_states_RMED = carried
        columns = _Columns.of(number, blocks, size)
        head = blocks.gather(columns.part(saved.head_EVD))
        ref_head = None if ref_head_EVD is None else blocks.gather(columns.part(ref_head_EVD))

        def of_tokens(n: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
            d_part, d_states_RMED = carried
            d_z = gradient.of_block(n, columns, kept, head, ref_head)
            states_CD = _rows(saved.states_RMD, n, tokens).reshape(R * tokens, D)
            d_z_CV = d_z.reshape(R * tokens, -1)
            more = jnp.einsum("CV,CD->VD", d_z_CV, states_CD, preferred_element_type=jnp.float32)
            d_part += more.reshape(d_part.shape)
            d_z_CEV = d_z.reshape(R * tokens, E, -1)
            more = jnp.einsum("CEV,EVD->CED", d_z_CEV, head, preferred_element_type=jnp.float32)
            more = _rows(d_states_RMED, n, tokens) + more.reshape(R, tokens, E, D)
            return d_part, _put(d_states_RMED, more, n, tokens)

        start = (jnp.zeros(head.shape, jnp.float32), d_states_RMED)
        d_part, d_states_RMED = _over_tokens(M // tokens, saved.used, of_tokens, start)
        # Parts overlap at the end, where the later one is zero.
        d_part = columns.part(d_head_EVD) + blocks.scatter(d_part)
        d_head_EVD = jax.lax.dynamic_update_slice_in_dim(d_head_EVD, d_part, columns.begin, axis=1)
        return (blocks.scatter(d_head_EVD), d_states_RMED), None

    start = (blocks.scatter(jnp.zeros(saved.head_EVD.shape, jnp.float32)), jnp.zeros((R, M, E, D)))
    parts = -(-size // blocks.vocabulary)
    (d_head_EVD, d_states_RMED), _ = _over_columns(parts, of_columns, start, saved.kept)
    d_states_RMD = d_states_RMED.sum(axis=2).astype(saved.states_RMD.dtype)
    return d_states_RMD, d_head_EVD.astype(saved.head_EVD.dtype), None, None, None


_blocked.defvjp(_forward_rule, _backward, symbolic_zeros=True)
