"""A DPO step with the reference's log-probs from the cache against one that runs the reference: time and memory.

    python benchmarks/reference_cache.py          about two minutes on 2 cores

A GPT-2 shape of 6 layers, width 384 and 16,384 tokens, 4 pairs a step of 64 prompt and 192 response tokens, float32; the two are timed in turn,
eight rounds, medians. Memory: XLA's own count of arguments and temporaries of the compiled step.

Expected: of five passes' worth (reference forward 1, policy forward 1, backward 2, the head both ways 1) a quarter falls away, with the
reference's 104 MB. Found on 2 cores: 2.41 and 1.75 s a step (0.73), 1318 and 1214 MB.
"""

import statistics
import sys
import time

import jax
import numpy as np

from sparsepo_jax import build, programs
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.train.step import make_pair_loss, make_update, start_state

PAIRS, PROMPT, RESPONSE, VOCAB = 4, 64, 192, 16384
SHAPE = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": PROMPT + RESPONSE,
    "n_embd": 384,
    "n_layer": 6,
    "n_head": 6,
}


def random_batch() -> PairBatch:
    rng = np.random.default_rng(0)
    ids = lambda *shape: rng.integers(0, VOCAB, shape).astype(np.int32)  # noqa: E731
    sizes = (PAIRS, 2, RESPONSE)
    whole = PairBatch(
        ids(PAIRS, PROMPT),
        np.ones((PAIRS, PROMPT), bool),
        ids(*sizes),
        np.ones(sizes, bool),
        np.arange(PAIRS, dtype=np.int32),
        np.ones(PAIRS, np.float32),
        None,
        np.full(sizes, -9.7, np.float32),
    )
    return PairBatch(*(None if x is None else x[None] for x in whole))


def main() -> int:
    config = Config(
        stages=["inspect"],
        output_dir="unused",
        policy={"config": SHAPE},
        objective={"kind": "dpo"},
        compute={"dtype": "float32"},
    )
    spec, mesh, batch = spec_from_hf(SHAPE), make_mesh(None, 1, 1), random_batch()
    problem = build.make_problem(config, spec, spec, mesh)
    optimizer, schedule = programs.make_optimizer(config, config.po, 1000, spec.width)
    steps, times_s = {}, {}
    with jax.set_mesh(mesh):
        for name, one in (
            ("reference run", problem),
            ("reference cached", programs.cached_problem(problem, config)),
        ):
            weights = {"policy": build.random_weights(spec, 0, mesh), "masks": {}}
            state = start_state(weights, optimizer)
            reference = None if one.cached else build.random_weights(spec, 1, mesh)
            given = batch if one.cached else batch._replace(ref_logp_BPT=None)
            step = (
                jax.jit(make_update(make_pair_loss(one), optimizer, schedule), donate_argnums=0)
                .lower(state, reference, given)
                .compile()
            )
            memory = step.memory_analysis()
            print(f"{name:<18}{(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6:8.0f} MB")
            steps[name], times_s[name] = [step, state, reference, given], []
        for _ in range(9):
            for name, (step, state, reference, given) in steps.items():
                began_s = time.perf_counter()
                steps[name][1], metrics, _ = step(state, reference, given)
                jax.block_until_ready(metrics)
                times_s[name].append(time.perf_counter() - began_s)
    medians = {name: statistics.median(times[1:]) for name, times in times_s.items()}
    for name, median in medians.items():
        print(f"{name:<18}{median:8.2f} s/step")
    print(f"cached over run: {medians['reference cached'] / medians['reference run']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
