"""MaPO: masks read off the reference model's activations (SparsePO paper, 2410.05102, section 3.1). Dense, detached, the same for reward and KL.

Each activation is averaged over its features; the mapping turns these means into weights over a response's tokens; a group is the mean over
its activations and layers, the mask the mean over its groups. Names of activations: models/decoder.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

GROUPS: dict[str, tuple[str, ...]] = {
    "mlp": ("mlp_act",),
    "attn": ("q", "k", "v", "q_rotated", "k_rotated", "attn_heads"),
    "resid": (
        "embed",
        "attn_norm",
        "attn_out",
        "attn_resid",
        "mlp_norm",
        "mlp_out",
        "block_out",
        "final_norm",
    ),
    "logits": ("logits",),
}
# Where the official code's hooks fire. In GPT-2 the one it calls the attention's delta is the residual stream after attention, and the MLP's
# activation never fires, so its group is absent.
_OFFICIAL: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        "attn": ("q", "k", "v", "attn_heads"),
        "resid": ("embed", "attn_norm", "attn_resid", "mlp_norm", "mlp_out", "block_out", "final_norm"),
        "logits": ("logits",),
    },
    # Here what it calls the heads' output is taken after the output projection.
    "gpt_bigcode": {
        "attn": ("q", "k", "v", "attn_out"),
        "resid": ("embed", "attn_norm", "attn_resid", "mlp_norm", "mlp_out", "block_out", "final_norm"),
        "logits": ("logits",),
    },
    "gpt_neox": GROUPS,
    # The heads' output again after the projection; and the final norm's hook sits inside the layer loop, before that norm.
    "gptj": {
        "mlp": ("mlp_act",),
        "attn": ("q", "k", "v", "q_rotated", "k_rotated", "attn_out"),
        "resid": ("embed", "attn_norm", "attn_out", "mlp_out", "block_out", "last_block_out"),
        "logits": ("logits",),
    },
}


def choose_points(family: str, groups: tuple[str, ...], official: bool) -> dict[str, tuple[str, ...]]:
    """The activations of each chosen group. Raises ValueError if none of the groups exists (official hooks of that family)."""
    if official and family not in _OFFICIAL:
        raise ValueError(
            f"the official code's hook points of {family} are not reproduced, only those of {', '.join(_OFFICIAL)}; "
            "set objective.mask.official=false"
        )
    table = _OFFICIAL[family] if official else GROUPS
    chosen = {group: table[group] for group in groups if group in table}
    if not chosen:
        raise ValueError(
            f"the official hooks of {family} never fire for {', '.join(groups)}; it has {', '.join(table)}"
        )
    return chosen


def activation_mask(
    means: dict[str, Float[Array, "*L B P T"]],
    valid_BPT: Bool[Array, "B P T"],
    points: dict[str, tuple[str, ...]],
    mapping: str,
) -> Float[Array, "B P T"]:
    """The mask from feature means at the positions that predict each response token; block activations carry a leading L.

    Activations that this architecture does not have (rotated queries without rotary positions, ...) are not among `means` and do not count.
    """
    if "block_out" in means:
        means = means | {"last_block_out": means["block_out"][-1]}
    groups_BPT = []
    for names in points.values():
        means_NBPT = [means[name].reshape(-1, *valid_BPT.shape) for name in names if name in means]
        if means_NBPT:
            groups_BPT.append(map_means(jnp.concatenate(means_NBPT), valid_BPT, mapping).mean(axis=0))
    return jax.lax.stop_gradient(jnp.where(valid_BPT, sum(groups_BPT) / len(groups_BPT), 0.0))


def map_means(
    mean_NBPT: Float[Array, "*N B P T"], valid_BPT: Bool[Array, "B P T"], mapping: str
) -> Float[Array, "*N B P T"]:
    """Weights from feature means a, over the tokens of each response, zero elsewhere.

    zn_rescale: z-score (unbiased deviation), then min-max to [0, 1]. layernorm: (a - mean) / sqrt(variance + 1e-5). sigmoid, none: of a itself.
    A response without spread (a single token, equal values) has no z-score: its weights are 1, where the official code gives NaN.
    """
    a = jnp.where(valid_BPT, mean_NBPT.astype(jnp.float32), 0.0)
    count = jnp.maximum(valid_BPT.sum(axis=-1, keepdims=True), 1)
    if mapping == "none":
        return a
    if mapping == "sigmoid":
        return jnp.where(valid_BPT, jax.nn.sigmoid(a), 0.0)
    centred = jnp.where(valid_BPT, a - a.sum(axis=-1, keepdims=True) / count, 0.0)
    squares = (centred**2).sum(axis=-1, keepdims=True)
    if mapping == "layernorm":
        return centred / jnp.sqrt(squares / count + 1e-5)
    if mapping == "zn_rescale":
        return rescale(centred / (jnp.sqrt(squares / jnp.maximum(count - 1, 1)) + 1e-12), valid_BPT)
    raise ValueError(f"unknown mapping {mapping!r}")


def rescale(x: Float[Array, "... T"], valid: Bool[Array, "... T"]) -> Float[Array, "... T"]:
    """Min-max to [0, 1] over each response's tokens; 1 where all are equal; zero, with zero gradient, outside."""
    low = jnp.where(valid, x, jnp.inf).min(axis=-1, keepdims=True)
    high = jnp.where(valid, x, -jnp.inf).max(axis=-1, keepdims=True)
    spread = jnp.where(high > low, high - low, 1.0)
    return jnp.where(
        valid,
        jnp.where(high > low, (jnp.where(valid, x, 0.0) - jnp.where(valid, low, 0.0)) / spread, 1.0),
        0.0,
    )
