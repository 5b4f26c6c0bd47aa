"""What the MLPs of a mixture of experts look like, as a few facts. No JAX here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mixture:
    """A gated MLP for each expert, and a router that gives each token a weighted sum of some of them.

    Attributes:
        experts: how many a layer has.
        chosen: experts that a token is sent to: those with the largest router logits.
        width: features inside the MLP of an expert.
        normalised: the weights of the chosen sum to 1 (a softmax over them) instead of over all experts.
        bias: router and projections of experts have biases.
        swiglu: (alpha, limit) of a gate that is min(g, limit) sigmoid(alpha min(g, limit)) and meets 1 + u, u
            cut off at plus and minus the limit (gpt-oss); None: act(g) u.
        shared: features inside the MLP of an expert that all tokens are sent to, which counts as much as the
            sigmoid of a projection of its input says; 0: there is none.
    """

    experts: int
    chosen: int
    width: int
    normalised: bool = False
    bias: bool = False
    swiglu: tuple[float, float] | None = None
    shared: int = 0

    def projections(self, width: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each matrix of an expert, and of the shared one's, by name.

        Args:
            width: of the residual stream.
        """
        sizes = {
            "experts.up": (width, self.width),
            "experts.gate": (width, self.width),
            "experts.down": (self.width, width),
        }
        if self.shared:
            sizes |= {
                "shared.up": (width, self.shared),
                "shared.gate": (width, self.shared),
                "shared.down": (self.shared, width),
                "shared.share": (width, 1),
            }
        return sizes

    def router_count(self, width: int) -> int:
        """Weights of a layer's router.

        Args:
            width: of the residual stream.
        """
        return self.experts * (width + self.bias)

    def bias_count(self, width: int) -> int:
        """Weights of the biases of a layer's experts.

        Args:
            width: of the residual stream.
        """
        return self.experts * (2 * self.width + width) if self.bias else 0
