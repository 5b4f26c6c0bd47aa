"""How long a stage is."""

import math


def steps_of_epochs(epochs: float, batches_per_epoch: int) -> int:
    """The number of steps of some epochs, rounded up; at least 1.

    Args:
        epochs: may be a fraction.
        batches_per_epoch: of the batch plan.
    """
    return max(1, math.ceil(epochs * batches_per_epoch - 1e-9))  # 0.1 x 30 is 3, not 4
