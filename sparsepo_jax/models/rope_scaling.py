"""How queries and keys are rotated, and stretched beyond the positions of the first training. No JAX here.

References:
    Chen et al., position interpolation (linear), arXiv 2306.15595, 2023. Peng et al., YaRN, arXiv 2309.00071,
    2023. Ding et al., LongRoPE, arXiv 2402.13753, 2024. Details that the papers leave open follow
    transformers' `modeling_rope_utils`.
"""

import math
from dataclasses import dataclass

import numpy as np


def plain_frequencies(rotary_dim: int, base: float) -> np.ndarray:
    """The angle per position of each rotated pair of dims i: base ** (-2 i / rotary_dim).

    Args:
        rotary_dim: number of rotated dims of a head, even.
        base: rotary base (theta), above 0; 10,000 in the paper.

    Returns:
        Radians per position, float64 [rotary_dim / 2].

    References:
        Su et al., RoFormer, arXiv 2104.09864, 2021, section 3.2.2.
    """
    return base ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


@dataclass(frozen=True)
class LinearScaling:
    """All wavelengths are stretched alike.

    Attributes:
        factor: how many times, above 0.
    """

    factor: float
    attention_factor = 1.0

    def frequencies(self, rotary_dim: int, base: float) -> np.ndarray:
        """As `plain_frequencies`, stretched.

        Args:
            rotary_dim: number of rotated dims of a head, even.
            base: rotary base.
        """
        return plain_frequencies(rotary_dim, base) / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Wavelengths above original_positions / low stretch, those below original_positions / high are kept.

    In between the two blend.

    Attributes:
        factor: how many times, above 0.
        low: low_freq_factor, turns over the original positions.
        high: high_freq_factor, above `low`.
        original_positions: positions of the first training, tokens.
    """

    factor: float
    low: float
    high: float
    original_positions: int
    attention_factor = 1.0

    def frequencies(self, rotary_dim: int, base: float) -> np.ndarray:
        """As `plain_frequencies`, stretched.

        Args:
            rotary_dim: number of rotated dims of a head, even.
            base: rotary base.
        """
        frequency_X = plain_frequencies(rotary_dim, base)
        turns_X = self.original_positions * frequency_X / (2 * np.pi)
        keep_X = np.clip((turns_X - self.low) / (self.high - self.low), 0.0, 1.0)
        return keep_X * frequency_X + (1 - keep_X) * frequency_X / self.factor


@dataclass(frozen=True)
class YarnScaling:
    """Pairs of dims with few turns over the original positions are stretched, those with many are not.

    Attributes:
        factor: how many times, above 0.
        original_positions: positions of the first training, tokens.
        attention_factor: factor of rotated queries and keys.
        fast: beta_fast, turns from which on a pair is kept.
        slow: beta_slow, turns up to which a pair is stretched.
        truncate: whether the pairs where blending begins and ends are rounded to whole ones.
    """

    factor: float
    original_positions: int
    attention_factor: float
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def frequencies(self, rotary_dim: int, base: float) -> np.ndarray:
        """As `plain_frequencies`, stretched.

        Args:
            rotary_dim: number of rotated dims of a head, even.
            base: rotary base.
        """
        begin = self._pair_with_turns(self.fast, rotary_dim, base)
        end = self._pair_with_turns(self.slow, rotary_dim, base)
        if self.truncate:
            begin, end = math.floor(begin), math.ceil(end)
        begin, end = max(begin, 0), min(end, rotary_dim - 1)
        if begin == end:
            end += 0.001
        stretch_X = np.clip((np.arange(rotary_dim // 2) - begin) / (end - begin), 0.0, 1.0)
        frequency_X = plain_frequencies(rotary_dim, base)
        return (1 - stretch_X) * frequency_X + stretch_X * frequency_X / self.factor

    def _pair_with_turns(self, turns: float, rotary_dim: int, base: float) -> float:
        """The pair of dims, as a real number, that turns so often over the original positions."""
        return rotary_dim * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))


@dataclass(frozen=True)
class LongRopeScaling:
    """Each pair of dims has a stretch of its own, for sequences up to the original positions.

    For longer ones transformers takes other stretches for the whole sequence, prompt included, so that a
    prompt that two responses share could need both. Longer sequences are refused: see `original_positions`.

    Attributes:
        short: the stretch of each pair, [rotary_dim / 2].
        original_positions: the longest sequence, tokens.
        attention_factor: factor of rotated queries and keys.
    """

    short: tuple[float, ...]
    original_positions: int
    attention_factor: float

    def frequencies(self, rotary_dim: int, base: float) -> np.ndarray:
        """As `plain_frequencies`, stretched.

        Args:
            rotary_dim: number of rotated dims of a head, even.
            base: rotary base.
        """
        return plain_frequencies(rotary_dim, base) / np.array(self.short)


@dataclass(frozen=True)
class ProportionalScaling:
    """Only the fastest pairs of dims turn, as fast as if all did; the others stay as they are.

    Attributes:
        share: of the pairs that turn, above 0 and up to 1.
        factor: how many times their wavelengths are stretched, above 0.
    """

    share: float
    factor: float = 1.0
    attention_factor = 1.0

    def frequencies(self, rotary_dim: int, base: float) -> np.ndarray:
        """As `plain_frequencies`, stretched; zeros for pairs that do not turn.

        Args:
            rotary_dim: see there.
            base: see there.
        """
        turning = np.arange(rotary_dim // 2) < int(self.share * rotary_dim // 2)
        return np.where(turning, plain_frequencies(rotary_dim, base) / self.factor, 0.0)


RopeScaling = ProportionalScaling | LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rotation:
    """How queries and keys are rotated by their positions.

    Attributes:
        dim: dims of each head that are rotated, even.
        base: base of the rotary frequencies.
        scaling: how positions are stretched; None: they are not.
    """

    dim: int
    base: float
    scaling: RopeScaling | None = None

    @property
    def attention_factor(self) -> float:
        """Factor of rotated queries and keys."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor

    @property
    def is_longrope(self) -> bool:
        """Whether longer sequences than the original positions would be rotated otherwise."""
        return isinstance(self.scaling, LongRopeScaling)

    def longest(self, positions: int) -> int:
        """The longest sequence that is rotated so, tokens.

        Args:
            positions: that the model is meant for.
        """
        if isinstance(self.scaling, LongRopeScaling):
            return min(positions, self.scaling.original_positions)
        return positions


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """The attention factor of YaRN where a config does not name it.

    Args:
        factor: how many times positions are stretched.
        mscale: of the config; None or 0: absent.
        mscale_all_dim: the same.
    """

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return growth(mscale) / growth(mscale_all_dim)
    return growth(1.0)


def longrope_attention_factor(factor: float, original_positions: int) -> float:
    """The attention factor of LongRoPE where a config does not name it.

    Args:
        factor: how many times positions are stretched.
        original_positions: positions of the first training, above 1.
    """
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_positions))
