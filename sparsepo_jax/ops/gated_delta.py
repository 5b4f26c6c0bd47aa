"""The gated delta rule: a memory of each head that every token decays, corrects and reads.

    S_t = a_t S_(t-1) + b_t k_t (v_t - a_t S_(t-1)^T k_t)^T        out_t = S_t^T q_t / sqrt(H)

with q and k of length 1, a decay a in (0, 1] and a rate b. S is [H, X], keys to values, and zero before the
first token. t - 1 is the token before t in its own sequence and part: each response of a prompt goes on from
the prompt's memory, though the responses lie one after another in the row.

Tokens are worked off in chunks. Within a chunk the corrections solve a triangular system, in which a token
meets those that it sees. Between chunks two memories are handed on: that of the last token, and that of its
prompt, with which the next response begins.

References:
    Yang et al., Gated delta networks, arXiv 2412.06464, 2024. Yang et al., Parallelizing linear transformers
    with the delta rule over sequence length, arXiv 2406.06484, 2024 (the chunks, section 3).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparsepo_jax.ops.block_attention import Places
from sparsepo_jax.ops.remat import attended

CHUNK = 64  # tokens; a power of 2
_EPSILON = 1e-6  # added to squared lengths of q and k


def gated_delta(
    q_RSKH: Float[Array, "R S K H"],
    k_RSKH: Float[Array, "R S K H"],
    v_RSNX: Float[Array, "R S N X"],
    log_decay_RSN: Float[Array, "R S N"],
    rate_RSN: Float[Array, "R S N"],
    places: Places,
    *,
    branched: bool,
) -> tuple[Float[Array, "R S N X"], Float[Array, "R N H X"]]:
    """What each token reads of its memory, held and summed in float32.

    Sums of log-decays and the triangular systems are exact to float32 on every device; in the other products
    a device that rounds the factors of float32 products by default does so here.

    The backward pass computes all but the inputs again.

    Args:
        q_RSKH: queries, of any length; a query/key head serves N / K value heads that follow one another.
        k_RSKH: keys, of any length.
        v_RSNX: values.
        log_decay_RSN: log a, at most 0.
        rate_RSN: b, 0 to 1.
        places: where each column stands. Padding reads zeros and changes nothing.
        branched: whether a sequence may have several responses; else tokens that follow one another need no
            memory of the prompt.

    Returns:
        What is read, of the type of v; and the memory after the last column, float32.
    """
    out_RSNX, memory_RNHX = jax.checkpoint(_rule, static_argnums=6)(
        q_RSKH, k_RSKH, v_RSNX, log_decay_RSN, rate_RSN, places, branched
    )
    return attended(out_RSNX.astype(v_RSNX.dtype)), memory_RNHX


def gated_delta_step(
    q_BKH: Float[Array, "B K H"],
    k_BKH: Float[Array, "B K H"],
    v_BNX: Float[Array, "B N X"],
    log_decay_BN: Float[Array, "B N"],
    rate_BN: Float[Array, "B N"],
    memory_BNHX: Float[Array, "B N H X"],
) -> tuple[Float[Array, "B N X"], Float[Array, "B N H X"]]:
    """The rule for one token of each row.

    Args:
        q_BKH: queries, of any length.
        k_BKH: keys, of any length.
        v_BNX: values.
        log_decay_BN: log a.
        rate_BN: b.
        memory_BNHX: of the tokens before.

    Returns:
        What is read, of the type of v; and the memory with the token in it, float32.
    """
    share = v_BNX.shape[1] // k_BKH.shape[1]
    q_BNH, k_BNH = (jnp.repeat(x, share, axis=1) for x in (_scaled_query(q_BKH), _of_length_1(k_BKH)))
    v32_BNX, rate_BN1 = v_BNX.astype(jnp.float32), rate_BN.astype(jnp.float32)[..., None]
    memory_BNHX = memory_BNHX * jnp.exp(log_decay_BN.astype(jnp.float32))[..., None, None]
    wrong_BNX = rate_BN1 * (v32_BNX - jnp.einsum("BNHX,BNH->BNX", memory_BNHX, k_BNH))
    memory_BNHX = memory_BNHX + k_BNH[..., None] * wrong_BNX[..., None, :]
    return jnp.einsum("BNHX,BNH->BNX", memory_BNHX, q_BNH).astype(v_BNX.dtype), memory_BNHX


def _of_length_1(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + _EPSILON)


def _scaled_query(q: Array) -> Array:
    return _of_length_1(q) * q.shape[-1] ** -0.5


# ---------------------------------------------------------------- chunks

# In what follows G counts the value heads of a key head, I chunks, C the tokens of a chunk, T those that
# they see, and M and Z memories: that of the last token, and, if sequences branch, that of its prompt.


class _Chunk(NamedTuple):
    """What the scan over chunks reads of one, apart from the memories; or of all, with an axis I in front."""

    q_RKCH: Array
    k_RKCH: Array
    value_RKGCX: Array  # b v
    rate_RKGC: Array  # b
    solved_RKGCT: Array  # the inverse of the triangular system
    scores_RKGCT: Array  # q k, decayed, where a token sees another
    entering_RKGMC: Array  # decay since the memories with which the chunk begins; 0: not this token's past
    leaving_RKGMC: Array  # decay up to the memories with which it ends
    kept_RKGMZ: Array  # what these keep of those


def _rule(
    q_RSKH: Array,
    k_RSKH: Array,
    v_RSNX: Array,
    log_decay_RSN: Array,
    rate_RSN: Array,
    places: Places,
    branched: bool,
) -> tuple[Array, Array]:
    R, S, N, X = v_RSNX.shape
    K, H = k_RSKH.shape[2:]
    there_RS = places.sequence_RS >= 0

    def cut(x_RSX: Array, *heads: int) -> Array:
        """[R, S, heads, ...] in chunks, [I, R, *heads, C, ...], in float32; zero for padding."""
        x = x_RSX.astype(jnp.float32).reshape(R, S, *heads, *x_RSX.shape[3:])
        x = jnp.where(there_RS.reshape(R, S, *(1,) * (x.ndim - 2)), x, 0.0)
        x = jnp.pad(x, [(0, 0), (0, -S % CHUNK)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(R, -1, CHUNK, *x.shape[2:])
        return jnp.moveaxis(x, (1, 2), (0, 2 + len(heads)))

    G = N // K
    v, log_decay, rate = (cut(x, K, G) for x in (v_RSNX, log_decay_RSN, rate_RSN))
    q, k = cut(_scaled_query(q_RSKH), K), cut(_of_length_1(k_RSKH), K)
    chunks = _chunks(q, k, v, log_decay, rate, _places_of_chunks(places), branched)
    empty_RKGMHX = jnp.zeros((R, K, G, chunks.kept_RKGMZ.shape[-1], H, X))
    memories_RKGMHX, out_IRKGCX = jax.lax.scan(_step, empty_RKGMHX, chunks)
    out_RSNX = jnp.moveaxis(out_IRKGCX, (0, 4), (1, 2)).reshape(R, -1, N, X)[:, :S]
    return out_RSNX, memories_RKGMHX[:, :, :, 0].reshape(R, N, H, X)


def _step(memories_RKGMHX: Array, chunk: _Chunk) -> tuple[Array, Array]:
    """The memories after a chunk, and what its tokens read."""

    def read_by(x_RKCH: Array) -> Array:
        x_RKGMCH = x_RKCH[:, :, None, None] * chunk.entering_RKGMC[..., None]
        return jnp.einsum("RKGMCH,RKGMHX->RKGCX", x_RKGMCH, memories_RKGMHX)

    known_RKGCX = chunk.rate_RKGC[..., None] * read_by(chunk.k_RKCH)
    new_RKGTX = jnp.einsum("RKGTC,RKGCX->RKGTX", chunk.solved_RKGCT, chunk.value_RKGCX - known_RKGCX)
    out_RKGCX = read_by(chunk.q_RKCH) + jnp.einsum("RKGCT,RKGTX->RKGCX", chunk.scores_RKGCT, new_RKGTX)
    kept_RKGMHX = jnp.einsum("RKGMZ,RKGZHX->RKGMHX", chunk.kept_RKGMZ, memories_RKGMHX)
    keys_RKGMCH = chunk.k_RKCH[:, :, None, None] * chunk.leaving_RKGMC[..., None]
    return kept_RKGMHX + jnp.einsum("RKGMTH,RKGTX->RKGMHX", keys_RKGMCH, new_RKGTX), out_RKGCX


def _chunks(
    q_IRKCH: Array,
    k_IRKCH: Array,
    v_IRKGCX: Array,
    log_decay_IRKGC: Array,
    rate_IRKGC: Array,
    places: "_PlacesOfChunks",
    branched: bool,
) -> _Chunk:
    """All that the scan reads, for all chunks at once."""
    sees_IRCT = places.sees()
    # Decay from the chunk's beginning to each token, along the token's own past.
    since_IRKGC = jnp.einsum(
        "IRCT,IRKGT->IRKGC", sees_IRCT.astype(jnp.float32), log_decay_IRKGC, precision="highest"
    )  # its exponential is taken
    between_IRKGCT = since_IRKGC[..., :, None] - since_IRKGC[..., None, :]
    decay_IRKGCT = jnp.exp(jnp.where(sees_IRCT[:, :, None, None], between_IRKGCT, -jnp.inf))
    entering_IRMC = places.goes_on(branched).astype(jnp.float32)
    ends_IRMC = places.ends(branched).astype(jnp.float32)
    entering_IRKGMC = entering_IRMC[:, :, None, None] * jnp.exp(since_IRKGC)[:, :, :, :, None]
    kept_IRKGMZ = jnp.einsum("IRMC,IRKGZC->IRKGMZ", ends_IRMC, entering_IRKGMC)
    products_IRKCT = jnp.einsum("IRKCH,IRKTH->IRKCT", k_IRKCH, k_IRKCH)
    scores_IRKCT = jnp.einsum("IRKCH,IRKTH->IRKCT", q_IRKCH, k_IRKCH)
    return _Chunk(
        q_IRKCH,
        k_IRKCH,
        rate_IRKGC[..., None] * v_IRKGCX,
        rate_IRKGC,
        unit_lower_inverse(rate_IRKGC[..., None] * decay_IRKGCT * products_IRKCT[:, :, :, None]),
        decay_IRKGCT * scores_IRKCT[:, :, :, None],
        entering_IRKGMC,
        jnp.einsum("IRMC,IRKGCT->IRKGMT", ends_IRMC, decay_IRKGCT),
        kept_IRKGMZ + places.stays(branched).astype(jnp.float32)[:, :, None, None],
    )


@jax.custom_vjp
def unit_lower_inverse(x: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """The inverse of matrices with ones on the diagonal, from what lies below it; the rest is not read.

    Blocks are put together in pairs, log2 C times, by products of matrices. It is as stable as solving row
    by row, which sums of powers are not: where tokens repeat, powers grow beyond what float32 can cancel.

    Args:
        x: of which the part below the diagonal counts; C is a power of 2.
    """
    *batch, C, _ = x.shape
    inverse = jnp.ones((*batch, C, 1, 1), x.dtype)  # of the blocks on the diagonal
    size = 1
    while size < C:
        pairs = C // (2 * size)
        blocks = x.reshape(*batch, pairs, 2, size, pairs, 2, size)
        # Below the diagonal of each pair: rows of its second block, columns of its first.
        below = jnp.moveaxis(jnp.diagonal(blocks[..., :, 1, :, :, 0, :], axis1=-4, axis2=-2), -1, -3)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        lower = -_product(_product(second, below), first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([lower, second], axis=-1)], axis=-2)
        size *= 2
    return inverse[..., 0, :, :]


def _product(x: Array, y: Array) -> Array:
    """Of matrices, without rounding to bfloat16: an inverse from rounded factors is another one's."""
    return jnp.matmul(x, y, precision="highest")


def _inverse_forward(x: Array) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(x)
    return inverse, inverse


def _inverse_backward(inverse: Array, d_inverse: Array) -> tuple[Array]:
    turned = inverse.swapaxes(-1, -2)
    return (-jnp.tril(_product(_product(turned, d_inverse), turned), -1),)


unit_lower_inverse.defvjp(_inverse_forward, _inverse_backward)


class _PlacesOfChunks(NamedTuple):
    """Where the tokens of each chunk stand, and the last token before it (sequence -2: none)."""

    sequence_IRC: Array
    part_IRC: Array
    sequence_before_IR1: Array
    part_before_IR1: Array

    def sees(self) -> Bool[Array, "I R C T"]:
        """Whether each token sees each other one of its chunk, itself included."""
        sequence, part = self.sequence_IRC, self.part_IRC
        own_IRCT = part[..., None, :] == part[..., :, None]
        prompt_IR1T = part[..., None, :] == 0
        same_IRCT = (sequence[..., None, :] == sequence[..., :, None]) & (sequence[..., None] >= 0)
        return jnp.tril(same_IRCT & (own_IRCT | prompt_IR1T))

    def goes_on(self, branched: bool) -> Bool[Array, "I R M C"]:
        """Whether each token's past is in each memory with which its chunk begins."""
        same_IRC = (self.sequence_IRC == self.sequence_before_IR1) & (self.sequence_IRC >= 0)
        if not branched:
            return same_IRC[:, :, None]
        own_IRC = self.part_IRC == self.part_before_IR1
        return jnp.stack([same_IRC & own_IRC, same_IRC & ~own_IRC], axis=2)

    def ends(self, branched: bool) -> Bool[Array, "I R M C"]:
        """The token, if it is in the chunk, after which each memory is what the chunk ends with."""
        C = self.sequence_IRC.shape[-1]
        last_IRC = jnp.broadcast_to(jnp.arange(C) == C - 1, self.sequence_IRC.shape)
        if not branched:
            return last_IRC[:, :, None]
        prompt_IRC = self._of_last_prompt()
        after_IRC = jnp.flip(jnp.cumsum(jnp.flip(prompt_IRC, -1), axis=-1), -1)
        return jnp.stack([last_IRC, prompt_IRC & (after_IRC == 1)], axis=2)

    def stays(self, branched: bool) -> Bool[Array, "I R M Z"]:
        """Whether a memory passes the chunk unchanged: that of a prompt which ended before it."""
        if not branched:
            return jnp.zeros((*self.sequence_IRC.shape[:2], 1, 1), bool)
        same_IR1 = self.sequence_IRC[:, :, -1:] == self.sequence_before_IR1
        stays_IR1 = same_IR1 & ~self._of_last_prompt().any(axis=-1, keepdims=True)
        return stays_IR1[..., None] & jnp.array([[[[False, False], [False, True]]]])

    def _of_last_prompt(self) -> Bool[Array, "I R C"]:
        """Which tokens are of the prompt of the chunk's last token."""
        return (self.sequence_IRC == self.sequence_IRC[:, :, -1:]) & (self.part_IRC == 0)


def _places_of_chunks(places: Places) -> _PlacesOfChunks:
    """Columns that fill up the last chunk stand where the last token does: their keys are 0, so they do
    nothing."""

    def cut(x_RS: Array) -> tuple[Array, Array]:
        x_RS = jnp.pad(x_RS, ((0, 0), (0, -x_RS.shape[1] % CHUNK)), mode="edge")
        x_IRC = jnp.moveaxis(x_RS.reshape(len(x_RS), -1, CHUNK), 1, 0)
        return x_IRC, jnp.concatenate([jnp.full_like(x_IRC[:1, :, -1:], -2), x_IRC[:-1, :, -1:]])

    sequence_IRC, sequence_before_IR1 = cut(places.sequence_RS)
    part_IRC, part_before_IR1 = cut(places.part_RS)
    return _PlacesOfChunks(sequence_IRC, part_IRC, sequence_before_IR1, part_before_IR1)
