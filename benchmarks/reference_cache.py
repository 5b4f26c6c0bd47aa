"""A DPO step with the reference's log-probs from the cache against one that runs the reference: time and
memory.

    python benchmarks/reference_cache.py          about two minutes on 2 cores

A GPT-2 shape of 6 layers, width 384 and 16,384 tokens, 4 pairs a step of 64 prompt and 192 response tokens,
float32. The two are timed in turn, eight rounds, medians. Memory: XLA's own count of arguments and
temporaries of the compiled step. The result is kept in results/reference_cache-DEVICE.json.

Expected: of about five passes (reference forward 1, policy forward 1, backward 2, the head both ways 1) a
fifth to a quarter goes, and with it the memory of the reference's weights.
"""

import statistics
import sys

import jax
import numpy as np
from shapes import gpt2
from work import PAIRS, config_of, in_turn, random_batch, save_result

from sparsepo_jax.build.objective import cached_problem, make_problem
from sparsepo_jax.build.optimizer import make_optimizer
from sparsepo_jax.build.weights import random_weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh, put_batch
from sparsepo_jax.train.step import Problem, make_pair_loss, make_update, start_state

PROMPT, RESPONSE, VOCAB = 64, 192, 16384
ROUNDS = 8


class Step:
    """A compiled DPO step and its state."""

    def __init__(self, problem: Problem, batch: PairBatch, config, spec, mesh):
        optimizer, schedule = make_optimizer(config, config.po, 1000, spec.width)
        self.state = start_state({"policy": random_weights(spec, 0, mesh), "masks": {}}, optimizer)
        self.reference = None if problem.cached else random_weights(spec, 1, mesh)
        self.batch = put_batch(batch, mesh)
        update = jax.jit(
            make_update(make_pair_loss(problem), optimizer, schedule, dtype=problem.dtype), donate_argnums=0
        )
        self.compiled = update.lower(self.state, self.reference, self.batch).compile()

    def __call__(self) -> None:
        self.state, metrics, _ = self.compiled(self.state, self.reference, self.batch)
        jax.block_until_ready(metrics)

    @property
    def memory_mb(self) -> float:
        memory = self.compiled.memory_analysis()
        return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6


def main() -> int:
    shape = gpt2(VOCAB, PROMPT + RESPONSE)
    config, spec, mesh = config_of(shape, "dpo", "float32", {}), spec_from_hf(shape), make_mesh(None, 1, 1)
    batch = random_batch(PAIRS, PROMPT, RESPONSE, VOCAB)
    kept_logp_BPT = np.full(batch.valid_BPT.shape, -np.log(VOCAB), np.float32)
    problem = make_problem(config, spec, spec, mesh)
    with jax.set_mesh(mesh):
        steps = {
            "run": Step(problem, batch, config, spec, mesh),
            "cached": Step(
                cached_problem(problem, config),
                batch._replace(ref_logp_BPT=kept_logp_BPT),
                config,
                spec,
                mesh,
            ),
        }
        times_s = in_turn(steps, ROUNDS)
    rows = {
        name: {"median_s": statistics.median(times_s[name]), "memory_mb": step.memory_mb}
        for name, step in steps.items()
    }
    for name, row in rows.items():
        print(f"reference {name:<8}{row['median_s']:8.2f} s/step{row['memory_mb']:8.0f} MB")
    ratio = rows["cached"]["median_s"] / rows["run"]["median_s"]
    print(f"cached over run: {ratio:.2f}")
    print(save_result("reference_cache", {"rows": rows, "ratio": ratio}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
