"""How much sooner a second start reaches its first step, because compiled programs are kept on disk.

    python benchmarks/second_start.py [--rounds N] [--layers L --width D]

Default: 3 rounds, 2 layers of width 64. The real program (stage po of configs/quickstart.yaml, two steps from
random weights), each start a process of its own. In each round first with an empty cache
(compute.compile_cache), then with the cache that this left. Start: from the beginning of the process, imports
and data included, until the first step is logged. Compilation: what the program reports for compiling its
first step, or for reading it back.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from work import save_result

ROOT = Path(__file__).parent.parent
COMPILED = re.compile(r"step 1 compiled program 1 in ([\d.]+) s")


def start(output: Path, cache: Path, layers: int, width: int) -> dict[str, float]:
    """Seconds of one start."""
    shape = [
        f"policy.config.n_layer={layers}",
        f"policy.config.n_embd={width}",
        f"policy.config.n_head={max(1, width // 64)}",
    ]
    command = [
        sys.executable,
        "-m",
        "sparsepo_jax.main",
        "--config",
        str(ROOT / "configs/quickstart.yaml"),
        "stages=[po]",
        "po.steps=2",
        "logging.every_steps=1",
        f"output_dir={output}",
        f"compute.compile_cache={cache}",
        f"data.cache_dir={output}-data",
        *shape,
    ]
    began_s, log, first_s = time.time(), output / "metrics.jsonl", None
    with (output.parent / f"{output.name}.txt").open("w+") as output_file:
        process = subprocess.Popen(command, stdout=output_file, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None:
            if first_s is None and log.exists() and log.stat().st_size:
                first_s = time.time() - began_s
            time.sleep(0.02)
        output_file.seek(0)
        text = output_file.read()
    found = COMPILED.search(text)
    if process.returncode or found is None:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{text}")
    return {
        "start_s": first_s if first_s is not None else log.stat().st_mtime - began_s,
        "compile_s": float(found[1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    rows = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as place:
        start(
            Path(place, "warm"), Path(place, "warm-cache"), options.layers, options.width
        )  # the first start also reads the libraries' files from disk, so it does not count
        for number in range(options.rounds):
            for name, found in rows.items():
                found.append(
                    start(
                        Path(place, f"{name}{number}"),
                        Path(place, f"cache{number}"),
                        options.layers,
                        options.width,
                    )
                )
        programs = [path.stat().st_size for path in Path(place, "cache0").rglob("*") if path.is_file()]
    medians = {}
    for name, found in rows.items():
        for what in ("start_s", "compile_s"):
            values = [row[what] for row in found]
            medians[name, what] = statistics.median(values)
            label = {"start_s": "until the first step is done", "compile_s": "of these compiling it"}[what]
            print(
                f"{name:<7}{label:<29}{medians[name, what]:7.2f} s ({min(values):.2f} to {max(values):.2f})"
            )
    ratios = {what: medians["second", what] / medians["first", what] for what in ("start_s", "compile_s")}
    print(
        f"second over first: start {ratios['start_s']:.2f}, compiling {ratios['compile_s']:.2f}; "
        f"{len(programs)} files of {sum(programs) / 1e6:.1f} MB"
    )
    print(
        save_result(
            "second_start",
            {
                "layers": options.layers,
                "width": options.width,
                "rows": rows,
                "second_over_first": ratios,
                "cache_mb": sum(programs) / 1e6,
            },
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
