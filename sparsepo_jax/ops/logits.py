"""From products of states and head to logits: a factor, then a cap of their size."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class LogitForm:
    """What a model makes of the products of its final states with its head.

    Attributes:
        scale: > 0, the factor of the products (Granite divides them, Cohere multiplies them).
        softcap: > 0, the limit c that the size of logits z = c tanh(z / c) approaches; None: no cap.

    References:
        Gemma 2, arXiv 2408.00118, section 2 (the cap).
    """

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, products: Float[Array, "..."]) -> Float[Array, "..."]:
        """The logits.

        Args:
            products: of states and head, of any shape.
        """
        scaled = products if self.scale == 1.0 else products * self.scale
        return scaled if self.softcap is None else self.softcap * jnp.tanh(scaled / self.softcap)

    def doubled(self) -> "LogitForm":
        """The form whose logits are twice these: of the squares of the probabilities, scaled to sum to 1."""
        return LogitForm(2 * self.scale, None if self.softcap is None else 2 * self.softcap)

    def to_products(self, d_logits: Float[Array, "..."], logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """The gradient in the products, from that in the logits.

        Args:
            d_logits: gradient in the logits.
            logits: what `logits` gave.
        """
        if self.softcap is not None:
            d_logits = d_logits * (1 - (logits / self.softcap) ** 2)
        return d_logits if self.scale == 1.0 else d_logits * self.scale
