"""How long a stage is."""

import math


def steps_of_epochs(epochs: float, batches_per_epoch: int) -> int:
    """Steps of so many epochs, a fraction rounded up; 1 at least."""
    return max(1, math.ceil(epochs * batches_per_epoch - 1e-9))  # 0.1 x 30 is 3, not 4
