"""The sandbox against HumanEval: do canonical solutions pass, and are published samples judged as labelled?

    python benchmarks/humaneval_labels.py DIR [--limit N] [--workers 2]

DIR holds HumanEval.jsonl.gz (task_id, prompt, entry_point, canonical_solution, test) and, optionally,
codegen16b_labelled.jsonl.gz (task_id, completion, passed: run elsewhere with 4 s and 1 GiB). --limit takes N
samples, evenly spaced. Prints what is judged otherwise and why, and writes results/humaneval_labels-cpu.json
when nothing is left out. Exits with 1 if a canonical solution fails.
"""

import argparse
import datetime
import gzip
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

from sparsepo_jax.sandbox.code_tests import program_of
from sparsepo_jax.sandbox.parent import SandboxLimits, guards, run_programs

RESULT = Path(__file__).parent / "results" / "humaneval_labels-cpu.json"
CHUNK = 200


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def judge(programs: list[str], limits: SandboxLimits, workers: int) -> list:
    outcomes, began_s = [], time.monotonic()
    for first in range(0, len(programs), CHUNK):
        outcomes += run_programs(programs[first : first + CHUNK], limits, workers)
        print(
            f"\r{len(outcomes)} of {len(programs)}, {time.monotonic() - began_s:.0f} s",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parsed = parser.parse_args()
    limits = SandboxLimits(time_s=4.0, memory_mb=1024)
    problems = {row["task_id"]: row for row in read(parsed.dir / "HumanEval.jsonl.gz")}
    labelled_path = parsed.dir / "codegen16b_labelled.jsonl.gz"
    samples = read(labelled_path) if labelled_path.exists() else []
    complete = parsed.limit is None or parsed.limit >= len(samples)
    samples = samples if complete else samples[:: -(-len(samples) // parsed.limit)]

    def program(task_id: str, completion: str) -> str:
        return program_of(problems[task_id], problems[task_id]["prompt"], completion)

    began_s = time.monotonic()
    canonical = judge(
        [program(name, row["canonical_solution"]) for name, row in problems.items()], limits, parsed.workers
    )
    failed = [
        f"{name}: {outcome.why}"
        for name, outcome in zip(problems, canonical, strict=True)
        if not outcome.passed
    ]
    print(f"canonical solutions: {len(problems) - len(failed)} of {len(problems)} pass", *failed, sep="\n  ")
    outcomes = judge([program(row["task_id"], row["completion"]) for row in samples], limits, parsed.workers)
    seconds = time.monotonic() - began_s
    other = [
        {"sample": n, "task_id": row["task_id"], "label": row["passed"], "why": outcome.why}
        for n, (row, outcome) in enumerate(zip(samples, outcomes, strict=True))
        if outcome.passed != row["passed"]
    ]
    if samples:
        passing = sum(row["passed"] for row in samples)
        print(
            f"labelled samples: {len(samples) - len(other)} of {len(samples)} judged as labelled ({passing} "
            "labelled as passing)"
        )
        for sample in other:
            print(
                f"  {sample['task_id']}, sample {sample['sample']}: labelled "
                f"{'passed' if sample['label'] else 'failed'}, now {sample['why'] or 'passed'}"
            )
        kinds = Counter(outcome.why.split(":")[0] or "passed" for outcome in outcomes)
        print("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    count = len(problems) + len(samples)
    print(
        f"{count} programs in {seconds:.0f} s, {1000 * seconds / count:.0f} ms each with {parsed.workers} "
        f"workers; guards: {', '.join(guards()) or 'none'}"
    )
    if complete and samples:
        RESULT.write_text(
            json.dumps(
                {
                    "date": datetime.date.today().isoformat(),
                    "python": platform.python_version(),
                    "kernel": platform.release(),
                    "guards": guards(),
                    "time_s": limits.time_s,
                    "memory_mb": limits.memory_mb,
                    "canonical": len(problems),
                    "canonical_passed": len(problems) - len(failed),
                    "samples": len(samples),
                    "labelled_passed": passing,
                    "as_labelled": len(samples) - len(other),
                    "otherwise": other,
                    "outcomes": dict(kinds.most_common()),
                    "seconds": round(seconds, 1),
                    "workers": parsed.workers,
                },
                indent=1,
            )
            + "\n"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
