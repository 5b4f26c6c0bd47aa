"""A training step of ours against plain PyTorch's and TRL's: seconds, tokens/s, peak memory.

    python benchmarks/step.py [PROMPT+RESPONSE ...] [--vocab V ...] [--rounds N] [--trl PYTHON]

Default: 64+192 256+64, 16384 50257, 5 rounds. Four pairs a step, GPT-2 shape of 6 layers and width 384,
float32, random tokens. Plain PyTorch runs SparsePO and DPO with transformers, TRL its DPOTrainer. Every
candidate is a process of its own that waits while another runs; they take turns, and ratios are of medians
over the rounds. Peak memory is the process's, libraries and compiler included. --trl: the Python of an
environment with trl, torch and datasets (TRL asks for other versions than ours); without it TRL is left out.
"""

import json
import statistics
import sys

from shapes import gpt2
from work import PAIRS, Candidate, answers_in_turn, matrix_rate, save_result, step_flop, step_parser

from sparsepo_jax.models.spec import spec_from_hf

WIDTH, LAYERS = 384, 6
NAMES = {
    "ours sparsepo": ("ours.py", "sparsepo"),
    "ours dpo": ("ours.py", "dpo"),
    "torch sparsepo": ("plain_torch.py", "sparsepo"),
    "torch dpo": ("plain_torch.py", "dpo"),
}
TRL = {"trl dpo": ("trl_dpo.py",), "trl dpo, reference precomputed": ("trl_dpo.py", "--precomputed")}
RATIOS = (
    ("torch sparsepo", "ours sparsepo"),
    ("torch dpo", "ours dpo"),
    *((name, "ours sparsepo") for name in TRL),
)


def main() -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--vocab", nargs="+", type=int, default=[16384, 50257])
    parser.add_argument("--trl", metavar="PYTHON")
    options = parser.parse_args()
    rate = matrix_rate()
    print(f"matrix rate {rate / 1e9:.0f} GFLOP/s")
    step_rows, ratios, versions = [], [], {}
    for vocab in options.vocab:
        for lengths in options.lengths:
            shape = gpt2(vocab, sum(lengths), width=WIDTH, layers=LAYERS)
            flop = step_flop(spec_from_hf(shape), PAIRS, *lengths)
            settings = json.dumps(shape), *lengths, PAIRS
            running = {name: Candidate(*command, *settings) for name, command in NAMES.items()}
            if options.trl:
                running |= {
                    name: Candidate(script, *settings, *more, python=options.trl)
                    for name, (script, *more) in TRL.items()
                }
            versions |= {
                name: candidate.about["versions"]
                for name, candidate in running.items()
                if "versions" in candidate.about
            }
            answers = answers_in_turn(running, options.rounds, step=str(PAIRS))
            print(f"{lengths} tokens, vocabulary {vocab}: {flop / 1e9:.0f} GFLOP by hand (shared prompt)")
            medians_s = {}
            for name, rows in answers.items():
                times_s = [row["seconds"] for row in rows]
                median_s = medians_s[name] = statistics.median(times_s)
                row = {
                    "candidate": name,
                    "lengths": str(lengths),
                    "vocab": vocab,
                    "median_s": median_s,
                    "min_s": min(times_s),
                    "max_s": max(times_s),
                    "tokens_per_s": PAIRS * (lengths.prompt + 2 * lengths.response) / median_s,
                    "peak_mb": rows[-1]["peak_mb"],
                }
                if name == "ours sparsepo":
                    row["share_of_matrix_rate"] = flop / median_s / rate
                step_rows.append(row)
                share = (
                    f", {row['share_of_matrix_rate']:.2f} of the matrix rate"
                    if "share_of_matrix_rate" in row
                    else ""
                )
                print(
                    f"  {name:<31}{median_s:7.2f} s ({min(times_s):.2f} to {max(times_s):.2f}) "
                    f"{row['tokens_per_s']:7.0f} tokens/s "
                    f"{row['peak_mb']:6.0f} MB{share}"
                )
            for theirs, ours in RATIOS:
                if theirs in medians_s:
                    ratios.append(
                        {
                            "lengths": str(lengths),
                            "vocab": vocab,
                            "of": theirs,
                            "over": ours,
                            "ratio": medians_s[theirs] / medians_s[ours],
                        }
                    )
                    print(f"  {theirs} over {ours}: {ratios[-1]['ratio']:.2f}", flush=True)
    print(
        save_result(
            "step", {"matrix_rate": rate, "rows": step_rows, "ratios": ratios, "candidate_versions": versions}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
