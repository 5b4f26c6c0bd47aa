"""What a GPU does with this: one command, under nine minutes on an H100 or H200, no network.

    python benchmarks/gpu.py [--only PART[/NAME] ...] [--data PAIRS.jsonl.gz] [--budget SECONDS] [--out DIR]

Our steps of the first parts compile side by side before anything is timed, on the processor (compile_s is
that time); then each job has the machine for itself. Parts, by importance; what does not fit into the budget
(default 540 s) is left out and said so:

    steps        our step as it comes in a run of 10,000 steps: Pythia-1.4B and Qwen3-1.7B shapes, random
                 weights, 8 and 16 pairs of 512+256 tokens: seconds, share of the measured matrix rate,
                 memory, kernels by kind
    trl          TRL's DPOTrainer on the same (bfloat16 autocast; and weights and Adam in bfloat16)
    golden       the stage score on official checkpoints in float32: largest differences (not timed, and
                 runs while others compile)
    lora         adapters on a Llama-3-8B shape in bfloat16
    data         one epoch over --data through the command, Pythia-410M shape: pairs/s and tokens/s
    generation   greedy, 32 rows of 256 new tokens, ours and transformers'
    torch        plain PyTorch SparsePO (autocast)
    quickstart   configs/quickstart.yaml through the command
    options      our step with each compute.attention, remat and unroll that there is

The figures are kept in DIR/gpu-CARD.json, by default in benchmarks/results, as each job ends; rows that are
measured again replace those there. trl, torch, datasets and transformers must be installed for the peers'
parts. --tiny tries all of it on any machine, in a minute or two, and keeps nothing unless --out is given.
Exits with 1 if a job failed.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from ahead import Ahead
from gpu_bench import REPOSITORY, TINY, Bench, Job, Size
from gpu_parts import all_jobs, measure_ceilings
from work import RESULTS, CandidateEnded

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "trl")
GRACE = 3.0  # a job may take so many times what is expected of it, if there is time
AHEAD = 0.55  # of the time: when what compiles ahead is not ready then, it is ended
STAGGER_S = 25.0  # between those that compile ahead: XLA tries out products on the device at first


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="PART[/NAME]", help="a name may be cut short")
    parser.add_argument("--data", type=Path, metavar="FILE", help="preference pairs; without it no part data")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="what the processes say (default: temporary)"
    )
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data: there is no file {options.data}")
    options.data = options.data and options.data.resolve()
    return options


def wanted(jobs: list[Job], only: list[str] | None) -> list[Job]:
    """Those that are asked for. Ends the program if something asked for is not there."""
    if only is None:
        return jobs
    for choice in only:
        if not any(is_chosen(job, choice) for job in jobs):
            known = ", ".join(dict.fromkeys(job.part for job in jobs))
            sys.exit(f"--only: there is no {choice}; parts: {known} (data needs --data)")
    return [job for job in jobs if any(is_chosen(job, choice) for choice in only)]


def is_chosen(job: Job, choice: str) -> bool:
    return choice == job.part or ("/" in choice and f"{job.part}/{job.name}".startswith(choice))


class Results:
    """The result file: facts about the machine, and rows by part."""

    def __init__(self, directory: Path, ceilings: dict[str, Any]):
        card = ceilings["card"].replace(" ", "-").lower()
        self.path = directory / f"gpu-{card}.json"
        before = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.parts: dict[str, list[dict[str, Any]]] = before.get("parts", {})
        self.left_out: list[dict[str, str]] = []
        self._about = {
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            **ceilings,
            "versions": {name: found for name in PACKAGES if (found := installed(name)) is not None},
        }

    def add(self, part: str, row: dict[str, Any]) -> None:
        others = [kept for kept in self.parts.get(part, []) if kept["name"] != row["name"]]
        self.parts[part] = [*others, row | {"date": self._about["date"]}]
        self.write()

    def leave_out(self, job: Job, why: str) -> None:
        print(f"{job.part}: {job.name}: {why}", flush=True)
        self.left_out.append({"part": job.part, "name": job.name, "why": why})
        self.write()

    def write(self) -> None:
        content = {**self._about, "parts": self.parts, "left_out": self.left_out}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def make_bench(options: argparse.Namespace, directory: Path) -> Bench:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Several processes hold the device: each takes what it needs of its share of all, which is the same.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }
    log = options.log or directory / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    size = TINY if options.tiny else Size()
    return Bench(size, options.tiny, directory, environment, log, options.data, {}, Ahead())


def run_jobs(jobs: list[Job], bench: Bench, results: Results, ends_s: float) -> bool:
    """Whether all went well. ends_s: on time.monotonic's clock."""
    began_s = time.monotonic()
    compiling = start_ahead(jobs, bench, ends_s)
    try:
        well = [run_job(job, bench, results, ends_s) for job in jobs if not job.is_timed]
        bench.ahead.wait()
        print(f"ready after {time.monotonic() - began_s:.0f} s; {compiling} compiled ahead", flush=True)
        well += [run_job(job, bench, results, ends_s, compiling) for job in jobs if job.is_timed]
    finally:
        bench.ahead.close()
    return all(well)


def start_ahead(jobs: list[Job], bench: Bench, ends_s: float) -> int:
    """Starts the processes of jobs that have some ahead; how many of them compile."""
    limit_s = AHEAD * (ends_s - time.monotonic())
    compiling = 0
    for job in jobs:
        if job.ahead is None:
            continue
        process = job.ahead(bench)
        delay_s = compiling * STAGGER_S if job.compiles and not bench.is_tiny else 0.0
        start = functools.partial(bench.start, limit_s - delay_s, *process)
        bench.ahead.begin(process, start, delay_s)
        compiling += job.compiles
    return compiling


def run_job(job: Job, bench: Bench, results: Results, ends_s: float, compiling: int = 0) -> bool:
    """Whether it went well. compiling: how many compiled ahead, this one among them if it did."""
    began_s = time.monotonic()
    left_s = ends_s - began_s
    if job.expected_s > left_s:
        results.leave_out(job, f"needs about {job.expected_s:.0f} s, {max(left_s, 0):.0f} are left")
        return True
    beside = {"compiled_beside": compiling - 1} if job.compiles else {}
    well = True
    try:
        for row in job.work(bench, min(left_s, GRACE * job.expected_s) if job.is_timed else AHEAD * left_s):
            results.add(job.part, row | beside)
            print(line_of(job.part, row), flush=True)
    except (CandidateEnded, subprocess.TimeoutExpired) as error:
        well = False
        seconds = time.monotonic() - began_s
        results.leave_out(job, f"failed after {seconds:.0f} s: {str(error)[:300]}; {last_line(bench)}")
    print(f"    ({time.monotonic() - began_s:.0f} s)", flush=True)
    return well


def last_line(bench: Bench) -> str:
    """The last thing that the processes said."""
    return next((line for line in reversed(bench.log.read_text().splitlines()) if line.strip()), "")[:300]


def line_of(part: str, row: dict[str, Any]) -> str:
    """A row for a person: what there is of seconds, shares, memory and rates."""
    columns = (
        ("step_s", "{:.3f} s/step", 1),
        ("seconds", "{:.0f} s", 1),
        ("mfu", "MFU {:.3f}", 1),
        ("device_peak_mb", "{:.1f} GB peak", 1e-3),
        ("temporary_bytes", "{:.1f} GB temporaries", 1e-9),
        ("compile_s", "compiled in {:.0f} s", 1),
        ("largest", "largest difference {:.1e}", 1),
        ("auroc_reward", "AUROC {:.3f}", 1),
        ("pairs_per_s", "{:.1f} pairs/s", 1),
        ("tokens_per_s", "{:,.0f} tokens/s", 1),
    )
    figures = [text.format(row[key] * factor) for key, text, factor in columns if row.get(key) is not None]
    kernels = row.get("kernels", {}).get("seconds", {})
    if kernels:
        figures.append("ms: " + ", ".join(f"{kind} {1e3 * s:.1f}" for kind, s in kernels.items()))
    return f"{part:<11}{row['name']:<34}" + "; ".join(figures)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    ends_s = time.monotonic() + options.budget
    jax.config.update("jax_platforms", "cpu")  # this process leaves the device to those that it starts
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        bench = make_bench(options, directory)
        jobs = wanted(all_jobs(bench.size, options.data), options.only)
        measure_ceilings(bench, limit_s=120)
        out = options.out or (directory / "results" if options.tiny else RESULTS)
        results = Results(out, bench.ceilings)
        products, copies = (bench.ceilings[name] / 1e12 for name in ("matrix_rate", "copy_rate"))
        print(
            f"{bench.ceilings['card']}: large products {products:.0f} TFLOP/s, large copies {copies:.2f} TB/s"
        )
        well = run_jobs(jobs, bench, results, ends_s)
        results.write()
        print(summary(results))
    print(results.path)
    return 0 if well else 1


def summary(results: Results) -> str:
    """All rows of the file, shortly, and what was left out."""
    lines = [line_of(part, row | {"kernels": {}}) for part, rows in results.parts.items() for row in rows]
    left_out = [f"left out: {item['part']}: {item['name']}: {item['why']}" for item in results.left_out]
    return "\n".join(["", *lines, *left_out])


if __name__ == "__main__":
    sys.exit(main())
