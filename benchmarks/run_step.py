"""The step of the stage po on random pairs, built by the functions that a run builds it with."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from kernels import kernel_seconds
from work import random_batch

from sparsepo_jax.build.masks import initial_masks
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import abstract_frozen
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.sharding.mesh import put_batch
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.weights import adapted, reference_weights, starting_policy

TRACED_STEPS = 3


def run_config(shape: Mapping[str, Any], kind: str, settings: Mapping[str, Any]) -> Config:
    """A model of this shape from scratch; nothing else is chosen but what `settings`, by section, says."""
    objective: dict[str, Any] = {"kind": kind}
    if kind == "sparsepo":
        objective["mask"] = {"kind": "learned", "init": "ones"}
    config = {
        "stages": ["inspect"],
        "output_dir": "unused",
        "policy": {"config": dict(shape)},
        "objective": objective,
    }
    return Config(**(config | dict(settings)))


class RunStep:
    """The step of a run, compiled for batches of several sizes, and its state.

    Attributes:
        compile_s: seconds of each program, compiled side by side as a run does.
    """

    def __init__(self, config: Config, sizes: list[int], prompt: int, response: int):
        """sizes: pairs a step, each with that many tokens of prompt and of either response."""
        self.run = run = Run(config, Stop())
        jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
        step = make_step(run.config, "po", run.problem, run.spec, 1000, run.mesh)
        vocab = run.spec.vocab_size
        self.batches = {
            pairs: put_batch(random_batch(pairs, prompt, response, vocab), run.mesh) for pairs in sizes
        }
        self.numbers, self.compile_s = step.numbers, {}
        self.compiled = self._compile(step)
        masks = initial_masks(run.config, run.problem.mask_source, run.mesh)
        start = {"policy": starting_policy(run), "masks": masks}
        self.reference = reference_weights(run, start)
        self.state = step.start(adapted(run, start))

    def _compile(self, step: Any) -> dict[int, jax.stages.Compiled]:
        run = self.run
        reference = abstract_frozen(run.config, "po", run.problem, run.spec, run.reference_spec, run.mesh)

        def timed(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
            began_s = time.perf_counter()
            return lowered.compile(), time.perf_counter() - began_s

        with jax.set_mesh(run.mesh):
            lowered = {
                pairs: step.program.lower(step.numbers, step.like, reference, batch)
                for pairs, batch in self.batches.items()
            }
        with ThreadPoolExecutor(len(lowered)) as threads:
            compiled = dict(zip(lowered, threads.map(timed, lowered.values()), strict=True))
        self.compile_s = {pairs: seconds for pairs, (_, seconds) in compiled.items()}
        return {pairs: program for pairs, (program, _) in compiled.items()}

    def __call__(self, pairs: int) -> dict[str, Any]:
        """Takes a step; its loss and the device's memory."""
        return {"loss": self._advance(pairs)} | device_peak()

    def _advance(self, pairs: int) -> float:
        self.state, metrics, _ = self.compiled[pairs](
            self.numbers, self.state, self.reference, self.batches[pairs]
        )
        return float(metrics["loss"])

    def traced(self, pairs: int, directory: Path) -> dict[str, Any]:
        """Seconds a step of the device's kernels by kind, and their number."""
        with jax.profiler.trace(str(directory)):
            for _ in range(TRACED_STEPS):
                self._advance(pairs)
        return {"kernels": kernel_seconds(directory, TRACED_STEPS)}

    def memory_bytes(self, pairs: int) -> dict[str, int]:
        """XLA's own count of what the program needs."""
        memory = self.compiled[pairs].memory_analysis()
        return {
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }


def device_peak() -> dict[str, float]:
    """Largest memory of the device so far, MB; empty on CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    return {} if peak is None else {"device_peak_mb": peak / 1e6}
