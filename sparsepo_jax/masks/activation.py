"""MaPO: masks read off the reference model's activations (SparsePO paper, arXiv 2410.05102, section 3.1).

They are dense, have no gradient, and are the same for reward and KL. Each activation is averaged over its
features. A mapping turns these means into weights over a response's tokens. The weights are averaged over the
activations and layers of a group, and then over the groups. The names of the activations are those of
models/decoder.py.
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
# Where the official code's hooks fire. In GPT-2, what it calls the attention's delta is the residual stream
# after attention, and the MLP's activation never fires, so its group is absent.
_OFFICIAL: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        "attn": ("q", "k", "v", "attn_heads"),
        "resid": ("embed", "attn_norm", "attn_resid", "mlp_norm", "mlp_out", "block_out", "final_norm"),
        "logits": ("logits",),
    },
    # What it calls the heads' output is taken after the output projection here.
    "gpt_bigcode": {
        "attn": ("q", "k", "v", "attn_out"),
        "resid": ("embed", "attn_norm", "attn_resid", "mlp_norm", "mlp_out", "block_out", "final_norm"),
        "logits": ("logits",),
    },
    "gpt_neox": GROUPS,
    # The heads' output is taken after the projection again, and the hook of the final norm sits inside the
    # loop over layers, before that norm.
    "gptj": {
        "mlp": ("mlp_act",),
        "attn": ("q", "k", "v", "q_rotated", "k_rotated", "attn_out"),
        "resid": ("embed", "attn_norm", "attn_out", "mlp_out", "block_out", "last_block_out"),
        "logits": ("logits",),
    },
}


def choose_points(family: str, groups: tuple[str, ...], official: bool) -> dict[str, tuple[str, ...]]:
    """The activations of each chosen group, by group.

    Args:
        family: the model's family, as in models/spec.
        groups: names of GROUPS. Those that do not exist in the family are left out.
        official: whether to read where the official code's hooks fire, rather than where their names say.

    Raises:
        ValueError: none of the groups exists, or the family's official hooks are not known.
    """
    if official and family not in _OFFICIAL:
        raise ValueError(
            f"the official code's hook points of {family} are not reproduced, only those of "
            f"{', '.join(_OFFICIAL)}; "
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
    means: dict[str, Float[Array, "... B P T"]],
    valid_BPT: Bool[Array, "B P T"],
    points: dict[str, tuple[str, ...]],
    mapping: str,
) -> Float[Array, "B P T"]:
    """The mask from the feature means of a pair's activations.

    Args:
        means: by name of activation, its mean over features at the position that predicts each response
            token. Activations of blocks carry a leading L. Activations that the architecture does not have
            (rotated queries without rotary positions, say) are absent and do not count.
        valid_BPT: True on response tokens.
        points: the activations of each group; see `choose_points`.
        mapping: see `map_means`.
    """
    if "block_out" in means:
        means = means | {"last_block_out": means["block_out"][-1]}
    groups_BPT = []
    for names in points.values():
        # Layers and activations count alike, so they share one axis.
        means_LBPT = [means[name].reshape(-1, *valid_BPT.shape) for name in names if name in means]
        if means_LBPT:
            groups_BPT.append(map_means(jnp.concatenate(means_LBPT), valid_BPT, mapping).mean(axis=0))
    return jax.lax.stop_gradient(jnp.where(valid_BPT, sum(groups_BPT) / len(groups_BPT), 0.0))


def map_means(
    mean_LBPT: Float[Array, "*L B P T"], valid_BPT: Bool[Array, "B P T"], mapping: str
) -> Float[Array, "*L B P T"]:
    """Weights from feature means a over the tokens of each response, zero elsewhere.

    A response without spread (a single token, or equal values) has no z-score. Its weights are 1, where the
    official code gives NaN.

    Args:
        mean_LBPT: a, by layer or activation.
        valid_BPT: True on response tokens.
        mapping: `zn_rescale`, the z-score (unbiased deviation) and then min-max to [0, 1]; `layernorm`,
            (a - mean) / sqrt(variance + 1e-5); `sigmoid` of a; or `none`, a itself.

    Raises:
        ValueError: another mapping.
    """
    valid = jnp.broadcast_to(valid_BPT, mean_LBPT.shape)
    a = jnp.where(valid, mean_LBPT.astype(jnp.float32), 0.0)
    count = jnp.maximum(valid.sum(axis=-1, keepdims=True), 1)
    if mapping == "none":
        return a
    if mapping == "sigmoid":
        return jnp.where(valid, jax.nn.sigmoid(a), 0.0)
    centred = jnp.where(valid, a - a.sum(axis=-1, keepdims=True) / count, 0.0)
    squares = (centred**2).sum(axis=-1, keepdims=True)
    if mapping == "layernorm":
        return centred / jnp.sqrt(squares / count + 1e-5)
    if mapping == "zn_rescale":
        # The root's derivative at 0 is infinite: equal numbers, or a single one, must not meet it.
        deviation = jnp.sqrt(jnp.where(squares > 0, squares, 1.0) / jnp.maximum(count - 1, 1))
        return rescale(centred / (deviation + 1e-12), valid_BPT)
    raise ValueError(f"unknown mapping {mapping!r}")


def rescale(x_LBPT: Float[Array, "*L B P T"], valid_BPT: Bool[Array, "B P T"]) -> Float[Array, "*L B P T"]:
    """Min-max to [0, 1] over each response's tokens.

    It is 1 where all are equal, and zero, with zero gradient, outside the response.

    Args:
        x_LBPT: any real numbers, by layer.
        valid_BPT: True on response tokens.
    """
    valid = jnp.broadcast_to(valid_BPT, x_LBPT.shape)
    low = jnp.where(valid, x_LBPT, jnp.inf).min(axis=-1, keepdims=True)
    high = jnp.where(valid, x_LBPT, -jnp.inf).max(axis=-1, keepdims=True)
    spread = jnp.where(high > low, high - low, 1.0)
    # Padding is cleared before the difference: low is infinite where a response has no token.
    above = jnp.where(valid, x_LBPT, 0.0) - jnp.where(valid, low, 0.0)
    return jnp.where(valid, jnp.where(high > low, above / spread, 1.0), 0.0)
