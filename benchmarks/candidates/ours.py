"""Our steps on random pairs, as a run takes them.

    python ours.py KIND SHAPE PROMPT RESPONSE PAIRS [PAIRS ...] [--settings SECTIONS]

SHAPE: the content of a config.json. SECTIONS: sections of a config as JSON, all else as it comes. Answers to
"PAIRS" with a step's time and to "trace PAIRS" with its kernels by kind.
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from serve import serve

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from run_step import RunStep, run_config


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("shape", type=json.loads)
    parser.add_argument("prompt", type=int)
    parser.add_argument("response", type=int)
    parser.add_argument("pairs", type=int, nargs="+")
    parser.add_argument("--settings", type=json.loads, default={})
    options = parser.parse_args()
    config = run_config(options.shape, options.kind, options.settings)
    step = RunStep(config, options.pairs, options.prompt, options.response)
    with tempfile.TemporaryDirectory() as directory:
        steps: dict[str, Any] = {}
        for pairs in options.pairs:
            steps[str(pairs)] = functools.partial(step, pairs)
            steps[f"trace {pairs}"] = functools.partial(step.traced, pairs, Path(directory) / str(pairs))
        serve(
            steps,
            compile_s=step.compile_s,
            memory={pairs: step.memory_bytes(pairs) for pairs in options.pairs},
            attention=step.run.problem.attention,
            versions={"jax": jax.__version__},
        )


if __name__ == "__main__":
    main()
