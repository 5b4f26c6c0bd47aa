"""Whether a long run stays as it began: memory, seconds a step and compiled programs, checkpoints included.

    python benchmarks/long_run.py [--steps N]

Runs the real program (stage po of configs/quickstart.yaml, from random weights, 2000 steps by default) as a
process of its own and looks at its resident memory twice a second. A tenth of the steps is warm-up. Prints
the last tenth over the first tenth after it; writes results/long_run-DEVICE.json and .svg.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import figures
from work import save_result

ROOT = Path(__file__).parent.parent
Points = list[tuple[int, float]]  # (step, value)


class Record(NamedTuple):
    """step_s: seconds a step. resident_mb: memory of the process. programs: compiled after warm-up."""

    step_s: Points
    resident_mb: Points
    programs: list[int]


def resident_mb(pid: int) -> float | None:
    """None: the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return None


def train(steps: int, directory: Path, every: int) -> Record:
    command = [
        sys.executable,
        "-m",
        "sparsepo_jax.main",
        "--config",
        str(ROOT / "configs/quickstart.yaml"),
        "stages=[po]",
        f"output_dir={directory}/run",
        f"po.steps={steps}",
        f"logging.every_steps={every}",
        f"checkpoint.every_steps={steps // 10}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = []  # (time, MB)
    while process.poll() is None:
        mb = resident_mb(process.pid)
        if mb is not None:
            memory.append((time.time(), mb))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.stderr.read())
    log = directory / "run/metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    start_s = log.stat().st_mtime - rows[-1]["time_s"]  # the log counts from its own start
    step_s = [(row["step"], (row["time_s"] - before["time_s"]) / every) for before, row in pairwise(rows)]
    memory_mb = [(row["step"], memory_at(start_s + row["time_s"], memory)) for row in rows]
    programs = sorted({row["programs"] for row in rows if row["step"] > steps // 10})
    return Record(step_s, memory_mb, programs)


def memory_at(moment_s: float, memory: Sequence[tuple[float, float]]) -> float:
    """The last value before a moment."""
    return next((mb for when_s, mb in reversed(memory) if when_s <= moment_s), memory[0][1])


def median_of_tenth(points: Points, first: int, steps: int) -> float:
    return statistics.median(x for step, x in points if first < step <= first + steps // 10)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    began_s = time.time()
    with tempfile.TemporaryDirectory() as directory:
        record = train(steps, Path(directory), every=max(1, steps // 100))
    tenth = steps // 10
    step_s, last_step_s = (median_of_tenth(record.step_s, first, steps) for first in (tenth, steps - tenth))
    mb, last_mb = (median_of_tenth(record.resident_mb, first, steps) for first in (tenth, steps - tenth))
    print(
        f"{steps} steps in {time.time() - began_s:.0f} s; last tenth over the second: seconds a step "
        f"{last_step_s / step_s:.3f} ({1e3 * step_s:.1f} to {1e3 * last_step_s:.1f} ms), resident memory "
        f"{last_mb / mb:.3f} ({mb:.0f} to {last_mb:.0f} MB); programs after warm-up: {record.programs}"
    )
    result = {
        "steps": steps,
        "last_over_second_tenth": {"step_s": last_step_s / step_s, "resident_mb": last_mb / mb},
        "programs_after_warm_up": record.programs,
        "step_s": record.step_s,
        "resident_mb": record.resident_mb,
    }
    path = save_result("long_run", result)
    print(path)
    figures.draw_result(path, path.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
