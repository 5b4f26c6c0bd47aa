"""A check of the first step: a policy that begins as its reference has log-ratio 0 and KL 0."""

import math
from collections.abc import Mapping

from sparsepo_jax.core.errors import UserError

# Nats a token. Both models run the same operations; what may differ is rounding, where the compiler fuses
# one of them in another way.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


def check_first_step(metrics: Mapping[str, float], tokens_a_pair: float, *, beta: float, dtype: str) -> float:
    """Checks the metrics of the first step, which are of the weights before their first update.

    Args:
        metrics: means over pairs. `margin_unmasked` is beta times the difference of summed log-ratios;
            `log_ratio/*` and `kl/*` are sums over a response. `kl/*` are missing where the reference is not
            run, and NaN for a class of single responses that the batch has none of.
        tokens_a_pair: mean number of tokens, prompt and responses together.
        beta: 1/nat, of the objective.
        dtype: of activations, a key of TOLERANCE.

    Returns:
        The larger of |log-ratio| and KL, nats a token.

    Raises:
        UserError: it is beyond the tolerance.
    """
    sums = (metrics["margin_unmasked"] / beta, metrics["log_ratio/chosen"], metrics["log_ratio/rejected"])
    log_ratio = max((abs(x) for x in sums if not math.isnan(x)), default=math.nan) / tokens_a_pair
    kls = (metrics.get("kl/chosen", 0.0), metrics.get("kl/rejected", 0.0))
    kl = sum(x for x in kls if not math.isnan(x)) / tokens_a_pair
    largest = max(log_ratio, abs(kl))
    if largest > TOLERANCE[dtype]:
        raise UserError(
            f"po: step 1: expected policy = reference (log-ratio and KL 0 within {TOLERANCE[dtype]:g} "
            f"nats a token), got log-ratio {log_ratio:.3g} and KL {kl:.3g}, loss {metrics['loss']:.4f}: "
            "look at what the reference is (the line above), at policy.adapter and reference.cached; "
            "nothing was trained"
        )
    return largest
