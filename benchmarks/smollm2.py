"""A model that can write, on real preferences: our SparsePO and DPO beside TRL's DPO, on the same pairs.

    python benchmarks/smollm2.py MODEL PAIRS.json.gz [--steps 24] [--pairs 8] [--length 256] [--rate 1e-5] \\
        [--trl PYTHON]

MODEL: SmolLM2-135M-Instruct as a Hugging Face directory. PAIRS: rows of instruction, input, chosen and
rejected, such as rasbt/instruction_preference (polite and rude answers). A tenth of the rows is held out. The
sides run one after the other, each in a process of its own, float32, with nothing compiled before. Reported:
seconds from the start to the end of the first step, seconds of each later step, and held-out accuracy. --trl:
a Python with trl and torch (default: this one).
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from work import save_result

HERE = Path(__file__).parent
MOST_EVALUATED = 96  # held-out pairs


def message_pairs(path: str) -> list[dict]:
    with gzip.open(path, "rt") as file:
        rows = json.load(file)
    pairs = []
    for row in rows:
        if not row["chosen"].strip() or not row["rejected"].strip() or row["chosen"] == row["rejected"]:
            continue
        request = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        answers = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        pairs.append({"prompt": [{"role": "user", "content": request}]} | answers)
    return pairs


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ours(objective: str, directory: Path, options: argparse.Namespace, train: str, held_out: str) -> dict:
    """Runs our side: seconds from the run's own log, and the figures of its summary."""
    output = directory / objective
    config = {
        "stages": ["po", "eval"],
        "output_dir": str(output),
        "policy": {"path": options.model},
        "data": {"train": [{"path": train}], "eval": [{"path": held_out}], "max_length": options.length},
        "objective": {"kind": objective, "beta": options.beta},
        "po": {
            "steps": options.steps,
            "batch_size": options.pairs,
            "optimizer": {"learning_rate": options.rate},
        },
        "evaluation": {"batch_size": options.pairs},
        "logging": {"every_steps": 1, "trackers": []},
        "compute": {"dtype": "float32"},
    }
    file = directory / f"{objective}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    environment = os.environ | {"XDG_CACHE_HOME": str(directory / f"cache_{objective}")}
    began_s, first_step_s = time.perf_counter(), None
    running = subprocess.Popen(
        [sys.executable, "-m", "sparsepo_jax.main", "--config", str(file)], env=environment
    )
    metrics = output / "metrics.jsonl"
    while running.poll() is None:
        if first_step_s is None and metrics.exists() and "\n" in metrics.read_text():
            first_step_s = time.perf_counter() - began_s
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"{objective}: ended with {running.returncode}")
    ends_s = [json.loads(line)["time_s"] for line in metrics.read_text().splitlines()]
    summary = json.loads((output / "summary.json").read_text())
    return {
        "first_step_s": first_step_s,
        "step_s": (ends_s[-1] - ends_s[0]) / (len(ends_s) - 1),
        "accuracy": summary["after"]["accuracy"],
        "accuracy_unmasked": summary["after"]["accuracy_unmasked"],
        "kl": summary["after"]["kl"],
        "words": summary.get("words"),
    }


def theirs(options: argparse.Namespace, train: str, held_out: str) -> dict:
    numbers = map(str, (options.steps, options.pairs, options.length, options.rate, options.beta))
    command = [
        options.trl,
        str(HERE / "candidates" / "trl_chat.py"),
        options.model,
        train,
        held_out,
        *numbers,
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--trl", default=sys.executable)
    options = parser.parse_args()
    pairs = message_pairs(options.file)
    held = pairs[::10][:MOST_EVALUATED]
    trained = [pair for number, pair in enumerate(pairs) if number % 10]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files = write_lines(directory / "train.jsonl", trained), write_lines(directory / "eval.jsonl", held)
        results = {
            "SparsePO, ours": ours("sparsepo", directory, options, *files),
            "DPO, ours": ours("dpo", directory, options, *files),
            "DPO, TRL": theirs(options, *files),
        }
    print(
        f"{len(trained)} pairs to train on, {len(held)} held out; {options.steps} steps of {options.pairs} "
        "pairs"
    )
    for side, figures in results.items():
        print(
            f"{side:<16}{figures['first_step_s']:7.1f} s to the first step {figures['step_s']:7.2f} s a step"
            f"   accuracy {figures['accuracy']:.3f}"
            + (f"   KL {figures['kl']:.3f}" if "kl" in figures else "")
        )
    print(
        f"a step, TRL over ours (DPO): {results['DPO, TRL']['step_s'] / results['DPO, ours']['step_s']:.2f}"
    )
    settings = {
        key: value
        for key, value in vars(options).items()
        if key in ("steps", "pairs", "length", "rate", "beta")
    }
    print(
        save_result(
            "smollm2",
            {"settings": settings, "trained": len(trained), "held_out": len(held), "results": results},
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
