"""Whether a long run stays as it began: memory, seconds a step and compiled programs over 2,000 steps.

    python benchmarks/long_run.py [--steps N]

Runs the real program (stage po of configs/quickstart.yaml, from random weights, checkpoints included) as a
process of its own and samples its resident memory twice a second. The first tenth of the steps is warm-up.
Prints the last tenth over the second; kept in results/long_run-DEVICE.json and .svg.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import svg
from work import save_result

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT, GAP = 640, 160, 50  # pixels


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process; None if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return None


def draw(panels: dict[str, list[tuple[float, float]]]) -> str:
    """An SVG page with one panel for each series, its axis from zero."""
    parts, left = [], GAP + 20
    for number, (name, points) in enumerate(panels.items()):
        top, most, last = GAP / 2 + number * (HEIGHT + GAP), 1.1 * max(y for _, y in points), points[-1][0]
        parts += [
            svg.frame(left, top, WIDTH, HEIGHT),
            svg.line(
                [(left + WIDTH * x / last, top + HEIGHT * (1 - y / most)) for x, y in points], 'stroke="#c22"'
            ),
            svg.text(left, top - 6, name, "start"),
            svg.text(left - 6, top + 10, f"{most:.3g}", "end"),
            svg.text(left - 6, top + HEIGHT, "0", "end"),
            svg.text(left + WIDTH, top + HEIGHT + 14, f"{last:.0f}", "end"),
        ]
    return svg.page(left + WIDTH + 20, len(panels) * (HEIGHT + GAP) + GAP / 2, parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    every = max(1, options.steps // 100)
    with tempfile.TemporaryDirectory() as place:
        command = [
            sys.executable,
            "-m",
            "sparsepo_jax.main",
            "--config",
            str(ROOT / "configs/quickstart.yaml"),
            "stages=[po]",
            f"output_dir={place}/run",
            f"po.steps={options.steps}",
            f"logging.every_steps={every}",
            f"checkpoint.every_steps={options.steps // 10}",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        began_s, memory = time.time(), []
        while process.poll() is None:
            if (mb := resident_mb(process.pid)) is not None:
                memory.append((time.time(), mb))
            time.sleep(0.5)
        if process.returncode:
            sys.exit(process.stderr.read())
        log = Path(place, "run/metrics.jsonl")
        rows, ended_s = [json.loads(line) for line in log.read_text().splitlines()], log.stat().st_mtime
    ends_s = [(row["step"], row["time_s"]) for row in rows]
    step_s = [(step, (end - before) / every) for (_, before), (step, end) in itertools.pairwise(ends_s)]
    start_s = ended_s - ends_s[-1][1]  # the log counts from its own start
    mb_at = [
        (step, next((mb for when, mb in reversed(memory) if when <= start_s + end), memory[0][1]))
        for step, end in ends_s
    ]
    tenth = options.steps // 10

    def of(points: list[tuple[int, float]], first: int) -> float:
        return statistics.median(y for step, y in points if first < step <= first + tenth)

    ratios = {
        "step_s": of(step_s, options.steps - tenth) / of(step_s, tenth),
        "resident_mb": of(mb_at, options.steps - tenth) / of(mb_at, tenth),
    }
    programs = sorted({row["programs"] for row in rows if row["step"] > tenth})
    print(
        f"{options.steps} steps in {time.time() - began_s:.0f} s; last tenth over the second: seconds a "
        f"step {ratios['step_s']:.3f} "
        f"({1e3 * of(step_s, tenth):.1f} to {1e3 * of(step_s, options.steps - tenth):.1f} ms), resident "
        f"memory {ratios['resident_mb']:.3f} "
        f"({of(mb_at, tenth):.0f} to {of(mb_at, options.steps - tenth):.0f} MB); programs after warm-up: "
        f"{programs}"
    )
    path = save_result(
        "long_run",
        {
            "steps": options.steps,
            "last_over_second_tenth": ratios,
            "programs_after_warm_up": programs,
            "step_s": step_s,
            "resident_mb": mb_at,
        },
    )
    path.with_suffix(".svg").write_text(
        draw({"milliseconds a step": [(step, 1e3 * y) for step, y in step_s], "resident memory, MB": mb_at})
    )
    print(path, path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
