"""A training step of ours against a plain PyTorch/transformers step of SparsePO and DPO: seconds, tokens/s, peak memory.

    python benchmarks/step.py [PROMPT+RESPONSE ...] [--vocab V ...] [--rounds N]     default: 64+192 256+64, 16384 50257, 5 rounds

Four pairs a step, GPT-2 shape of 6 layers and width 384, float32, random tokens. Every candidate is a process of its own that waits while
another runs; they take turns, and ratios are of medians over the rounds. Peak memory is the process's, libraries and compiler included.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from work import matrix_rate, save_result, gpt2, step_flop

from sparsepo_jax.models.spec import spec_from_hf

CANDIDATES = Path(__file__).parent / "candidates"
PAIRS, WIDTH, LAYERS = 4, 384, 6
NAMES = {"ours sparsepo": ("ours.py", "sparsepo"), "ours dpo": ("ours.py", "dpo"),
         "torch sparsepo": ("plain_torch.py", "sparsepo"), "torch dpo": ("plain_torch.py", "dpo")}


class Candidate:
    """A process that does a step for each line it is given."""

    def __init__(self, script: str, *arguments: str | int):
        command = [sys.executable, str(CANDIDATES / script), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended without an answer; run it by hand to see why")
        return json.loads(line)

    def step(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", nargs="*", default=["64+192", "256+64"])
    parser.add_argument("--vocab", nargs="+", type=int, default=[16384, 50257])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rate = matrix_rate()
    print(f"matrix rate {rate / 1e9:.0f} GFLOP/s")
    found = []
    for vocab in options.vocab:
        for lengths in options.lengths:
            prompt, response = map(int, lengths.split("+"))
            flop = step_flop(spec_from_hf(gpt2(vocab, prompt + response, width=WIDTH, layers=LAYERS)), PAIRS, prompt, response)
            running = {name: Candidate(script, kind, PAIRS, prompt, response, vocab, WIDTH, LAYERS) for name, (script, kind) in NAMES.items()}
            answers = {name: [] for name in running}
            for number in range(options.rounds + 1):  # the first round warms up
                for name, candidate in running.items():
                    answer = candidate.step()
                    answers[name] += [answer] * (number > 0)
            for candidate in running.values():
                candidate.close()
            print(f"{lengths} tokens, vocabulary {vocab}: {flop / 1e9:.0f} GFLOP by hand (shared prompt)")
            for name, rows in answers.items():
                times_s = [row["seconds"] for row in rows]
                median_s = statistics.median(times_s)
                row = {"candidate": name, "lengths": lengths, "vocab": vocab, "median_s": median_s, "min_s": min(times_s), "max_s": max(times_s),
                       "tokens_per_s": PAIRS * (prompt + 2 * response) / median_s, "peak_mb": rows[-1]["peak_mb"]}
                if name == "ours sparsepo":
                    row["share_of_matrix_rate"] = flop / median_s / rate
                found.append(row)
                share = f", {row['share_of_matrix_rate']:.2f} of the matrix rate" if "share_of_matrix_rate" in row else ""
                print(f"  {name:<16}{median_s:7.2f} s ({min(times_s):.2f} to {max(times_s):.2f}) {row['tokens_per_s']:7.0f} tokens/s "
                      f"{row['peak_mb']:6.0f} MB{share}")
            ours, torch = (statistics.median(row["seconds"] for row in answers[name]) for name in ("ours sparsepo", "torch sparsepo"))
            print(f"  SparsePO, PyTorch over ours: {torch / ours:.2f}", flush=True)
    print(save_result("step", {"matrix_rate": rate, "rows": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
