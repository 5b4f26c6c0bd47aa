"""Batches are a plan: which rows form global batch n, how they lie in its rows of tokens, and in which shape, is a pure function of
(seed, epoch, lengths).

Every process computes the same plan and takes its slice, so all hosts run the same shape at the same step, the data position is the step
number, and another number of hosts changes nothing.

An epoch sorts the rows of the table by length and cuts them into strata; every batch draws from each stratum the same number of rows of about
the same length. So batches are all of about the same size, and none is of long or of short rows alone. A batch is dealt, from long to short, to
and fro, over rows of tokens, one for each device and micro-step, which all have the same length: they fill up where each gets something of every
stratum. Which rows meet in a batch does not depend on how many rows of tokens it is dealt over.

    positions of each row        31 12 45 8 22 17         batches of 3 from 3 strata: {45 31} {22 17} {12 8}
    an epoch                     [45 17 12] [31 22 8]     in 1 row of tokens: 74 and 61 positions

Batches run in a few shapes, the ones that pad an epoch least, and one that holds whatever an epoch may bring. They do not depend on the seed: runs that
differ in it have one set of compiled programs.
"""

import math
from typing import NamedTuple

import numpy as np

from sparsepo_jax.data.packing import FILLER, Shape, Sizes

MULTIPLE = 8  # lengths are rounded up to this: they suit vector units
CUTS = 256  # candidates for the boundaries between shapes
JITTER = 0.05  # by which lengths count as the same
SPARE = 1.125  # of response tokens and sequence lengths beyond what the first epoch needs


class PlannedBatch(NamedTuple):
    """rows: batch_size row numbers or FILLER, row of tokens after row of tokens."""

    rows: np.ndarray
    shape: Shape


class BatchPlan:
    """row_weight_N: how often an epoch sees a row, None once; the fraction of 2.5 is a random half of the rows of that weight, anew each epoch.
    rows: of tokens, in which a batch lies; must divide batch_size. strata: from which a batch draws, at the most (they must divide batch_size).
    buckets: shapes at the most. Without shuffle every epoch is the same. ValueError: no rows."""

    def __init__(
        self, sizes: Sizes, row_weight_N: np.ndarray | None, *, batch_size: int, rows: int, strata: int, buckets: int, seed: int,
        shuffle: bool
    ):
        self.batch_size, self.rows, self._sizes, self._seed, self._shuffle = batch_size, rows, sizes, seed, shuffle
        self._strata = max(n for n in range(1, strata + 1) if batch_size % n == 0)
        self._weight_N = np.ones(len(sizes.positions_N)) if row_weight_N is None else np.asarray(row_weight_N, np.float64)
        self._rows_per_epoch = sum(count * whole + drawn for count, whole, drawn in self._repeats())
        if self._rows_per_epoch == 0:
            raise ValueError("an epoch over these row weights has no row")
        first = self._compose(0, seed=0)
        self._shapes = self._choose_shapes([self._need(rows) for rows in first], buckets)
        self._known: tuple[int, list[PlannedBatch]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(self._rows_per_epoch / self.batch_size)

    @property
    def shapes(self) -> list[Shape]:
        """Those of the first epoch's batches."""
        return sorted({b.shape for b in self._epoch(0)})

    def batch(self, n: int) -> PlannedBatch:
        """Global batch n = 0, 1, ...; epochs follow one another."""
        epoch, index = divmod(n, self.batches_per_epoch)
        return self._epoch(epoch)[index]

    def real_token_share(self) -> float:
        """Share of the first epoch's positions that are no padding, 0 to 1."""
        batches = self._epoch(0)
        real = sum(self._sizes.positions_N[b.rows[b.rows != FILLER]].sum() for b in batches)
        return float(real / sum(self.rows * b.shape.positions for b in batches))

    def _repeats(self) -> list[tuple[int, int, int]]:
        """For each distinct weight: its rows, how often an epoch has all of them, and how many it has once more."""
        weights, counts = np.unique(self._weight_N, return_counts=True)
        return [(int(count), int(weight), round(count * (weight % 1.0))) for weight, count in zip(weights, counts)]

    def _epoch(self, epoch: int) -> list[PlannedBatch]:
        epoch = epoch if self._shuffle else 0
        known = self._known  # read once: several threads ask
        if known is None or known[0] != epoch:
            batches = [PlannedBatch(rows, self._shape_for(self._need(rows))) for rows in self._compose(epoch, self._seed)]
            self._known = known = epoch, batches
        return known[1]

    def _compose(self, epoch: int, seed: int) -> list[np.ndarray]:
        """The rows of each batch, dealt over its rows of tokens."""
        draws = np.random.default_rng((seed, epoch))
        parts = []
        for weight, (_, whole, drawn) in zip(np.unique(self._weight_N), self._repeats()):
            rows = np.flatnonzero(self._weight_N == weight)
            parts += [rows] * whole + [draws.choice(rows, drawn, replace=False)] * (drawn > 0)
        rows = draws.permutation(np.concatenate(parts))
        rows = rows[np.argsort(-self._sizes.positions_N[rows], kind="stable")]
        together, begin = self.batch_size // self._strata, 0
        batches = np.full((self.batches_per_epoch, self._strata, together), FILLER, np.int64)
        for stratum, size in enumerate(self._stratum_sizes()):
            mine = rows[begin : begin + size]
            # Other neighbours in every epoch, of nearly the same length.
            mine = mine[np.argsort(-self._sizes.positions_N[mine] * draws.uniform(1, 1 + JITTER, size), kind="stable")]
            mine = np.concatenate([mine, np.full(len(batches) * together - size, FILLER)]).reshape(-1, together)
            # What the rows lack to whole batches, the last batch lacks.
            whole = len(mine) - (FILLER in mine[-1])
            batches[:whole, stratum] = draws.permutation(mine[:whole])
            batches[whole:, stratum] = mine[whole:]
            begin += size
        if self._shuffle:
            batches = batches[draws.permutation(len(batches))]
        return [self._dealt(rows.ravel()) for rows in batches]

    def _stratum_sizes(self) -> np.ndarray:
        """Rows of each stratum, the longest rows' first."""
        lacking = self.batches_per_epoch * self.batch_size - self._rows_per_epoch
        whole = self.batches_per_epoch * (self.batch_size // self._strata)
        return whole - np.bincount(np.arange(lacking) % self._strata, minlength=self._strata)

    def _dealt(self, rows: np.ndarray) -> np.ndarray:
        """Row of tokens after row of tokens: what one gets more of in one deal, it gets less of in the next."""
        length = np.where(rows == FILLER, -1, self._sizes.positions_N[rows])
        deals = rows[np.argsort(-length, kind="stable")].reshape(-1, self.rows)
        deals[1::2] = deals[1::2, ::-1]
        return deals.T.ravel()

    def _need(self, rows: np.ndarray) -> Shape:
        """The smallest shape that holds a batch, before rounding."""
        real = rows != FILLER
        positions, tokens, longest = (np.where(real, x_N[rows], 0) for x_N in self._sizes)
        most = lambda x: int(x.reshape(self.rows, -1).sum(axis=1).max())  # noqa: E731
        return Shape(most(positions), most(tokens), int(longest.max()))

    def _choose_shapes(self, needs: list[Shape], buckets: int) -> list[Shape]:
        """From small to large; the last one holds any batch."""
        starts = np.cumsum(self._stratum_sizes()) - self._stratum_sizes()
        # Of a whole epoch's rows, sorted; those of fractional weight count as often as they may occur.
        counts = np.ceil(self._weight_N).astype(np.int64)
        sorted_N = -np.sort(-np.repeat(self._sizes.positions_N, counts))
        longest_of_strata = sorted_N[np.minimum(starts, len(sorted_N) - 1)]
        deals = np.arange(0, self.batch_size, self.rows)
        longest_of_deals = longest_of_strata[deals * self._strata // self.batch_size]
        largest_tokens = -np.sort(-np.repeat(self._sizes.tokens_N, counts))[: len(deals)]
        whole = Shape(*map(_rounded, (longest_of_deals.sum(), largest_tokens.sum(), self._sizes.longest_N.max())))
        shapes = []
        for positions in choose_lengths(np.array([need.positions for need in needs]), buckets - 1) if buckets > 1 else []:
            fitting = [need for need in needs if need.positions <= positions]
            tokens, longest = (_rounded(SPARE * max(sizes)) for sizes in list(zip(*fitting))[1:])
            shapes.append(Shape(positions, min(tokens, whole.tokens), min(longest, whole.longest)))
        return [shape for shape in shapes if not shape.holds(whole)] + [whole]

    def _shape_for(self, need: Shape) -> Shape:
        for shape in self._shapes:
            if shape.holds(need):
                return shape
        # Random parts of rows (fractional weights) may bring an epoch of longer rows than all of them together.
        return Shape(*(_rounded(max(x, y)) for x, y in zip(need, self._shapes[-1])))


def _rounded(length: float) -> int:
    return max(MULTIPLE, math.ceil(length / MULTIPLE) * MULTIPLE)


def choose_lengths(need_N: np.ndarray, count: int) -> list[int]:
    """At most `count` lengths, multiples of MULTIPLE, from small to large, such that sequences that each take the smallest that holds them are
    padded least (dynamic programming over the sorted needs)."""
    sorted_N = np.sort(np.asarray(need_N))
    ends = np.unique(np.linspace(1, len(sorted_N), min(CUTS, len(sorted_N))).round().astype(int))
    length_E = np.array([_rounded(x) for x in sorted_N[ends - 1]])
    # best[e]: least padded size of the first ends[e] needs; each round allows one length more.
    best, chains = length_E * ends, [[e] for e in range(len(ends))]
    for _ in range(count - 1):
        new_best, new_chains = best.copy(), list(chains)
        for e in range(1, len(ends)):
            options = best[:e] + length_E[e] * (ends[e] - ends[:e])
            k = int(options.argmin())
            if options[k] < new_best[e]:
                new_best[e], new_chains[e] = options[k], [*chains[k], e]
        best, chains = new_best, new_chains
    return sorted({int(length) for length in length_E[chains[-1]]})


class PlannedPrompts(NamedTuple):
    """rows: at most batch_size row numbers; length of the padded prompts, tokens."""

    rows: np.ndarray
    length: int


def plan_prompts(prompt_lengths_N: np.ndarray, *, batch_size: int, buckets: int) -> list[PlannedPrompts]:
    """Batches of prompts of similar length, which are answered together, in a few lengths."""
    order = np.argsort(prompt_lengths_N, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    longest = np.array([prompt_lengths_N[rows].max() for rows in batches])
    lengths = np.array(choose_lengths(longest, buckets))
    return [PlannedPrompts(rows, int(lengths[np.searchsorted(lengths, most)])) for rows, most in zip(batches, longest)]
