"""Pairs/s over a file of preference pairs: our SparsePO step against plain PyTorch's.

    python benchmarks/real_data.py FILE.jsonl.gz [--steps N] [--pairs 4]           default: 50 steps

Ours runs packed batches, PyTorch's random batches padded on the right. GPT-2 shape of 6 layers and width 384,
vocabulary 50,257, up to 2048 tokens (prompts 1024), float32. A BPE of up to that many entries is learned on
the file. Before the clock starts both sides have tokenised the file and our shapes are compiled (reported
apart); the clock covers everything from the tokenised rows on: collating or packing, and the update. Both
train on the same pairs, five steps in turn, each in a process of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from work import Candidate, answers_in_turn, save_result

from sparsepo_jax.data.load import read_texts
from sparsepo_jax.data.sources import FileRows
from sparsepo_jax.data.tokenizers import train_bpe_tokenizer

CHUNK, VOCAB, WIDTH, LAYERS = 5, 50257, 384, 6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = train_bpe_tokenizer(read_texts([FileRows(options.file)], on_bad_row="skip"), VOCAB)
        tokenizer.save_pretrained(directory)
        settings = options.file, directory, options.steps, options.pairs, CHUNK, VOCAB, WIDTH, LAYERS
        running = {side: Candidate("real.py", side, *settings) for side in ("ours", "torch")}
        about = {side: candidate.about for side, candidate in running.items()}
        answers = answers_in_turn(running, len(about["ours"]["pairs"]), warm=0)
    rates, sides = (
        {},
        {"pairs": options.pairs, "steps": options.steps, "tokenizer": len(tokenizer), "about": about},
    )
    print(
        f"{about['ours']['rows']} pairs in the file, {len(tokenizer)} entries learned; "
        f"{len(about['ours']['shapes'])} shapes of ours compiled in {about['ours']['compile_s']:.1f} s"
    )
    for side, rows in answers.items():
        pairs, seconds = about[side]["pairs"], [row["seconds"] for row in rows]
        rates[side] = sum(pairs) / sum(seconds)
        of_chunk = [count / time_s for count, time_s in zip(pairs, seconds, strict=True)]
        sides[side] = {
            "pairs_per_s": rates[side],
            "by_chunk": of_chunk,
            "pairs": sum(pairs),
            "peak_mb": rows[-1]["peak_mb"],
        }
        print(
            f"{side:<6}{rates[side]:7.2f} pairs/s ({min(of_chunk):.2f} to {max(of_chunk):.2f} by chunk), "
            f"{sum(pairs)} pairs in {sum(seconds):.1f} s, "
            f"{about[side]['real_token_share']:.2f} real tokens, {rows[-1]['peak_mb']:.0f} MB"
        )
    print(f"ours over PyTorch: {rates['ours'] / rates['torch']:.2f}")
    print(
        save_result(
            f"real_data-{Path(options.file).resolve().parent.name}",
            sides | {"ratio": rates["ours"] / rates["torch"]},
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
