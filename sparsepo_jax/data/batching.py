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

Batches run in a few shapes, known before the first step and chosen for all epochs that the run will see: the ones that pad them least, and only as
many as save more work than compiling them costs. Runs that differ in the seed alone nearly always have the same shapes, and so one set of
compiled programs.
"""

import math
from typing import NamedTuple

import numpy as np

from sparsepo_jax.data.packing import FILLER, Shape, Sizes

MULTIPLE = 8  # lengths are rounded up to this: they suit vector units
CUTS = 256  # candidates for the boundaries between shapes
JITTER = 0.05  # by which lengths count as the same
SPARE = Shape(
    1.03, 1.125, 1.125
)  # beyond what a first epoch needs, so that another seed or epoch fits the same shape
READ_AHEAD_ROWS = (
    2**23
)  # a run that draws more rows (a few seconds' work) takes the bound of all batches for its largest shape


class PlannedBatch(NamedTuple):
    """rows: batch_size row numbers or FILLER, row of tokens after row of tokens."""

    rows: np.ndarray
    shape: Shape


class BatchPlan:
    """row_weight_N: how often an epoch sees a row, None once; the fraction of 2.5 is a random half of the rows of that weight, anew each epoch.
    rows: of tokens, in which a batch lies; must divide batch_size. strata: from which a batch draws, at the most (they must divide batch_size).
    buckets: shapes at the most. Without shuffle every epoch is the same. epochs, steps: how long the run is; steps count where both are set.
    shape_steps: a further shape must save the work of so many steps. ValueError: no rows."""

    def __init__(
        self,
        sizes: Sizes,
        row_weight_N: np.ndarray | None,
        *,
        batch_size: int,
        rows: int,
        strata: int,
        buckets: int,
        seed: int,
        shuffle: bool,
        epochs: float = 1.0,
        steps: int | None = None,
        shape_steps: float = 0.0,
    ):
        self.batch_size, self.rows, self._sizes, self._seed, self._shuffle = (
            batch_size,
            rows,
            sizes,
            seed,
            shuffle,
        )
        self._strata = max(n for n in range(1, strata + 1) if batch_size % n == 0)
        self._weight_N = (
            np.ones(len(sizes.positions_N)) if row_weight_N is None else np.asarray(row_weight_N, np.float64)
        )
        self._rows_per_epoch = sum(count * whole + drawn for count, whole, drawn in self._repeats())
        if self._rows_per_epoch == 0:
            raise ValueError("an epoch over these row weights has no row")
        # 0.1 x 30 is 3, not 4
        self.steps = max(1, math.ceil(epochs * self.batches_per_epoch - 1e-9)) if steps is None else steps
        self._known: tuple[int, np.ndarray, np.ndarray] | None = None
        ahead = self._needs_of_run()
        self._shapes = self._choose_shapes(ahead, buckets, shape_steps)
        # Those that batches of the run have: to be compiled before the first step.
        taken = range(len(self._shapes)) if ahead is None else np.unique(self._shape_numbers(ahead))
        self.shapes = [self._shapes[number] for number in taken]

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(self._rows_per_epoch / self.batch_size)

    def batch(self, n: int) -> PlannedBatch:
        """Global batch n = 0, 1, ... of `steps`; epochs follow one another."""
        epoch, index = divmod(n, self.batches_per_epoch)
        rows, shape_numbers = self._epoch(epoch)
        return PlannedBatch(rows[index], self._shapes[shape_numbers[index]])

    def real_token_share(self) -> float:
        """Share of positions that are no padding, 0 to 1, in the first epoch (or what the run takes of it)."""
        rows, shape_numbers = self._epoch(0)
        real = np.where(rows == FILLER, 0, self._sizes.positions_N[rows]).sum()
        padded = np.array([shape.positions for shape in self._shapes])[shape_numbers].sum() * self.rows
        return float(real / padded)

    def _repeats(self) -> list[tuple[int, int, int]]:
        """For each distinct weight: its rows, how often an epoch has all of them, and how many it has once more."""
        weights, counts = np.unique(self._weight_N, return_counts=True)
        return [
            (int(count), int(weight), round(count * (weight % 1.0))) for weight, count in zip(weights, counts)
        ]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows of each batch, number of its shape), of the batches that the run takes."""
        epoch = epoch if self._shuffle else 0
        known = self._known  # read once: several threads ask
        if known is None or known[0] != epoch:
            rows = self._compose(epoch, self._seed)[: self.steps - epoch * self.batches_per_epoch]
            self._known = known = epoch, rows, self._shape_numbers(self._needs(rows))
        return known[1:]

    def _needs_of_run(self) -> np.ndarray | None:
        """[steps, 3], of one epoch where all are the same; None: the run is too long to look at every batch."""
        if not self._shuffle:
            return self._needs(self._compose(0, self._seed))[: self.steps]
        if self.steps * self.batch_size > READ_AHEAD_ROWS:
            return None
        epochs = range(math.ceil(self.steps / self.batches_per_epoch))
        return np.concatenate([self._needs(self._compose(epoch, self._seed)) for epoch in epochs])[
            : self.steps
        ]

    def _compose(self, epoch: int, seed: int) -> np.ndarray:
        """[batches, batch_size]: the rows of each batch, dealt over its rows of tokens."""
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
            mine = mine[
                np.argsort(-self._sizes.positions_N[mine] * draws.uniform(1, 1 + JITTER, size), kind="stable")
            ]
            mine = np.concatenate([mine, np.full(len(batches) * together - size, FILLER)]).reshape(
                -1, together
            )
            # What the rows lack to whole batches, the last batch lacks.
            whole = len(mine) - (FILLER in mine[-1])
            batches[:whole, stratum] = draws.permutation(mine[:whole])
            batches[whole:, stratum] = mine[whole:]
            begin += size
        if self._shuffle:
            batches = batches[draws.permutation(len(batches))]
        return self._dealt(batches.reshape(len(batches), -1))

    def _stratum_sizes(self) -> np.ndarray:
        """Rows of each stratum, the longest rows' first."""
        lacking = self.batches_per_epoch * self.batch_size - self._rows_per_epoch
        whole = self.batches_per_epoch * (self.batch_size // self._strata)
        return whole - np.bincount(np.arange(lacking) % self._strata, minlength=self._strata)

    def _dealt(self, rows_NB: np.ndarray) -> np.ndarray:
        """Row of tokens after row of tokens: what one gets more of in one deal, it gets less of in the next."""
        length_NB = np.where(rows_NB == FILLER, -1, self._sizes.positions_N[rows_NB])
        sorted_NB = np.take_along_axis(rows_NB, np.argsort(-length_NB, axis=1, kind="stable"), axis=1)
        deals = sorted_NB.reshape(len(rows_NB), -1, self.rows)
        deals[:, 1::2] = deals[:, 1::2, ::-1]
        return deals.transpose(0, 2, 1).reshape(len(rows_NB), -1)

    def _needs(self, rows_NB: np.ndarray) -> np.ndarray:
        """[batches, 3]: the smallest shape that holds each batch, before rounding."""
        positions, tokens, longest = (np.where(rows_NB == FILLER, 0, x_N[rows_NB]) for x_N in self._sizes)
        positions, tokens = (
            x.reshape(len(rows_NB), self.rows, -1).sum(axis=2).max(axis=1) for x in (positions, tokens)
        )
        return np.stack([positions, tokens, longest.max(axis=1)], axis=1)

    def _choose_shapes(self, ahead: np.ndarray | None, buckets: int, shape_steps: float) -> list[Shape]:
        """From small to large; the last one holds every batch of the run, whose needs are `ahead` (None: not known).

        They are fitted to a run of seed 0. Where a batch of this run needs more, the last is widened, by SPARE at a time and up to the bound.
        """
        needs = self._needs(self._compose(0, seed=0))[: self.steps]
        lengths = self._choose_lengths(needs[:, 0], buckets, shape_steps)
        bound = self._bound()
        shapes = []
        for length in lengths:
            most = needs[needs[:, 0] <= length].max(axis=0) * SPARE
            shapes.append(Shape(length, *(min(_rounded(x), limit) for x, limit in zip(most[1:], bound[1:]))))
        last = bound if ahead is None else _widened(needs.max(axis=0), ahead.max(axis=0), bound)
        return [shape for shape in shapes[:-1] if not shape.holds(last)] + [last]

    def _choose_lengths(self, need_N: np.ndarray, buckets: int, shape_steps: float) -> list[int]:
        """The lengths, at most `buckets`, that cost the run least: its padded steps, and shape_steps for each length."""
        chosen, least = [], math.inf
        for count in range(1, buckets + 1):
            lengths = choose_lengths(need_N, count)
            padded = np.array(lengths)[np.searchsorted(lengths, need_N)].mean() / need_N.mean()
            cost = padded * self.steps + shape_steps * len(lengths)
            if cost < least:
                chosen, least = lengths, cost
        return chosen

    def _bound(self) -> Shape:
        """What no batch of any epoch exceeds."""
        starts = np.cumsum(self._stratum_sizes()) - self._stratum_sizes()
        # Rows of fractional weight count as often as they may occur: the n-th longest of some rows is not longer than that of all of them.
        counts = np.ceil(self._weight_N).astype(np.int64)
        sorted_N = -np.sort(-np.repeat(self._sizes.positions_N, counts))
        longest_of_strata = sorted_N[np.minimum(starts, len(sorted_N) - 1)]
        deals = np.arange(0, self.batch_size, self.rows)
        longest_of_deals = longest_of_strata[deals * self._strata // self.batch_size]
        largest_tokens = -np.sort(-np.repeat(self._sizes.tokens_N, counts))[: len(deals)]
        return Shape(
            *map(_rounded, (longest_of_deals.sum(), largest_tokens.sum(), self._sizes.longest_N.max()))
        )

    def _shape_numbers(self, needs: np.ndarray) -> np.ndarray:
        """Of the first shape that holds each."""
        holds = (np.array(self._shapes)[None] >= needs[:, None]).all(axis=2)
        assert holds.any(axis=1).all(), "a batch beyond the bound of all batches"
        return holds.argmax(axis=1)


def _rounded(length: float) -> int:
    return max(MULTIPLE, math.ceil(length / MULTIPLE) * MULTIPLE)


def _widened(fitted: np.ndarray, needed: np.ndarray, bound: Shape) -> Shape:
    """`fitted` and SPARE beyond, once or as often as it takes to hold what is needed, up to the bound."""
    sizes = []
    for size, need, limit, factor in zip(fitted, needed, bound, SPARE, strict=True):
        size = size * factor
        while _rounded(size) < need:
            size *= factor
        sizes.append(min(_rounded(size), limit))
    return Shape(*sizes)


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
    return [
        PlannedPrompts(rows, int(lengths[np.searchsorted(lengths, most)]))
        for rows, most in zip(batches, longest)
    ]
