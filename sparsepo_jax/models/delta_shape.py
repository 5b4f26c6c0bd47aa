"""What a gated delta net looks like, as a few facts. No JAX here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeltaShape:
    """A layer whose heads keep a memory in place of keys and values (see ops/gated_delta).

    Attributes:
        key_heads: heads of queries and keys.
        value_heads: heads of values, a multiple of `key_heads`; each has a memory.
        key_dim: dims of a query or key head.
        value_dim: dims of a value head.
        reach: tokens that the convolution before the memory sees, the token itself included.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    reach: int

    @property
    def keys(self) -> int:
        """Features of all keys of a token; of all queries as well."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Features of all values of a token."""
        return self.value_heads * self.value_dim

    @property
    def convolved(self) -> int:
        """Features that the convolution mixes: queries, keys and values."""
        return 2 * self.keys + self.values

    def projections(self, width: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each matrix, by name.

        Args:
            width: of the residual stream.
        """
        return {
            "delta.query": (width, self.keys),
            "delta.key": (width, self.keys),
            "delta.value": (width, self.values),
            "delta.gate": (width, self.values),
            "delta.rate": (width, self.value_heads),
            "delta.decay": (width, self.value_heads),
            "delta.out": (self.values, width),
        }

    def operations(self) -> int:
        """Operations of a token with its memories: two reads and what is written, a multiply-add each."""
        return 6 * self.value_heads * self.key_dim * self.value_dim

    def vector_count(self) -> int:
        """Weights that are in no matrix: of the convolution, of decays, and the norm's."""
        return self.reach * self.convolved + 2 * self.value_heads + self.value_dim
