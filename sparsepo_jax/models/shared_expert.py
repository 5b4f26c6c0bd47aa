"""The expert of a mixture that all tokens are sent to: a gated MLP that counts as much as a gate says."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from sparsepo_jax.models.layers import Hooks, LayerFactory
from sparsepo_jax.ops.activations import gated


class SharedExpert(nnx.Module):
    """sigmoid(share(x)) * down(act(gate(x)) * up(x)), which is added to what the chosen experts give."""

    def __init__(self, make: LayerFactory, inside: int):
        """An expert with random weights.

        Args:
            make: makes its projections.
            inside: features within it.
        """
        width = make.spec.width
        self.activation = make.spec.activation
        self.up = make.linear("shared.up", width, inside, bias=False)
        self.gate = make.linear("shared.gate", width, inside, bias=False)
        self.down = make.linear("shared.down", inside, width, bias=False, std=make.output_std())
        self.share = make.linear("shared.share", width, 1, bias=False)

    def __call__(self, x_BSD: Float[Array, "B S D"], hooks: Hooks) -> Float[Array, "B S D"]:
        """What it adds to the mixture's output.

        Args:
            x_BSD: the MLP's input.
            hooks: see `Hooks`.
        """
        up_BSF = hooks.project("shared.up", self.up, x_BSD)
        act_BSF = gated(self.activation, hooks.project("shared.gate", self.gate, x_BSD), up_BSF)
        share_BS1 = jax.nn.sigmoid(hooks.project("shared.share", self.share, x_BSD))
        return share_BS1 * hooks.project("shared.down", self.down, act_BSF)
