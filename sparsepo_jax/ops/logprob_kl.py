"""Log-probability of the tokens that are there, and KL(ref || policy) over the vocabulary, from final states and head matrices.

The only place where logits exist. They exist for a chunk of positions at a time, forward and backward: of the forward pass only two
logsumexps a token are kept, and the gradient in the logits is written down instead of derived. With cotangents a of log pi(y) and b of the KL,

    d/dlogits = a (onehot(y) - pi) + b (pi - p_ref)

so the backward pass makes the logits of a chunk again and needs nothing of size [tokens, vocabulary].
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.types import TokenStats


def logprob_kl(
    states_BPTD: Float[Array, "B P T D"],
    head_VD: Float[Array, "V D"],
    ref_states_BPTD: Float[Array, "B P T D"] | None,
    ref_head_VD: Float[Array, "V D"] | None,
    label_BPT: Int[Array, "B P T"],
    valid_BPT: Bool[Array, "B P T"],
    *,
    chunk_tokens: int,
    softcaps: tuple[float | None, float | None] = (None, None),
) -> TokenStats:
    """Per-token statistics of policy and reference, natural logs, float32 sums; zero, with zero gradient, outside `valid_BPT`.

    states: what the decoders give after the final norm at the positions that predict each token. Heads are taken in the states' type. The
    reference is a constant. Without a reference (None, None) ref_logp is the policy's own, detached, and the KL is zero.
    chunk_tokens: positions (over B and P) whose logits may exist at a time; rounded to whole columns of T, one at least.
    softcaps: of the policy's and the reference's logits, see soft_cap.
    """
    B, P, T, D = states_BPTD.shape
    chunk = max(1, min(T, chunk_tokens // (B * P)))
    pad = -T % chunk
    # Padding must not reach the sums: its states may be anything, NaN included.
    inert = lambda x: jnp.pad(jnp.where(valid_BPT[..., None], x, 0), ((0, 0), (0, 0), (0, pad), (0, 0))).reshape(B * P, T + pad, D)  # noqa: E731
    label_NT = jnp.pad(jnp.where(valid_BPT, label_BPT, 0), ((0, 0), (0, 0), (0, pad))).reshape(B * P, T + pad)
    head_VD = head_VD.astype(states_BPTD.dtype)
    if ref_states_BPTD is None or ref_head_VD is None:
        ref = None
    else:
        ref = jax.lax.stop_gradient((inert(ref_states_BPTD), ref_head_VD.astype(ref_states_BPTD.dtype)))
    out = _chunked(chunk, softcaps, inert(states_BPTD), head_VD, ref, label_NT)
    logp_BPT, ref_logp_BPT, kl_BPT = (jnp.where(valid_BPT, x.reshape(B, P, T + pad)[:, :, :T], 0.0) for x in out)
    return TokenStats(logp_BPT, jax.lax.stop_gradient(ref_logp_BPT), kl_BPT, valid_BPT)


def soft_cap(logits: Array, softcap: float | None) -> Array:
    """softcap * tanh(logits / softcap), or the logits as they are (None). Gemma 2, 2408.00118, section 2."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _logits(states_NCD: Array, head_VD: Array, softcap: float | None) -> Array:
    return soft_cap(jnp.einsum("NCD,VD->NCV", states_NCD, head_VD, preferred_element_type=jnp.float32), softcap)


def _cut(x_NT: Array, chunk: int) -> Array:
    """[N, T, ...] -> [T / chunk, N, chunk, ...], to scan over."""
    N, T = x_NT.shape[:2]
    return jnp.moveaxis(x_NT.reshape(N, T // chunk, chunk, *x_NT.shape[2:]), 1, 0)


def _join(x: Array) -> Array:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(chunk, softcaps, states_NTD, head_VD, ref, label_NT):
    return _forward(chunk, softcaps, states_NTD, head_VD, ref, label_NT)[0]


def _forward(chunk, softcaps, states_NTD, head_VD, ref, label_NT):
    def one(_, inputs):
        states_NCD, ref_states_NCD, label_NC = inputs
        logits_NCV = _logits(states_NCD, head_VD, softcaps[0])
        lse_NC = jax.nn.logsumexp(logits_NCV, axis=-1)
        pick = lambda x_NCV: jnp.take_along_axis(x_NCV, label_NC[..., None], axis=-1)[..., 0]  # noqa: E731
        logp_NC = pick(logits_NCV) - lse_NC
        if ref is None:
            return None, (logp_NC, logp_NC, jnp.zeros_like(logp_NC), lse_NC, lse_NC)
        ref_logits_NCV = _logits(ref_states_NCD, ref[1], softcaps[1])
        ref_lse_NC = jax.nn.logsumexp(ref_logits_NCV, axis=-1)
        difference_NCV = (ref_logits_NCV - ref_lse_NC[..., None]) - (logits_NCV - lse_NC[..., None])
        kl_NC = jnp.sum(jnp.exp(ref_logits_NCV - ref_lse_NC[..., None]) * difference_NCV, axis=-1)
        # Rounding may leave -1e-8 where the two agree; KL is never negative. The gradient is that of the sum.
        return None, (logp_NC, pick(ref_logits_NCV) - ref_lse_NC, jnp.maximum(kl_NC, 0.0), lse_NC, ref_lse_NC)

    ref_chunks = None if ref is None else _cut(ref[0], chunk)
    _, out = jax.lax.scan(one, None, (_cut(states_NTD, chunk), ref_chunks, _cut(label_NT, chunk)))
    logp_NT, ref_logp_NT, kl_NT, lse_NT, ref_lse_NT = map(_join, out)
    return (logp_NT, ref_logp_NT, kl_NT), (states_NTD, head_VD, ref, label_NT, lse_NT, ref_lse_NT)


def _backward(chunk, softcaps, saved, cotangents):
    states_NTD, head_VD, ref, label_NT, lse_NT, ref_lse_NT = saved
    a_NT, _, b_NT = cotangents  # the reference's log-prob is a constant

    def one(d_head_VD, inputs):
        states_NCD, ref_states_NCD, label_NC, lse_NC, ref_lse_NC, a_NC, b_NC = inputs
        logits_NCV = _logits(states_NCD, head_VD, softcaps[0])
        policy_NCV = jnp.exp(logits_NCV - lse_NC[..., None])
        onehot_NCV = label_NC[..., None] == jnp.arange(head_VD.shape[0])
        d_logits_NCV = (b_NC - a_NC)[..., None] * policy_NCV + jnp.where(onehot_NCV, a_NC[..., None], 0.0)
        if ref is not None:
            d_logits_NCV -= b_NC[..., None] * jnp.exp(_logits(ref_states_NCD, ref[1], softcaps[1]) - ref_lse_NC[..., None])
        if softcaps[0] is not None:
            d_logits_NCV *= 1 - (logits_NCV / softcaps[0]) ** 2
        d_logits_NCV = d_logits_NCV.astype(states_NCD.dtype)
        d_head_VD += jnp.einsum("NCV,NCD->VD", d_logits_NCV, states_NCD, preferred_element_type=jnp.float32)
        return d_head_VD, jnp.einsum("NCV,VD->NCD", d_logits_NCV, head_VD, preferred_element_type=jnp.float32).astype(states_NCD.dtype)

    ref_chunks = None if ref is None else _cut(ref[0], chunk)
    inputs = (_cut(states_NTD, chunk), ref_chunks, *(_cut(x, chunk) for x in (label_NT, lse_NT, ref_lse_NT, a_NT, b_NT)))
    d_head_VD, d_states = jax.lax.scan(one, jnp.zeros(head_VD.shape, jnp.float32), inputs)
    return _join(d_states), d_head_VD.astype(head_VD.dtype), jax.tree.map(jnp.zeros_like, ref), None


_chunked.defvjp(_forward, _backward)
