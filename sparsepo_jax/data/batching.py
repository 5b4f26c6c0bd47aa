"""Batches are a plan: a pure function of (seed, epoch, lengths).

The plan says which rows form global batch n, how they are laid out in its rows of tokens, and in which shape.
Every process computes the same plan and takes its slice. So all hosts run the same shape at the same step,
the position in the data is the step number, and another number of hosts changes nothing.

An epoch sorts the rows of the table by length and cuts them into strata. Every batch draws the same number of
rows of about the same length from each stratum, so that batches are all of about the same size, and none has
long or short rows alone. A batch is then dealt, from long to short and to and fro, over micro-steps, and each
of these over rows of tokens: one for each device, all of one length, which fill up well because each gets
something of every stratum. Which rows meet in a batch depends neither on micro-steps and devices nor on the
layout in which the rows are laid there, and which meet in a micro-step not on devices and layout.

    positions of each row        31 12 45 8 22 17         batches of 3 from 3 strata: {45 31} {22 17} {12 8}
    an epoch                     [45 17 12] [31 22 8]     in 1 row of tokens: 74 and 61 positions

Batches run in a few shapes, known before the first step and chosen for all epochs that the run will see:
those that pad its batches least, and only as many as save more work than it costs to compile them. Runs that
differ in the seed alone nearly always have the same shapes, and so share one set of compiled programs.
"""

import math
from typing import NamedTuple

import numpy as np

from sparsepo_jax.core.steps import steps_of_epochs, times_in_epoch
from sparsepo_jax.data.packing import FILLER, Shape, Sizes

MULTIPLE = 8  # lengths are rounded up to this: they suit vector units
CUTS = 256  # candidates for the boundaries between shapes
JITTER = 0.05  # lengths that differ by this share count as the same
# Room beyond what a first epoch needs, as factors, so that another seed or epoch fits the same shape.
SPARE = Shape(positions=1.03, tokens=1.125, longest=1.125)
# A run that draws more rows than this takes the bound of all batches for its largest shape: to look at every
# batch would take more than a few seconds.
READ_AHEAD_ROWS = 2**23


class PlannedBatch(NamedTuple):
    """A global batch."""

    rows: np.ndarray
    """[batch_size] row numbers or FILLER, row of tokens after row of tokens."""
    shape: Shape
    """Of each row of tokens."""


class BatchPlan:
    """The batches of a run.

    Args:
        sizes: what each row of the table takes up.
        row_weight_N: how often an epoch sees each row; a fraction is that share of the rows of the same
            weight, drawn anew each epoch (2.5: all of them twice, and a random half once more). None: once.
        batch_size: pairs of a global batch.
        rows: rows of tokens in which a batch is laid out, of all micro-steps together; divides batch_size.
        strata: from which a batch draws alike; the largest number up to this that divides batch_size is
            taken.
        buckets: shapes at the most.
        seed: of the draws.
        shuffle: whether epochs differ. Without it, every epoch is the first one, unshuffled.
        epochs: how long the run is; may be a fraction.
        steps: how long the run is, in batches; it wins over epochs. None: epochs count.
        shape_steps: a further shape must save the work of so many steps.
        micro_steps: into which a batch is cut, one after the other; divides rows.

    Attributes:
        steps: batches of the run.
        shapes: that its batches have, from small to large: these are to be compiled before the first step.

    Raises:
        ValueError: there are no rows, or micro_steps does not divide them.
    """

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
        micro_steps: int = 1,
    ):
        if rows % micro_steps:
            raise ValueError(f"{rows} rows of tokens cannot be cut into {micro_steps} micro-steps")
        self.batch_size = batch_size
        self.rows = rows
        self.micro_steps = micro_steps
        self._sizes = sizes
        self._seed = seed
        self._shuffle = shuffle
        self._strata = max(n for n in range(1, strata + 1) if batch_size % n == 0)
        if row_weight_N is None:
            row_weight_N = np.ones(len(sizes.positions_N))
        self._weight_N = np.asarray(row_weight_N, np.float64)
        self._rows_per_epoch = sum(count * times + drawn for _, count, times, drawn in self._repeats())
        if self._rows_per_epoch == 0:
            raise ValueError("an epoch over these row weights has no row")
        self.steps = steps_of_epochs(epochs, self.batches_per_epoch) if steps is None else steps
        self._known: tuple[int, np.ndarray, np.ndarray] | None = None
        ahead = self._needs_of_run()
        self._shapes = self._choose_shapes(ahead, buckets, shape_steps)
        taken = range(len(self._shapes)) if ahead is None else np.unique(self._shape_numbers(ahead))
        self.shapes = [self._shapes[number] for number in taken]

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(self._rows_per_epoch / self.batch_size)

    def batch(self, n: int) -> PlannedBatch:
        """A batch of the run; epochs follow one another.

        Args:
            n: its number, from 0 to `steps` - 1.
        """
        epoch, index = divmod(n, self.batches_per_epoch)
        rows, shape_numbers = self._epoch(epoch)
        return PlannedBatch(rows[index], self._shapes[shape_numbers[index]])

    def real_token_share(self) -> float:
        """Share of positions that are not padding, 0 to 1, in the first epoch (what the run takes of it)."""
        rows, shape_numbers = self._epoch(0)
        real = np.where(rows == FILLER, 0, self._sizes.positions_N[rows]).sum()
        padded = np.array([shape.positions for shape in self._shapes])[shape_numbers].sum() * self.rows
        return float(real / padded)

    def _repeats(self) -> list[tuple[float, int, int, int]]:
        """Of each weight: (weight, its rows, how often an epoch has all of them, how many once more)."""
        weights, counts = np.unique(self._weight_N, return_counts=True)
        return [
            (float(weight), int(count), *times_in_epoch(float(weight), int(count)))
            for weight, count in zip(weights, counts, strict=True)
        ]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows of each batch, number of its shape), of the batches that the run takes."""
        epoch = epoch if self._shuffle else 0
        known = self._known  # read once, since several threads ask
        if known is None or known[0] != epoch:
            batches = self._compose(epoch, self._seed)[: self.steps - epoch * self.batches_per_epoch]
            self._known = known = (epoch, batches, self._shape_numbers(self._needs(batches)))
        return known[1:]

    def _needs_of_run(self) -> np.ndarray | None:
        """[steps, 3], of one epoch if all are the same. None: too many to look at every batch."""
        if not self._shuffle:
            return self._needs(self._compose(0, self._seed))[: self.steps]
        if self.steps * self.batch_size > READ_AHEAD_ROWS:
            return None
        epochs = range(math.ceil(self.steps / self.batches_per_epoch))
        needs = [self._needs(self._compose(epoch, self._seed)) for epoch in epochs]
        return np.concatenate(needs)[: self.steps]

    def _compose(self, epoch: int, seed: int) -> np.ndarray:
        """[batches, batch_size]: the rows of each batch of an epoch, dealt over its rows of tokens."""
        draws = np.random.default_rng((seed, epoch))
        rows = self._rows_of_epoch(draws)
        per_stratum = self.batch_size // self._strata
        batches = np.full((self.batches_per_epoch, self._strata, per_stratum), FILLER, np.int64)
        begin = 0
        for stratum, size in enumerate(self._stratum_sizes()):
            groups = self._groups(rows[begin : begin + size], per_stratum, draws)
            begin += size
            # The last batch is the one that lacks rows, if the rows do not fill all batches.
            full = len(groups) - (FILLER in groups[-1])
            batches[:full, stratum] = draws.permutation(groups[:full])
            batches[full:, stratum] = groups[full:]
        if self._shuffle:
            batches = batches[draws.permutation(len(batches))]
        return self._dealt(batches.reshape(len(batches), -1))

    def _rows_of_epoch(self, draws: np.random.Generator) -> np.ndarray:
        """The rows that an epoch sees, each as often as it does, from long to short."""
        parts = []
        for weight, _, times, drawn in self._repeats():
            rows = np.flatnonzero(self._weight_N == weight)
            parts += [rows] * times
            if drawn > 0:
                parts.append(draws.choice(rows, drawn, replace=False))
        rows = draws.permutation(np.concatenate(parts))
        return rows[np.argsort(-self._sizes.length_N[rows], kind="stable")]

    def _groups(self, rows: np.ndarray, per_stratum: int, draws: np.random.Generator) -> np.ndarray:
        """[batches, per_stratum]: a stratum's rows in groups of about the same length, FILLER at the end."""
        # Lengths are blurred, so that rows of nearly the same length have other neighbours in every epoch.
        blurred = self._sizes.length_N[rows] * draws.uniform(1, 1 + JITTER, len(rows))
        rows = rows[np.argsort(-blurred, kind="stable")]
        fillers = np.full(self.batches_per_epoch * per_stratum - len(rows), FILLER)
        return np.concatenate([rows, fillers]).reshape(-1, per_stratum)

    def _stratum_sizes(self) -> np.ndarray:
        """Rows of each stratum of an epoch, the longest rows' first."""
        missing = self.batches_per_epoch * self.batch_size - self._rows_per_epoch
        full = self.batches_per_epoch * (self.batch_size // self._strata)
        return full - np.bincount(np.arange(missing) % self._strata, minlength=self._strata)

    def _dealt(self, batches: np.ndarray) -> np.ndarray:
        """The rows of each batch in the order of its rows of tokens.

        They are dealt over micro-steps first, so that which rows meet in one depends neither on the devices
        nor on the layout, and then over the rows of tokens of each.
        """
        of_micro_steps = _deal(batches, self._sizes.length_N, self.micro_steps)
        of_rows = _deal(
            of_micro_steps.reshape(len(batches) * self.micro_steps, -1),
            self._sizes.positions_N,
            self.rows // self.micro_steps,
        )
        return of_rows.reshape(len(batches), -1)

    def _needs(self, batches: np.ndarray) -> np.ndarray:
        """[batches, 3]: the smallest shape that holds each batch, before rounding."""
        is_filler = batches == FILLER
        of_rows = self._sizes.positions_N, self._sizes.tokens_N, self._sizes.longest_N
        positions, tokens, longest = (np.where(is_filler, 0, size_N[batches]) for size_N in of_rows)
        sums = [
            size.reshape(len(batches), self.rows, -1).sum(axis=2).max(axis=1) for size in (positions, tokens)
        ]
        return np.stack([*sums, longest.max(axis=1)], axis=1)

    def _choose_shapes(self, ahead: np.ndarray | None, buckets: int, shape_steps: float) -> list[Shape]:
        """Shapes from small to large; the last one holds every batch of the run.

        They are fitted to a run of seed 0. Where a batch of this run needs more, the last one is widened, by
        SPARE at a time and up to the bound.

        ahead: needs of all batches of the run. None: not known.
        """
        needs = self._needs(self._compose(0, seed=0))[: self.steps]
        lengths = self._choose_lengths(needs[:, 0], buckets, shape_steps)
        bound = self._bound()
        shapes = []
        for length in lengths:
            _, tokens, longest = needs[needs[:, 0] <= length].max(axis=0) * SPARE
            shape = Shape(length, _rounded(tokens), _rounded(longest))
            shapes.append(Shape(length, min(shape.tokens, bound.tokens), min(shape.longest, bound.longest)))
        last = bound if ahead is None else _widened(needs.max(axis=0), ahead.max(axis=0), bound)
        return [shape for shape in shapes[:-1] if not shape.holds(last)] + [last]

    def _choose_lengths(self, needs: np.ndarray, buckets: int, shape_steps: float) -> list[int]:
        """The lengths that cost the run least: its padded steps, and shape_steps for each length."""
        chosen, least = [], math.inf
        for count in range(1, buckets + 1):
            lengths = choose_lengths(needs, count)
            padded = np.array(lengths)[np.searchsorted(lengths, needs)].mean() / needs.mean()
            cost = padded * self.steps + shape_steps * len(lengths)
            if cost < least:
                chosen, least = lengths, cost
        return chosen

    def _bound(self) -> Shape:
        """A shape that no batch of any epoch exceeds."""
        sizes = self._stratum_sizes()
        starts = np.cumsum(sizes) - sizes
        # Rows of a fractional weight are counted as often as they may occur: the n-th longest of a part of
        # the rows is not longer than the n-th longest of all.
        counts = np.ceil(self._weight_N).astype(np.int64)
        # Where the prompt runs twice, a shorter row may take more positions, and so may one of the same
        # length: of these any may come last.
        from_long = np.lexsort((self._sizes.positions_N, -self._sizes.length_N))
        positions_N = np.repeat(self._sizes.positions_N[from_long], counts[from_long])
        most_from_here = np.maximum.accumulate(positions_N[::-1])[::-1]
        longest_of_strata = most_from_here[np.minimum(starts, len(most_from_here) - 1)]
        deals = np.arange(0, self.batch_size, self.rows)
        longest_of_deals = longest_of_strata[deals * self._strata // self.batch_size]
        most_tokens = -np.sort(-np.repeat(self._sizes.tokens_N, counts))[: len(deals)]
        return Shape(
            _rounded(longest_of_deals.sum()),
            _rounded(most_tokens.sum()),
            _rounded(self._sizes.longest_N.max()),
        )

    def _shape_numbers(self, needs: np.ndarray) -> np.ndarray:
        """The number of the first shape that holds each batch."""
        holds = (np.array(self._shapes)[None] >= needs[:, None]).all(axis=2)
        assert holds.any(axis=1).all(), "a batch beyond the bound of all batches"
        return holds.argmax(axis=1)


def _deal(batches: np.ndarray, size_N: np.ndarray, hands: int) -> np.ndarray:
    """[batches, hands, rows of each]: the rows of each batch, dealt from large to small.

    The hand that comes first in one deal comes last in the next.

    Args:
        batches: [batches, rows of each], FILLER among them.
        size_N: of each row.
        hands: divides the rows of a batch.
    """
    sizes = np.where(batches == FILLER, -1, size_N[batches])
    from_large = np.take_along_axis(batches, np.argsort(-sizes, axis=1, kind="stable"), axis=1)
    deals = from_large.reshape(len(batches), -1, hands)
    deals[:, 1::2] = deals[:, 1::2, ::-1]
    return deals.transpose(0, 2, 1)


def _rounded(length: float) -> int:
    return max(MULTIPLE, math.ceil(length / MULTIPLE) * MULTIPLE)


def _widened(fitted: np.ndarray, needed: np.ndarray, bound: Shape) -> Shape:
    """`fitted` times SPARE, once or as often as it takes to hold what is needed, up to the bound."""
    sizes = []
    for size, need, limit, factor in zip(fitted, needed, bound, SPARE, strict=True):
        size = size * factor
        while _rounded(size) < need:
            size *= factor
        sizes.append(min(_rounded(size), limit))
    return Shape(*sizes)


def choose_lengths(needs: np.ndarray, count: int) -> list[int]:
    """The lengths that pad sequences least, if each takes the smallest length that holds it.

    Dynamic programming over the sorted needs: O(count * CUTS**2).

        needs    3 60 61        count 1: 64        count 2: 8 64

    Args:
        needs: length of each sequence.
        count: lengths at the most.

    Returns:
        Multiples of MULTIPLE, from small to large.
    """
    sorted_needs = np.sort(np.asarray(needs))
    ends = np.unique(np.linspace(1, len(sorted_needs), min(CUTS, len(sorted_needs))).round().astype(int))
    lengths = np.array([_rounded(need) for need in sorted_needs[ends - 1]])
    # best[e]: least padded size of the first ends[e] needs, chains[e]: the lengths that give it. Each round
    # allows one length more.
    best = lengths * ends
    chains = [[e] for e in range(len(ends))]
    for _ in range(count - 1):
        new_best, new_chains = best.copy(), list(chains)
        for e in range(1, len(ends)):
            options = best[:e] + lengths[e] * (ends[e] - ends[:e])
            k = int(options.argmin())
            if options[k] < new_best[e]:
                new_best[e] = options[k]
                new_chains[e] = [*chains[k], e]
        best, chains = new_best, new_chains
    return sorted({int(length) for length in lengths[chains[-1]]})


class PlannedPrompts(NamedTuple):
    """A batch of prompts that are answered together."""

    rows: np.ndarray
    """At most batch_size row numbers."""
    length: int
    """Of the padded prompts, tokens."""


def plan_prompts(prompt_lengths_N: np.ndarray, *, batch_size: int, buckets: int) -> list[PlannedPrompts]:
    """Batches of prompts of similar length, padded to a few lengths.

    Args:
        prompt_lengths_N: tokens of each prompt.
        batch_size: prompts of a batch.
        buckets: lengths at the most.
    """
    order = np.argsort(prompt_lengths_N, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    longest = np.array([prompt_lengths_N[rows].max() for rows in batches])
    lengths = np.array(choose_lengths(longest, buckets))
    padded = lengths[np.searchsorted(lengths, longest)]
    return [PlannedPrompts(rows, int(length)) for rows, length in zip(batches, padded, strict=True)]
