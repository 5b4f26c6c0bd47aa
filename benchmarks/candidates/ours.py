"""Our steps on random pairs, as a run takes them.

    python ours.py KIND SHAPE PROMPT RESPONSE PAIRS [PAIRS ...] [--settings SECTIONS]

SHAPE: the content of a config.json. SECTIONS: sections of a config as JSON, all else as it comes. Answers to
"PAIRS" with a step's time, to "trace PAIRS" with its kernels by kind, and to "about PAIRS" with what was
chosen. It is ready when all is compiled; weights are made with the first answer.
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from serve import LossBefore, serve

sys.path.insert(0, str(Path(__file__).parents[1]))

from run_step import RunStep, device_peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("shape", type=json.loads)
    parser.add_argument("prompt", type=int)
    parser.add_argument("response", type=int)
    parser.add_argument("pairs", type=int, nargs="+")
    parser.add_argument("--settings", type=json.loads, default={})
    options = parser.parse_args()
    size = options.pairs, options.prompt, options.response
    step = RunStep(options.shape, options.kind, options.settings, *size)
    # On a CPU a step that is not waited for would run while other candidates are timed.
    read_loss = float if jax.default_backend() == "cpu" else LossBefore()

    def advance(pairs: int) -> dict[str, Any]:
        return {"loss": read_loss(step(pairs))} | device_peak()

    with tempfile.TemporaryDirectory() as directory:
        steps: dict[str, Any] = {}
        for pairs in options.pairs:
            steps[str(pairs)] = functools.partial(advance, pairs)
            steps[f"about {pairs}"] = functools.partial(step.about, pairs)
            steps[f"trace {pairs}"] = functools.partial(step.traced, pairs, Path(directory) / str(pairs))
        serve(steps)


if __name__ == "__main__":
    main()
