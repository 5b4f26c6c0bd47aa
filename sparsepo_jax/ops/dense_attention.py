"""softmax(scale q k^T) v over given keys, as matrix products, with a written gradient that keeps no scores.

No query sees a later column, so the queries are cut into chunks, and each chunk leaves out the keys after it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparsepo_jax.ops.remat import attended

# At least. Measured on CPU, where smaller products lose more than the keys they leave out save.
CHUNK_QUERIES = 128


def dense_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    attend_BST: Bool[Array, "B S T"],
    *,
    scale: float,
    softcap: float | None,
    sink_N: Float[Array, " N"] | None = None,
) -> Float[Array, "B S N H"]:
    """See ops/attention.

    Args:
        q_BSNH: queries; the last one stands at the last column of the keys.
        k_BTKH: keys.
        v_BTKH: values.
        attend_BST: which keys each query sees; none after its own column.
        scale: of the scores.
        softcap: of the scores, or None.
        sink_N: a score without a value for each head, or None.
    """
    B, S, N, H = q_BSNH.shape
    T, K = k_BTKH.shape[1:3]
    # Heads come first, so that the products are those of plain matrices; the queries of a key head lie side
    # by side.
    q_BKGSH = jnp.moveaxis((q_BSNH * jnp.asarray(scale, q_BSNH.dtype)).reshape(B, S, K, N // K, H), 1, 3)
    k_BKTH, v_BKTH = jnp.moveaxis(k_BTKH, 1, 2), jnp.moveaxis(v_BTKH, 1, 2)
    sink_1KG1 = None if sink_N is None else sink_N.reshape(1, K, N // K, 1)
    chunks = max(1, S // CHUNK_QUERIES)
    out = []
    begin = 0
    for number in range(chunks):
        end = S * (number + 1) // chunks
        keys = T - S + end
        out.append(
            _dense(
                softcap,
                q_BKGSH[:, :, :, begin:end],
                k_BKTH[:, :, :keys],
                v_BKTH[:, :, :keys],
                attend_BST[:, begin:end, :keys],
                sink_1KG1,
            )
        )
        begin = end
    out_BKGSH = out[0] if len(out) == 1 else jnp.concatenate(out, axis=3)
    return jnp.moveaxis(out_BKGSH, 3, 1).reshape(B, S, N, H)


def masked_scores(
    softcap: float | None,
    q_BKGSH: Float[Array, "B K G S H"],
    k_BKTH: Float[Array, "B K T H"],
    attend_BST: Bool[Array, "B S T"],
) -> tuple[Float[Array, "B K G S T"], Float[Array, "B K G S T"] | None]:
    """Scores in float32, and their derivative in the products.

    Args:
        softcap: of the scores, or None.
        q_BKGSH: queries, scaled.
        k_BKTH: keys.
        attend_BST: which keys each query sees. The score of any other is the least number.

    Returns:
        The scores, and d score / d product, None where it is 1.
    """
    scores = jnp.einsum("BKGSH,BKTH->BKGST", q_BKGSH, k_BKTH, preferred_element_type=jnp.float32)
    slope = None
    if softcap is not None:
        tanh = jnp.tanh(scores / softcap)
        scores, slope = softcap * tanh, 1 - tanh**2
    return jnp.where(attend_BST[:, None, None], scores, jnp.finfo(jnp.float32).min), slope


def gradients(
    softcap: float | None,
    q_BKGSH: Float[Array, "B K G S H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    attend_BST: Bool[Array, "B S T"],
    lse_BKGS: Float[Array, "B K G S"],
    d_out_BKGSH: Float[Array, "B K G S H"],
    mean_BKGS: Float[Array, "B K G S"],
) -> tuple[Float[Array, "B K G S H"], Float[Array, "B K T H"], Float[Array, "B K T H"]]:
    """The gradients of q, k and v in float32, from scores that are computed again.

    Args:
        softcap: of the scores, or None.
        q_BKGSH: queries, scaled.
        k_BKTH: keys.
        v_BKTH: values.
        attend_BST: which keys each query sees.
        lse_BKGS: logsumexp of each query's scores.
        d_out_BKGSH: cotangent of the output.
        mean_BKGS: output_mean of the output and its cotangent.

    References:
        Dao et al., FlashAttention, arXiv 2205.14135, 2022, section 3.
    """
    scores, slope = masked_scores(softcap, q_BKGSH, k_BKTH, attend_BST)
    weights = jnp.where(attend_BST[:, None, None], jnp.exp(scores - lse_BKGS[..., None]), 0.0)
    d_v = jnp.einsum(
        "BKGST,BKGSH->BKTH", weights.astype(v_BKTH.dtype), d_out_BKGSH, preferred_element_type=jnp.float32
    )
    d_weights = jnp.einsum("BKGSH,BKTH->BKGST", d_out_BKGSH, v_BKTH, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - mean_BKGS[..., None])
    d_scores = (d_scores if slope is None else d_scores * slope).astype(q_BKGSH.dtype)
    d_q = jnp.einsum("BKGST,BKTH->BKGSH", d_scores, k_BKTH, preferred_element_type=jnp.float32)
    d_k = jnp.einsum("BKGST,BKGSH->BKTH", d_scores, q_BKGSH, preferred_element_type=jnp.float32)
    return d_q, d_k, d_v


def output_mean(
    out_BKGSH: Float[Array, "B K G S H"], d_out_BKGSH: Float[Array, "B K G S H"]
) -> Float[Array, "B K G S"]:
    """The sum over H of the output times its cotangent: the weights' mean cotangent, under the weights.

    Args:
        out_BKGSH: output.
        d_out_BKGSH: its cotangent.
    """
    return (d_out_BKGSH.astype(jnp.float32) * out_BKGSH.astype(jnp.float32)).sum(axis=-1)


def sink_gradient(
    sink_1KG1: Float[Array, "1 K G 1"], lse_BKGS: Float[Array, "B K G S"], mean_BKGS: Float[Array, "B K G S"]
) -> Float[Array, "1 K G 1"]:
    """The gradient of the sinks. It is that of a score whose value is zero.

    Args:
        sink_1KG1: the score without a value of each head.
        lse_BKGS: logsumexp of each query's scores, the sink among them.
        mean_BKGS: output_mean of the output and its cotangent.
    """
    return -(jnp.exp(sink_1KG1 - lse_BKGS) * mean_BKGS).sum(axis=(0, 3), keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(
    softcap: float | None,
    q_BKGSH: Array,
    k_BKTH: Array,
    v_BKTH: Array,
    attend_BST: Array,
    sink_1KG1: Array | None,
) -> Array:
    return _forward(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST, sink_1KG1)[0]


def _forward(
    softcap: float | None,
    q_BKGSH: Array,
    k_BKTH: Array,
    v_BKTH: Array,
    attend_BST: Array,
    sink_1KG1: Array | None,
) -> tuple[Array, tuple]:
    scores, _ = masked_scores(softcap, q_BKGSH, k_BKTH, attend_BST)
    largest_BKGS = scores.max(axis=-1)
    if sink_1KG1 is not None:
        largest_BKGS = jnp.maximum(largest_BKGS, sink_1KG1)
    # Normalised after the product with the values: that takes [S, H] divisions instead of [S, T].
    weights = jnp.exp(scores - largest_BKGS[..., None])
    total_BKGS = weights.sum(axis=-1)
    if sink_1KG1 is not None:
        total_BKGS += jnp.exp(sink_1KG1 - largest_BKGS)
    out = jnp.einsum(
        "BKGST,BKTH->BKGSH", weights.astype(v_BKTH.dtype), v_BKTH, preferred_element_type=jnp.float32
    )
    out_BKGSH = (out / total_BKGS[..., None]).astype(v_BKTH.dtype)
    out_BKGSH, lse_BKGS = attended(out_BKGSH), attended(largest_BKGS + jnp.log(total_BKGS))
    return out_BKGSH, (q_BKGSH, k_BKTH, v_BKTH, attend_BST, sink_1KG1, out_BKGSH, lse_BKGS)


@jax.named_scope("attend_gradient")
def _backward(softcap: float | None, saved: tuple, d_out: Array) -> tuple[Array | None, ...]:
    q_BKGSH, k_BKTH, v_BKTH, attend_BST, sink_1KG1, out_BKGSH, lse_BKGS = saved
    mean_BKGS = output_mean(out_BKGSH, d_out)
    d_q, d_k, d_v = gradients(softcap, q_BKGSH, k_BKTH, v_BKTH, attend_BST, lse_BKGS, d_out, mean_BKGS)
    d_sink = None if sink_1KG1 is None else sink_gradient(sink_1KG1, lse_BKGS, mean_BKGS)
    return d_q.astype(q_BKGSH.dtype), d_k.astype(k_BKTH.dtype), d_v.astype(v_BKTH.dtype), None, d_sink


_dense.defvjp(_forward, _backward)
