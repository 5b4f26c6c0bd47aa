"""One process of a run, for tests: the real program, which writes down the rows that it is given, and does to itself what the test wants.

python one_of_many.py RECORDS ARGUMENTS...        AT_BATCH="5 SIGTERM": sends itself the signal as it fetches the fifth batch of training
                                                  AT_BATCH="0 SIGTERM 3": as it fetches the third of some evaluation, or of the reference's scores
"""

import json
import os
import signal
import sys
import time

from sparsepo_jax import main
from sparsepo_jax.stages import scores, training

make_batches = training.make_batches
at, what, at_scored = (os.environ.get("AT_BATCH", "0 SIGTERM") + " 0").split()[:3]


def recorded(table, plan, *, start, stop, **settings):
    batches = make_batches(table, plan, start=start, stop=stop, **settings)
    if stop == plan.batches_per_epoch:  # evaluation; training goes through its data more than once
        for number, batch in enumerate(batches, 1):
            if number == int(at_scored):
                os.kill(os.getpid(), getattr(signal, what))
            time.sleep(0.3 * (0 < int(at_scored) <= number))
            yield batch
        return
    with open(sys.argv[1], "a") as file:
        for number, batch in enumerate(batches, start):
            if number + 1 == int(at):
                os.kill(os.getpid(), getattr(signal, what))
            time.sleep(
                float(os.environ.get("SLEEP", "0.3")) * (0 < int(at) <= number + 1)
            )  # tiny steps would be over before the others hear of it
            file.write(json.dumps({"batch": number, "rows": batch.row_B[batch.weight_B > 0].tolist()}) + "\n")
            file.flush()
            yield batch


scores.make_batches = training.make_batches = recorded
sys.exit(main.main(sys.argv[2:]))
