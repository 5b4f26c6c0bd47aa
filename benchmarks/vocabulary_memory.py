"""Temporary memory of our SparsePO step against the vocabulary: compiled from shapes, nothing is run or
timed.

    python benchmarks/vocabulary_memory.py [VOCABULARY ...] [--width D] [--layers L] \\
        [--lengths PROMPT+RESPONSE] [--dtype TYPE] [--keep-logits]

Default: 16384 65536 262144, width 256, 4 layers, 64+192 tokens, 4 pairs, float32, GPT-2 shape with a head of
its own (not tied, so embedding and head have a gradient each). XLA's own count of temporaries, of two
programs:

    loss and gradients    the gradients are results and not counted, so nothing may grow with the vocabulary
                          (in bfloat16 the heads of policy and reference in that type do, and are taken off)
    the full step         reported as the number of float32 matrices [vocabulary, width] by which it grows;
                          two, the gradients, are allowed and taken off

Exits with 1 if one of the two grows by more than a tenth.
"""

import argparse
import sys

from shapes import gpt2
from work import abstract_step, random_batch, save_result

PAIRS, TOLERATED = 4, 1.1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vocabularies", nargs="*", type=int, default=[16384, 65536, 262144])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lengths", default="64+192")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--keep-logits", action="store_true")
    options = parser.parse_args()
    prompt, response = map(int, options.lengths.split("+"))
    rows = []
    print(
        "              loss and gradients: MB      ratio    whole step: MB    matrices it grows by    all "
        "logits, for comparison"
    )
    for vocab in options.vocabularies:
        shape = gpt2(vocab, prompt + response, width=options.width, layers=options.layers) | {
            "tie_word_embeddings": False
        }
        compiled = abstract_step(
            shape,
            random_batch(PAIRS, prompt, response, vocab),
            dtype=options.dtype,
            head={"keep_logits": options.keep_logits},
        )
        gradients, step = (program.memory_analysis().temp_size_in_bytes / 1e6 for program in compiled)
        matrix_mb = 4 * vocab * options.width / 1e6
        rows.append(
            {
                "vocab": vocab,
                "gradients_mb": gradients - (matrix_mb if options.dtype == "bfloat16" else 0),
                "step_mb": step,
                "matrix_mb": matrix_mb,
            }
        )
        first, alone = rows[0], rows[-1]["gradients_mb"]
        growth = (
            f"{(step - first['step_mb']) / (matrix_mb - first['matrix_mb']):.2f}"
            if vocab != first["vocab"]
            else ""
        )
        logits_mb = 2 * 4 * PAIRS * 2 * response * vocab / 1e6
        print(
            f"{vocab:>10,}{alone:26.1f}{alone / first['gradients_mb']:13.3f}"
            f"{step:18.1f}{growth:>24}{logits_mb:24,.0f} MB",
            flush=True,
        )
    print(save_result("vocabulary_memory", {"settings": vars(options), "rows": rows}))
    alone, less_gradients = (
        [row[name] - taken_off * row["matrix_mb"] for row in rows]
        for name, taken_off in (("gradients_mb", 0), ("step_mb", 2))
    )
    return int(any(max(mb) > TOLERATED * mb[0] for mb in (alone, less_gradients)))


if __name__ == "__main__":
    sys.exit(main())
