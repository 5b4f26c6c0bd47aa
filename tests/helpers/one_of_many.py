"""One process of a run: the real program, which records the rows it fetches and may send itself a signal.

    python one_of_many.py RECORDS ARGUMENTS...

RECORDS: a file of one line per batch of training. Two environment variables:

    AT_BATCH="5 SIGTERM"      sends itself the signal as it fetches the fifth batch of training
    AT_BATCH="0 SIGTERM 3"    as it fetches the third of an evaluation, or of the reference's scores
    SLEEP="0.3"               seconds to wait at each batch from then on; tiny steps would otherwise be over
                              before the other processes hear of the signal
"""

import json
import os
import signal
import sys
import time

from sparsepo_jax import main
from sparsepo_jax.stages import scores, training

make_batches = training.make_batches
trained, name, scored, *_ = (os.environ.get("AT_BATCH", "0 SIGTERM") + " 0").split()
AT_TRAINED, AT_SCORED = int(trained), int(scored)  # numbers from 1; 0: never
SIGNAL = getattr(signal, name)
WAIT_S = float(os.environ.get("SLEEP", "0.3"))


def signalled(batches, at: int, first: int = 1):
    """The batches, numbered from `first`; sends the signal as number `at` is fetched."""
    for number, batch in enumerate(batches, first):
        if number == at:
            os.kill(os.getpid(), SIGNAL)
        if 0 < at <= number:
            time.sleep(WAIT_S)
        yield batch


def recorded(table, plan, *, start, stop, **settings):
    """Takes the place of make_batches."""
    batches = make_batches(table, plan, start=start, stop=stop, **settings)
    if stop == plan.batches_per_epoch:  # evaluation; training goes through its data more than once
        yield from signalled(batches, AT_SCORED)
        return
    with open(sys.argv[1], "a") as file:
        for number, batch in enumerate(signalled(batches, AT_TRAINED, start + 1), start):
            rows = batch.row_B[batch.weight_B > 0].tolist()
            file.write(json.dumps({"batch": number, "rows": rows}) + "\n")
            file.flush()
            yield batch


scores.make_batches = training.make_batches = recorded
sys.exit(main.main(sys.argv[2:]))
