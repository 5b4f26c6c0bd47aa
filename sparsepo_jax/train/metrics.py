"""What is reported of a pair with any objective: unmasked margin, accuracy, KL, log-probs, mask figures."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsepo_jax.core.labels import sides
from sparsepo_jax.core.tokens import log_ratio, response_sum
from sparsepo_jax.core.types import Scalar, TokenMasks, TokenStats


def pair_metrics(stats: TokenStats, masks: TokenMasks, *, beta: Scalar) -> dict[str, Float[Array, "B"]]:
    """Metrics of each pair that do not depend on the objective.

    Look at the unmasked ones beside those that the objective reports: a growing mask alone raises the
    masked margin. Sums over a response are over its tokens; the official code's SeqKL counts prompt and
    padding too.

    Args:
        stats: log-probs and KL.
        masks: of the objective.
        beta: 1/nat, the objective's; 1 if it has none.

    Returns:
        Metrics [B] by name, finite for filler pairs too, to be averaged over pairs by weight (those of single
        responses are named as core/labels tells):

        * `margin_unmasked`: beta D, where D is the difference of the responses' summed log-ratios.
        * `accuracy_unmasked`: whether D > 0; a tie counts one half.
        * `kl/chosen`, `kl/rejected`, `logps/chosen`, `logps/rejected`: sums over the response, nats.
        * `mask/reward_mean`, `mask/reward_max`, `mask/reward_sparsity`, and the same for `kl`: over the
          tokens of both responses; sparsity is the share of exact zeros, 0 to 1.
    """
    valid_BPT = stats.valid_BPT
    ratio_BP = log_ratio(stats).sum(-1)
    kl_BP = response_sum(stats.kl_BPT, valid_BPT)
    logp_BP = response_sum(stats.logp_BPT, valid_BPT)
    metrics = {
        **_preference(ratio_BP, stats, beta),
        **sides("kl", kl_BP, stats),
        **sides("logps", logp_BP, stats),
    }
    tokens_B = jnp.maximum(valid_BPT.sum((1, 2)), 1)
    for name, mask_BPT in (("reward", masks.reward_BPT), ("kl", masks.kl_BPT)):
        largest_B = jnp.where(valid_BPT, mask_BPT, -jnp.inf).max((1, 2))
        metrics[f"mask/{name}_mean"] = response_sum(mask_BPT, valid_BPT).sum(-1) / tokens_B
        metrics[f"mask/{name}_max"] = jnp.where(valid_BPT.any((1, 2)), largest_B, 0.0)
        metrics[f"mask/{name}_sparsity"] = (valid_BPT & (mask_BPT == 0)).sum((1, 2)) / tokens_B
    return metrics


def _preference(
    ratio_BP: Float[Array, "B P"], stats: TokenStats, beta: Scalar
) -> dict[str, Float[Array, "B"]]:
    """Margin and accuracy of pairs; of single responses their place against the anchor, see core/labels."""
    if ratio_BP.shape[1] == 2:
        difference_B = ratio_BP[:, 0] - ratio_BP[:, 1]
        unmasked = {}
    else:
        desirable_B = stats.desirable_BP[:, 0] if stats.desirable_BP is not None else True
        anchor = 0.0 if stats.anchor is None else stats.anchor
        difference_B = jnp.where(desirable_B, ratio_BP[:, 0] - anchor, anchor - ratio_BP[:, 0])
        unmasked = sides("rewards_unmasked", beta * ratio_BP, stats)
    return {
        "margin_unmasked": beta * difference_B,
        "accuracy_unmasked": jnp.heaviside(difference_B, 0.5),
        **unmasked,
    }


def log_ratio_metrics(stats: TokenStats) -> dict[str, Float[Array, "B"]]:
    """How much likelier than by the reference the responses have become.

    Where it is below zero for the chosen response, a margin grows by pushing both responses down.

    Args:
        stats: log-probs of policy and reference.

    Returns:
        `log_ratio/chosen` and `log_ratio/rejected`, [B]: sums over the response's tokens without masks, nats.
    """
    return sides("log_ratio", log_ratio(stats).sum(-1), stats)
