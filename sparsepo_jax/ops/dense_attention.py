"""softmax(scale q k^T) v over given keys, as matrix products, with a written gradient that keeps no scores.

Nothing sees a later column, so queries are cut into chunks that leave out the keys after them.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

CHUNK_QUERIES = 128  # at least; measured on CPU, where smaller products lose more than the left-out keys save


def dense_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    attend_BST: Bool[Array, "B S T"],
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B S N H"]:
    """See ops/attention. No query may see a column after its own; the last query stands at the last column."""
    (B, S, N, H), (T, K) = q_BSNH.shape, k_BTKH.shape[1:3]
    # Heads first, so that the products are plain matrices; a key head's queries lie side by side.
    q_BKGSH = jnp.moveaxis((q_BSNH * jnp.asarray(scale, q_BSNH.dtype)).reshape(B, S, K, N // K, H), 1, 3)
    k_BKTH, v_BKTH = jnp.moveaxis(k_BTKH, 1, 2), jnp.moveaxis(v_BTKH, 1, 2)
    chunks = max(1, S // CHUNK_QUERIES)
    ends = [S * (number + 1) // chunks for number in range(chunks)]
    out, begin = [], 0
    for end in ends:
        seen = T - S + end
        out.append(
            _dense(
                softcap,
                q_BKGSH[:, :, :, begin:end],
                k_BKTH[:, :, :seen],
                v_BKTH[:, :, :seen],
                attend_BST[:, begin:end, :seen],
            )
        )
        begin = end
    out_BKGSH = out[0] if len(out) == 1 else jnp.concatenate(out, axis=3)
    return jnp.moveaxis(out_BKGSH, 3, 1).reshape(B, S, N, H)


def masked_scores(
    softcap: float | None, q_BKGSH: Array, k_BKTH: Array, attend_BST: Array
) -> tuple[Array, Array | None]:
    """(scores [B, K, G, S, T] in float32, least where a key is not seen; their derivative in the products, None for 1)."""
    scores = jnp.einsum("BKGSH,BKTH->BKGST", q_BKGSH, k_BKTH, preferred_element_type=jnp.float32)
    slope = None
    if softcap is not None:
        tanh = jnp.tanh(scores / softcap)
        scores, slope = softcap * tanh, 1 - tanh**2
    return jnp.where(attend_BST[:, None, None], scores, jnp.finfo(jnp.float32).min), slope


def gradients(
    softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST, lse_BKGS, d_out, mean_BKGS
) -> tuple[Array, Array, Array]:
    """Of q, k and v, float32, from the scores made again with their logsumexp (Dao et al. 2022, 2205.14135, section 3).
    mean_BKGS: sum over H of the output times its cotangent d_out."""
    scores, slope = masked_scores(softcap, q_BKGSH, k_BKTH, attend_BST)
    weights = jnp.where(attend_BST[:, None, None], jnp.exp(scores - lse_BKGS[..., None]), 0.0)
    d_v = jnp.einsum(
        "BKGST,BKGSH->BKTH", weights.astype(v_BKTH.dtype), d_out, preferred_element_type=jnp.float32
    )
    d_weights = jnp.einsum("BKGSH,BKTH->BKGST", d_out, v_BKTH, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - mean_BKGS[..., None])
    d_scores = (d_scores if slope is None else d_scores * slope).astype(q_BKGSH.dtype)
    d_q = jnp.einsum("BKGST,BKTH->BKGSH", d_scores, k_BKTH, preferred_element_type=jnp.float32)
    d_k = jnp.einsum("BKGST,BKGSH->BKTH", d_scores, q_BKGSH, preferred_element_type=jnp.float32)
    return d_q, d_k, d_v


def output_mean(out_BKGSH: Array, d_out: Array) -> Float[Array, "B K G S"]:
    return (d_out.astype(jnp.float32) * out_BKGSH.astype(jnp.float32)).sum(axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST):
    return _forward(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST)[0]


def _forward(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST):
    scores, _ = masked_scores(softcap, q_BKGSH, k_BKTH, attend_BST)
    largest_BKGS = scores.max(axis=-1)
    # Normalised after the product with the values: [S, H] divisions instead of [S, T].
    weights = jnp.exp(scores - largest_BKGS[..., None])
    total_BKGS = weights.sum(axis=-1)
    out = jnp.einsum(
        "BKGST,BKTH->BKGSH", weights.astype(v_BKTH.dtype), v_BKTH, preferred_element_type=jnp.float32
    )
    out = (out / total_BKGS[..., None]).astype(v_BKTH.dtype)
    return out, (q_BKGSH, k_BKTH, v_BKTH, attend_BST, out, largest_BKGS + jnp.log(total_BKGS))


def _backward(softcap, saved, d_out):
    *inputs, out, lse_BKGS = saved
    found = gradients(softcap, *inputs, lse_BKGS, d_out, output_mean(out, d_out))
    return *(x.astype(y.dtype) for x, y in zip(found, inputs)), None


_dense.defvjp(_forward, _backward)
