"""The step of the stage po on random pairs, prepared by the functions that a run prepares it with."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from kernels import kernel_seconds
from work import STEPS, first_batch, random_table

from sparsepo_jax.build.masks import initial_masks
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.sharding.mesh import put_batch
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.training import Prepared, prepare
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
    """The steps of runs that differ in the number of pairs a step, compiled side by side, and their state.

    They are compiled from shapes: weights are made when something is first asked of it.

    Attributes:
        compile_s: seconds until each was compiled.
    """

    def __init__(
        self,
        shape: Mapping[str, Any],
        kind: str,
        settings: Mapping[str, Any],
        sizes: list[int],
        prompt: int,
        response: int,
    ):
        """sizes: pairs a step, each with that many tokens of prompt and of either response."""
        training = {"steps": STEPS, **settings.get("po", {})}
        runs = {}
        for pairs in sizes:
            more = {"po": training | {"batch_size": pairs}}
            runs[pairs] = Run(run_config(shape, kind, {**settings, **more}), Stop())
        jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
        self.prepared: dict[int, Prepared] = {}
        self.batches: dict[int, Any] = {}
        for pairs, run in runs.items():
            table = random_table(pairs, prompt, response, run.spec.vocab_size)
            self.prepared[pairs] = prepare(run, "po", table, run.problem)
            self.batches[pairs] = put_batch(first_batch(table, self.prepared[pairs].plan), run.mesh)
        self.mesh, self.reference = run.mesh, None
        self.state: Any = None
        self._start = functools.partial(_start, run, self.prepared[pairs])
        self.compile_s = {
            pairs: max(wait()[1] for wait in prepared.compiling) for pairs, prepared in self.prepared.items()
        }

    def __call__(self, pairs: int) -> jax.Array:
        """Takes a step; its loss, which is not waited for."""
        self._make_weights()
        with jax.set_mesh(self.mesh):
            self.state, metrics, _ = self.prepared[pairs].step.update(
                self.state, self.reference, self.batches[pairs]
            )
        return metrics["loss"]

    def _make_weights(self) -> None:
        if self.state is None:
            self.reference, self.state = self._start()

    def traced(self, pairs: int, directory: Path) -> dict[str, Any]:
        """Seconds a step of the device's kernels by kind, and their number."""
        with jax.profiler.trace(str(directory)):
            for _ in range(TRACED_STEPS):
                float(self(pairs))
        return {"kernels": kernel_seconds(directory, TRACED_STEPS)}

    def about(self, pairs: int) -> dict[str, Any]:
        """What was chosen, and XLA's own count of what the program needs."""
        self._make_weights()
        step = self.prepared[pairs].step
        arguments = step.numbers, self.state, self.reference, self.batches[pairs]
        memory = step.program.compiled(*arguments).memory_analysis()
        return {
            "compile_s": self.compile_s[pairs],
            "choices": self.prepared[pairs].choices.words(),
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }


def _start(run: Run, prepared: Prepared) -> tuple[Any, Any]:
    """(reference, first state)."""
    start = {
        "policy": starting_policy(run),
        "masks": initial_masks(run.config, run.problem.mask_source, run.mesh),
    }
    reference = reference_weights(run, start)
    return reference, prepared.step.start(adapted(run, start))


def device_peak() -> dict[str, float]:
    """Largest memory of the device so far, MB; empty on CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    return {} if peak is None else {"device_peak_mb": peak / 1e6}
