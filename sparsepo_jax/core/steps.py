"""How long a stage is: rows of an epoch, and steps."""

import math


def times_in_epoch(weight: float, rows: int) -> tuple[int, int]:
    """How often an epoch has all rows of a weight, and how many of them once more.

    2.5 with 10 rows: twice, and 5 of them a third time.

    Args:
        weight: how often an epoch sees each row.
        rows: that have this weight.
    """
    return int(weight), round(rows * (weight % 1.0))


def steps_of_epochs(epochs: float, batches_per_epoch: int) -> int:
    """The number of steps of some epochs, rounded up; at least 1.

    Args:
        epochs: may be a fraction.
        batches_per_epoch: of the batch plan.
    """
    return max(1, math.ceil(epochs * batches_per_epoch - 1e-9))  # 0.1 x 30 is 3, not 4
