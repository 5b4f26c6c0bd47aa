"""What keeping freed memory saves a small step on CPU: page faults, the system's time, the step's time.

    python benchmarks/page_faults.py [--rounds N] [--steps N]

Default: 9 rounds of 60 steps. SparsePO's step at the quickstart's shapes, 32 pairs of 8 + 30 tokens. A round
is two processes, one after the other: what the C library does by itself, and core/heap. The times of a round
make its ratio. The result is kept in results/page_faults-DEVICE.json, docs/results/speed.md shows it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from shapes import gpt2
from work import OurStep, random_batch, save_result

from sparsepo_jax.core.heap import keep_freed_blocks

WARM = 5
HOW = ("given back", "kept")


def measure(how: str, steps: int) -> dict[str, float]:
    """A step's median seconds, and its mean page faults and seconds of the system."""
    if how == "kept" and not keep_freed_blocks():
        sys.exit("this C library keeps freed memory as it likes")
    shape = gpt2(167, 96, width=64, layers=2) | {"n_head": 4}
    step = OurStep(shape, random_batch(32, 8, 30, 167))
    for _ in range(WARM):
        step()
    before, times_s = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(steps):
        began_s = time.perf_counter()
        step()
        times_s.append(time.perf_counter() - began_s)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step_s": statistics.median(times_s),
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "system_s": (after.ru_stime - before.ru_stime) / steps,
        "peak_mb": after.ru_maxrss / 1e3,
    }


def measured_apart(how: str, steps: int) -> dict[str, float]:
    """The same in a process of its own: the C library does not forget what it was told."""
    command = [sys.executable, __file__, "--alone", how, "--steps", str(steps)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--alone", choices=HOW, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options.alone, options.steps)))
        return 0
    rounds = []
    for _ in range(options.rounds):
        rounds.append({how: measured_apart(how, options.steps) for how in HOW})
        print(json.dumps(rounds[-1]), flush=True)
    ratios = [of["kept"]["step_s"] / of["given back"]["step_s"] for of in rounds]
    medians = {
        how: {name: statistics.median(of[how][name] for of in rounds) for name in rounds[0][how]}
        for how in HOW
    }
    result = {
        "command": "python benchmarks/page_faults.py",
        "rounds": rounds,
        "medians": medians,
        "kept_over_given_back": {"median": statistics.median(ratios), "all": ratios},
    }
    print(save_result("page_faults", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
