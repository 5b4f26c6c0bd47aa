"""Compiles what a run's stage po needs, so that the run finds it in its cache of programs; answers nothing.

python fill_cache.py CONFIG CACHE
"""

import sys

from serve import serve

from sparsepo_jax.config.load import load_config
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.training import prepare


def main() -> None:
    path, cache = sys.argv[1:]
    config, _ = load_config(path, [f"compute.compile_cache={cache}"])
    run = Run(config, Stop())
    table, _ = run.pairs
    serve({}, compiled=prepare(run, "po", table, run.problem).wait())


if __name__ == "__main__":
    main()
