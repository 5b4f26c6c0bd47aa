"""One of our steps on random pairs.

python ours.py KIND PAIRS PROMPT RESPONSE VOCAB WIDTH LAYERS
"""

import sys
from pathlib import Path

from serve import serve

sys.path.insert(0, str(Path(__file__).parents[1]))

from work import OurStep, gpt2, random_batch


def main() -> None:
    kind, (pairs, prompt, response, vocab, width, layers) = sys.argv[1], map(int, sys.argv[2:])
    step = OurStep(
        gpt2(vocab, prompt + response, width=width, layers=layers),
        random_batch(pairs, prompt, response, vocab),
        kind,
    )
    serve(step, temporary_mb=step.temporary_bytes / 1e6, compile_s=step.compile_s)


if __name__ == "__main__":
    main()
