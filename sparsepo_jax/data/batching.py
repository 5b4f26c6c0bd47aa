"""Batches are a plan: which rows form global batch n, and in which shape, is a pure function of (seed, epoch, lengths).

Every process computes the same plan and takes its slice, so all hosts run the same shape at the same step, the data position is the step
number, and another number of hosts changes nothing.

Rows are sorted into a few nested shapes (each at least as long as the one before, for prompt and response alike), so that little is
compiled and little is padding. An epoch orders the rows by (shape, draw), cuts them into batches and shuffles these; a batch over two
shapes takes the larger, so only the last batch of an epoch has fillers.

    lengths (prompt, response)   (3,9) (5,7) (4,30) (20,8) (6,6)        2 shapes, batches of 2
    shapes                       small = (8,16): rows 0 1 4    large = (24,32): rows 2 3
    an epoch                     [4 0] small   [2] + filler large   [1 3] large
"""

import math
from typing import NamedTuple

import numpy as np

MULTIPLE = 8  # lengths are rounded up to this: fewer shapes, and they suit vector units
CUTS = 64  # candidates for the boundaries between shapes


class PlannedBatch(NamedTuple):
    """rows: at most batch_size row numbers (the rest is filler); lengths in tokens."""

    rows: np.ndarray
    prompt_length: int
    response_length: int


class BatchPlan:
    """prompt_lengths_N, response_lengths_NP: tokens. row_weight_N: how often an epoch sees a row, None once; the fraction of 2.5 is a random
    half of the rows of that weight, anew each epoch. buckets: shapes at the most. Without shuffle every epoch is the same, sorted by shape."""

    def __init__(
        self,
        prompt_lengths_N: np.ndarray,
        response_lengths_NP: np.ndarray,
        row_weight_N: np.ndarray | None,
        *,
        batch_size: int,
        buckets: int,
        seed: int,
        shuffle: bool,
    ):
        self.batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._tokens_N = (prompt_lengths_N + response_lengths_NP.sum(axis=1)).astype(np.int64)
        self._responses = response_lengths_NP.shape[1]
        self._weight_N = np.ones(len(self._tokens_N)) if row_weight_N is None else np.asarray(row_weight_N, np.float64)
        self._shape_N, self._shapes = _nested_shapes(prompt_lengths_N, response_lengths_NP, buckets)
        self._rows_per_epoch = sum(count * whole + drawn for count, whole, drawn in self._repeats())
        if self._rows_per_epoch == 0:
            raise ValueError("an epoch over these row weights has no row")
        self._known: tuple[int, list[PlannedBatch]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(self._rows_per_epoch / self.batch_size)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (prompt, response) lengths that occur, tokens."""
        return sorted({(b.prompt_length, b.response_length) for b in self._epoch(0)})

    def batch(self, n: int) -> PlannedBatch:
        """Global batch n = 0, 1, ...; epochs follow one another."""
        epoch, index = divmod(n, self.batches_per_epoch)
        return self._epoch(epoch)[index]

    def real_token_share(self) -> float:
        """Share of the first epoch's positions that are no padding, each prompt counted once; 0 to 1."""
        batches = self._epoch(0)
        real = sum(self._tokens_N[b.rows].sum() for b in batches)
        return float(real / sum(self.batch_size * (b.prompt_length + self._responses * b.response_length) for b in batches))

    def _repeats(self) -> list[tuple[int, int, int]]:
        """For each distinct weight: its rows, how often an epoch has all of them, and how many it has once more."""
        weights, counts = np.unique(self._weight_N, return_counts=True)
        return [(int(count), int(weight), round(count * (weight % 1.0))) for weight, count in zip(weights, counts)]

    def _epoch(self, epoch: int) -> list[PlannedBatch]:
        known = self._known  # read once: several threads ask
        if known is None or known[0] != epoch:
            self._known = known = epoch, self._make_epoch(np.random.default_rng((self._seed, epoch)))
        return known[1]

    def _make_epoch(self, draws: np.random.Generator) -> list[PlannedBatch]:
        parts = []
        for weight, (_, whole, drawn) in zip(np.unique(self._weight_N), self._repeats()):
            rows = np.flatnonzero(self._weight_N == weight)
            parts += [rows] * whole + [draws.choice(rows, drawn, replace=False)] * (drawn > 0)
        rows = np.concatenate(parts)
        if self._shuffle:
            draws.shuffle(rows)
        rows = rows[np.argsort(self._shape_N[rows], kind="stable")]
        batches = [self._planned(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]
        if self._shuffle:
            batches = [batches[i] for i in draws.permutation(len(batches))]
        return batches

    def _planned(self, rows: np.ndarray) -> PlannedBatch:
        return PlannedBatch(rows, *self._shapes[self._shape_N[rows].max()])


def _nested_shapes(prompt_lengths_N: np.ndarray, response_lengths_NP: np.ndarray, buckets: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(the shape of each row, the shapes from small to large): the cuts of the rows, sorted by size, that pad least (dynamic programming)."""
    lengths_N2 = np.stack([prompt_lengths_N, response_lengths_NP.max(axis=1)], axis=1).astype(np.int64)
    positions_2 = np.array([1, response_lengths_NP.shape[1]])  # a shape's positions: the prompt once, and each response
    order = np.argsort(lengths_N2 @ positions_2, kind="stable")
    # As long as everything before, so that shapes are nested.
    rounded_N2 = -(-np.maximum.accumulate(lengths_N2[order]) // MULTIPLE) * MULTIPLE
    ends = np.unique(np.linspace(1, len(order), min(CUTS, len(order))).round().astype(int))
    cost_E = rounded_N2[ends - 1] @ positions_2
    # best[e]: least padded size of the first ends[e] rows; each round allows one shape more.
    best, chains = cost_E * ends, [[e] for e in range(len(ends))]
    for _ in range(buckets - 1):
        new_best, new_chains = best.copy(), list(chains)
        for e in range(1, len(ends)):
            options = best[:e] + cost_E[e] * (ends[e] - ends[:e])
            k = int(options.argmin())
            if options[k] < new_best[e]:
                new_best[e], new_chains[e] = options[k], [*chains[k], e]
        best, chains = new_best, new_chains
    chosen = ends[chains[-1]]
    shape_N = np.empty(len(order), np.int64)
    shape_N[order] = np.searchsorted(chosen, np.arange(len(order)), side="right")
    return shape_N, [(int(prompt), int(response)) for prompt, response in rounded_N2[chosen - 1]]
