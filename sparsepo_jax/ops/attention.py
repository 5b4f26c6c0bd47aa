"""Attention in which the structure of a row is not only masked but left out.

`split` (prompt length S, number of responses P) says that a row is `prompt | response 1 | ... | response P`. Then a response sees the prompt
and itself, and each part is attention of its own: the prompt over itself, and each response over `prompt | itself`. Besides, nothing sees a
later column of its part, so queries are cut into chunks that leave out the keys after them.

    prompt 2, two responses of 3:  dense 8 x 8 = 64 scores, split 2 x 2 + 2 (3 x 5) = 34
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

CHUNK_QUERIES = 128  # at least; measured on CPU, where smaller products lose more than the left-out keys save


def attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    attend_BST: Bool[Array, "B S T"],
    *,
    scale: float,
    softcap: float | None = None,
    split: tuple[int, int] | None = None,
) -> Float[Array, "B S N H"]:
    """softmax(scale q k^T) v over the keys that `attend_BST` allows, sums in float32. A query that may see nothing gives something finite.

    No query may see a column after its own; the last query stands at the last column. softcap: scores s become softcap * tanh(s / softcap)
    (Gemma 2, 2408.00118). split: see above; what lies between responses, or after a column, must be False in attend_BST, and is not looked at.
    """
    if split is None:
        return _causal(q_BSNH, k_BTKH, v_BTKH, attend_BST, scale, softcap)
    (S, P), (B, W) = split, q_BSNH.shape[:2]
    T = (W - S) // P
    prompt_BSNH = _causal(q_BSNH[:, :S], k_BTKH[:, :S], v_BTKH[:, :S], attend_BST[:, :S, :S], scale, softcap)
    own = lambda x: x[:, S:].reshape(B * P, T, *x.shape[2:])  # noqa: E731
    with_prompt = lambda x: jnp.concatenate([jnp.repeat(x[:, :S], P, axis=0), own(x)], axis=1)  # noqa: E731
    sees_prompt = attend_BST[:, S:, :S].reshape(B * P, T, S)
    sees_own = jnp.stack([attend_BST[:, S + p * T : S + (p + 1) * T, S + p * T : S + (p + 1) * T] for p in range(P)], axis=1)
    sees = jnp.concatenate([sees_prompt, sees_own.reshape(B * P, T, T)], axis=2)
    responses = _causal(own(q_BSNH), with_prompt(k_BTKH), with_prompt(v_BTKH), sees, scale, softcap)
    return jnp.concatenate([prompt_BSNH, responses.reshape(B, P * T, *q_BSNH.shape[2:])], axis=1)


def _causal(q_BSNH: Array, k_BTKH: Array, v_BTKH: Array, attend_BST: Array, scale: float, softcap: float | None) -> Array:
    (B, S, N, H), (T, K) = q_BSNH.shape, k_BTKH.shape[1:3]
    # Heads first, so that the products are plain matrices; a key head's queries lie side by side.
    q_BKGSH = jnp.moveaxis((q_BSNH * jnp.asarray(scale, q_BSNH.dtype)).reshape(B, S, K, N // K, H), 1, 3)
    k_BKTH, v_BKTH = jnp.moveaxis(k_BTKH, 1, 2), jnp.moveaxis(v_BTKH, 1, 2)
    chunks = max(1, S // CHUNK_QUERIES)
    ends = [S * (number + 1) // chunks for number in range(chunks)]
    out, begin = [], 0
    for end in ends:
        seen = T - S + end
        out.append(_dense(softcap, q_BKGSH[:, :, :, begin:end], k_BKTH[:, :, :seen], v_BKTH[:, :, :seen], attend_BST[:, begin:end, :seen]))
        begin = end
    out_BKGSH = out[0] if len(out) == 1 else jnp.concatenate(out, axis=3)
    return jnp.moveaxis(out_BKGSH, 3, 1).reshape(B, S, N, H)


def _scores(softcap, q_BKGSH, k_BKTH, attend_BST):
    """(masked scores, their derivative in the products or None for 1)."""
    scores = jnp.einsum("BKGSH,BKTH->BKGST", q_BKGSH, k_BKTH, preferred_element_type=jnp.float32)
    slope = None
    if softcap is not None:
        tanh = jnp.tanh(scores / softcap)
        scores, slope = softcap * tanh, 1 - tanh**2
    return jnp.where(attend_BST[:, None, None], scores, jnp.finfo(jnp.float32).min), slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST):
    return _forward(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST)[0]


def _forward(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST):
    scores, _ = _scores(softcap, q_BKGSH, k_BKTH, attend_BST)
    largest_BKGS = scores.max(axis=-1)
    # Normalised after the product with the values: [S, H] divisions instead of [S, T].
    weights = jnp.exp(scores - largest_BKGS[..., None])
    total_BKGS = weights.sum(axis=-1)
    out = jnp.einsum("BKGST,BKTH->BKGSH", weights.astype(v_BKTH.dtype), v_BKTH, preferred_element_type=jnp.float32)
    out = (out / total_BKGS[..., None]).astype(v_BKTH.dtype)
    return out, (q_BKGSH, k_BKTH, v_BKTH, attend_BST, out, largest_BKGS + jnp.log(total_BKGS))


def _backward(softcap, saved, d_out):
    """Makes the weights again from their logsumexp (Dao et al. 2022, 2205.14135, section 3): nothing of size [S, T] is kept for it."""
    q_BKGSH, k_BKTH, v_BKTH, attend_BST, out, lse_BKGS = saved
    scores, slope = _scores(softcap, q_BKGSH, k_BKTH, attend_BST)
    weights = jnp.where(attend_BST[:, None, None], jnp.exp(scores - lse_BKGS[..., None]), 0.0)
    low = weights.astype(v_BKTH.dtype)
    d_v = jnp.einsum("BKGST,BKGSH->BKTH", low, d_out, preferred_element_type=jnp.float32)
    d_weights = jnp.einsum("BKGSH,BKTH->BKGST", d_out, v_BKTH, preferred_element_type=jnp.float32)
    mean_BKGS = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    d_scores = weights * (d_weights - mean_BKGS[..., None])
    d_scores = (d_scores if slope is None else d_scores * slope).astype(q_BKGSH.dtype)
    d_q = jnp.einsum("BKGST,BKTH->BKGSH", d_scores, k_BKTH, preferred_element_type=jnp.float32)
    d_k = jnp.einsum("BKGST,BKGSH->BKTH", d_scores, q_BKGSH, preferred_element_type=jnp.float32)
    return d_q.astype(q_BKGSH.dtype), d_k.astype(k_BKTH.dtype), d_v.astype(v_BKTH.dtype), None


_dense.defvjp(_forward, _backward)
