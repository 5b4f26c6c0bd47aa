"""Temporary memory of our SparsePO step against the vocabulary: compiled from shapes alone, nothing is run or timed.

    python benchmarks/vocabulary_memory.py [VOCABULARY ...] [--width D] [--layers L] [--lengths PROMPT+RESPONSE] [--dtype TYPE] [--keep-logits]

Default: 16384 65536 262144, width 256, 4 layers, 64+192 tokens, 4 pairs, float32, GPT-2 shape with a head of its own (not tied: embedding and head have a
gradient each). XLA's own count of temporaries. What must grow with the vocabulary are gradients of the embedding and of the head, float32 as the optimizer reads
them, and in bfloat16 the heads (policy's and reference's) in that type; the rest must not. Exits with 1 if it does, by more than a tenth.
"""

import argparse
import sys

from work import abstract_step, gpt2, random_batch, save_result

PAIRS, TOLERATED = 4, 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="*", type=int, default=[16384, 65536, 262144])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lengths", default="64+192")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--keep-logits", action="store_true")
    options = parser.parse_args()
    prompt, response = map(int, options.lengths.split("+"))
    rows = []
    print("vocabulary   temporaries   gradients, heads in 16 bits   without them   over the first   logits of all response tokens")
    for vocab in options.vocabularies:
        shape = gpt2(vocab, prompt + response, width=options.width, layers=options.layers) | {"tie_word_embeddings": False}
        compiled = abstract_step(shape, random_batch(PAIRS, prompt, response, vocab), dtype=options.dtype, head={"keep_logits": options.keep_logits})
        temporary, matrix = compiled.memory_analysis().temp_size_in_bytes, vocab * options.width
        own = 2 * 4 * matrix + (2 * 2 * matrix if options.dtype == "bfloat16" else 0)
        rows.append({"vocab": vocab, "temporary_mb": temporary / 1e6, "own_mb": own / 1e6, "without_mb": (temporary - own) / 1e6})
        print(f"{vocab:>10,}{temporary / 1e6:11.1f} MB{own / 1e6:27.1f} MB{rows[-1]['without_mb']:12.1f} MB{rows[-1]['without_mb'] / rows[0]['without_mb']:17.3f}"
              f"{2 * 4 * PAIRS * 2 * response * vocab / 1e6:29.0f} MB", flush=True)
    print(save_result("vocabulary_memory", {"settings": vars(options), "rows": rows}))
    return int(max(row["without_mb"] for row in rows) > TOLERATED * rows[0]["without_mb"])


if __name__ == "__main__":
    sys.exit(main())
