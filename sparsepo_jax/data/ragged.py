"""Sequences of different lengths in one array."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences one after the other: sequence i is flat[starts[i]:starts[i + 1]].

    sequences    [5 6] [] [7 8 9]        flat  5 6 7 8 9        starts  0 2 2 5
    """

    flat: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.flat[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def positions(self, sequences: np.ndarray) -> np.ndarray:
        """Where the values of some sequences lie in `flat`, one sequence after the other.

        Args:
            sequences: their numbers, in any order, repeated or not.
        """
        lengths = self.lengths[sequences]
        shift = self.starts[:-1][sequences] - (np.cumsum(lengths) - lengths)
        return np.arange(lengths.sum()) + np.repeat(shift, lengths)

    def take(self, sequences: np.ndarray) -> "Ragged":
        """Some of the sequences.

        Args:
            sequences: their numbers, in any order, repeated or not.
        """
        return Ragged(self.flat[self.positions(sequences)], _starts_of(self.lengths[sequences]))


def _starts_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def ragged(sequences: Sequence[np.ndarray | list], dtype: type) -> Ragged:
    """Puts sequences into one array.

    Args:
        sequences: each a list or array of one dimension.
        dtype: of the array.
    """
    flat = np.zeros(0, dtype)
    if sequences:
        flat = np.concatenate([np.asarray(sequence, dtype) for sequence in sequences])
    return Ragged(flat, _starts_of([len(sequence) for sequence in sequences]))


def concat_ragged(parts: Sequence[Ragged]) -> Ragged:
    """All sequences of all parts, in order.

    Args:
        parts: at least one.
    """
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.flat for part in parts]), _starts_of(lengths))
