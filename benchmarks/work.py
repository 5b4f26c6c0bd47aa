"""What the speed benchmarks share: shapes, random pairs, our own step, operations counted by hand, timing.

Ratios are of medians over rounds in which every candidate runs once, so that a machine that slows down slows
all of them.
"""

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sparsepo_jax.build.choices import training_choices, with_choices
from sparsepo_jax.build.masks import initial_masks
from sparsepo_jax.build.models import weight_shapes
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.optimizer import make_optimizer
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import abstract, random_weights
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.packing import Shape, sizes_of
from sparsepo_jax.data.pipeline import make_batches
from sparsepo_jax.data.ragged import ragged
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.operations import Passes, matrix_operations, pair_tokens
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh, put_batch
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import make_pair_loss, make_sft_loss, make_update, start_state

RESULTS = Path(__file__).parent / "results"
CANDIDATES = Path(__file__).parent / "candidates"
PAIRS = 4  # a step
CALLS_IN_A_ROW = 10
STEPS = 10_000  # of the run that a step is taken from: about 80,000 pairs, 8 a step


class Lengths(NamedTuple):
    """Tokens of a prompt and of each response, written 64+192."""

    prompt: int
    response: int

    @classmethod
    def read(cls, text: str) -> "Lengths":
        return cls(*map(int, text.split("+")))

    def __str__(self) -> str:
        return f"{self.prompt}+{self.response}"


def step_parser(description: str) -> argparse.ArgumentParser:
    """A parser of [PROMPT+RESPONSE ...] [--rounds N]."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lengths", nargs="*", type=Lengths.read, default=[Lengths(64, 192), Lengths(256, 64)])
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def random_table(
    pairs: int, prompt: int, response: int, vocab: int, seed: int = 0, responses: int = 2
) -> TokenTable:
    """Random pairs, all of the same lengths."""
    rng = np.random.default_rng(seed)

    def ids(rows: int, length: int):
        return ragged(list(rng.integers(0, vocab, (rows, length))), np.int32)

    return TokenTable(
        ids(pairs, prompt),
        ids(pairs * responses, response),
        np.arange(pairs),
        np.zeros(pairs, bool),
        np.zeros((pairs, responses), bool),
        np.ones(pairs, np.float32),
        ("random",),
        np.zeros(pairs, np.int32),
        np.arange(pairs),
    )


def random_batch(
    pairs: int, prompt: int, response: int, vocab: int, seed: int = 0, responses: int = 2
) -> PairBatch:
    """Random pairs in one row of tokens [1, ...], without padding except for rounding."""
    table = random_table(pairs, prompt, response, vocab, seed, responses)
    sizes = sizes_of(table.prompt_lengths_N, table.response_lengths_NP, shared=True)
    plan = BatchPlan(sizes, None, batch_size=pairs, rows=1, strata=4, buckets=1, seed=seed, shuffle=False)
    return first_batch(table, plan)


def first_batch(table: TokenTable, plan: BatchPlan) -> PairBatch:
    """The plan's batch 0, prompts shared."""
    batches = make_batches(
        table,
        plan,
        start=0,
        stop=1,
        process_index=0,
        process_count=1,
        shared=True,
        with_weights=False,
    )
    return next(batches)


def config_of(shape: Mapping[str, Any], kind: str, dtype: str, compute: Mapping[str, Any]) -> Config:
    objective = {"kind": kind if kind != "sft" else "dpo"}
    if kind == "sparsepo":
        objective["mask"] = {"kind": "learned", "init": "ones"}
    return Config(
        stages=["inspect"],
        output_dir="unused",
        policy={"config": dict(shape)},
        objective=objective,
        compute={"dtype": dtype} | compute,
    )


def problem_of(config: Config, spec: DecoderSpec, mesh: Mesh, batch: PairBatch) -> Problem:
    """What a run of the config would train on batches of this shape, of rows of tokens [micro-steps, ...]."""
    packing = batch.packing
    shape = Shape(*(x.shape[-1] for x in (packing.ids_RS, packing.at_RM, packing.column_RQW)))
    choices = training_choices(config, "po", spec, spec, mesh, [shape], STEPS)
    return with_choices(make_problem(config, spec, spec, mesh), config, spec, None, mesh, choices)


def abstract_step(
    shape: Mapping[str, Any], batch: PairBatch, kind: str = "sparsepo", dtype: str = "float32", **compute
) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """Two programs compiled from shapes, without weights: loss and gradients alone, and a step as
    OurStep's."""
    config, spec, mesh = (
        config_of(shape, kind, dtype, compute),
        spec_from_hf(dict(shape)),
        make_mesh(None, 1, 1),
    )
    problem = problem_of(config, spec, mesh, batch)
    step = make_step(config, "po", problem, spec, STEPS, mesh)
    reference = abstract(weight_shapes(spec), None, mesh, lambda weights: weights["policy"])
    gradient = jax.jit(jax.value_and_grad(make_pair_loss(problem), has_aux=True))
    with jax.set_mesh(mesh):
        alone = gradient.lower(
            step.like.weights, reference, jax.tree.map(lambda x: x[0], batch), step.like.step
        )
        return alone.compile(), step.program.lower(step.numbers, step.like, reference, batch).compile()


class OurStep:
    """One compiled optimizer step of an objective, its state kept between calls. kind: an objective's, or
    "sft" (of a batch with one response a prompt)."""

    def __init__(
        self,
        shape: Mapping[str, Any],
        batch: PairBatch,
        kind: str = "sparsepo",
        dtype: str = "float32",
        **compute,
    ):
        config = config_of(shape, kind, dtype, compute)
        spec, mesh = spec_from_hf(dict(shape)), make_mesh(None, 1, 1)
        self.problem = problem_of(config, spec, mesh, batch)
        self.optimizer, schedule = make_optimizer(config, config.po, STEPS, spec.width)
        masks = initial_masks(config, self.problem.mask_source, mesh) if kind != "sft" else {}
        weights = {"policy": random_weights(spec, 0, mesh), "masks": masks}
        self.state = start_state(weights, self.optimizer)
        self.reference = None if kind == "sft" else jax.tree.map(jnp.copy, weights["policy"])
        self.batch, self.spec, self.mesh, self.compile_s = put_batch(batch, mesh), spec, mesh, 0.0
        loss = make_sft_loss(self.problem) if kind == "sft" else make_pair_loss(self.problem)
        self._update = jax.jit(make_update(loss, self.optimizer, schedule, dtype=dtype), donate_argnums=0)
        self.compiled = self.compile(self.batch)

    def compile(self, batch: PairBatch):
        """The step for a batch of this shape, on the devices."""
        began_s = time.perf_counter()
        with jax.set_mesh(self.mesh):
            compiled = self._update.lower(self.state, self.reference, batch).compile()
        self.compile_s += time.perf_counter() - began_s
        return compiled

    def advance(self, compiled, batch: PairBatch) -> jax.Array:
        """Takes a step and returns its loss without waiting for it."""
        self.state, metrics, _ = compiled(self.state, self.reference, batch)
        return metrics["loss"]

    def __call__(self) -> float:
        return float(self.advance(self.compiled, self.batch))

    @property
    def temporary_bytes(self) -> int:
        """XLA's own count of what the step needs beyond its arguments."""
        return self.compiled.memory_analysis().temp_size_in_bytes


# ---------------------------------------------------------------- counting


def step_flop(
    spec: DecoderSpec, pairs: int, prompt: int, response: float, *, passes: int = 4, head_products: int = 6
) -> float:
    """Matrix operations of one pair step in the shared layout, counted by hand; see models/operations.

    passes: of the decoder over its positions. head_products: of response tokens with the head.
    """
    return matrix_operations(spec, pair_tokens(pairs, prompt, response), Passes(passes, head_products))


def matrix_rate(dtype: str = "float32", size: int | None = None) -> float:
    """FLOP/s of one large square product on the default device, the best of several.

    Of random numbers: GPUs multiply zeros and ones faster."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    x, y = (jax.random.normal(jax.random.key(n), (size, size), dtype) for n in range(2))
    return 2 * size**3 / best_time(jax.jit(lambda a, b: a @ b), x, y)


def copy_rate(size: int = 2**30) -> float:
    """Bytes/s that a large copy on the default device reads and writes, the best of several."""
    x = jnp.ones(size // 4, jnp.float32)
    return 2 * size / best_time(jax.jit(lambda a: a + 1), x)


def best_time(function: Callable[..., jax.Array], *arguments: jax.Array, times: int = 5) -> float:
    """Seconds of a call, compiled before: the quickest of several rows of calls.

    A row is waited for once, since waiting takes a share of a millisecond where a GPU is far away."""
    function(*arguments).block_until_ready()
    times_s = []
    for _ in range(times):
        began_s = time.perf_counter()
        for _ in range(CALLS_IN_A_ROW):
            last = function(*arguments)
        last.block_until_ready()
        times_s.append((time.perf_counter() - began_s) / CALLS_IN_A_ROW)
    return min(times_s)


# ---------------------------------------------------------------- timing


def in_turn(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; the first `warm` rounds do not count."""
    times_s: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm + rounds):
        for name, call in candidates.items():
            began_s = time.perf_counter()
            call()
            if number >= warm:
                times_s[name].append(time.perf_counter() - began_s)
    return times_s


class CandidateEnded(SystemExit):
    """A candidate gave no answer, or an error; ends a benchmark that does not expect it."""


class Candidate:
    """A process that takes a step for each line it is sent (candidates/serve.py).

    Use it as a context manager, or close it. python: that of an environment that has what the candidate
    needs. log: where its stderr goes. limit_s: it is ended after so many seconds."""

    def __init__(
        self,
        script: str,
        *arguments: str | int,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        log: IO | int = subprocess.DEVNULL,
        limit_s: float | None = None,
    ):
        self.script = script
        command = [python, str(CANDIDATES / script), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        self._clock: threading.Timer | None = None
        self._why = "ended without an answer; run it by hand to see why"
        self.within(limit_s)
        self.about = self._answer()

    def within(self, limit_s: float | None) -> None:
        """Ends it after so many seconds from now on, and no longer when it was said before; None: never."""
        if self._clock is not None:
            self._clock.cancel()
        self._clock = None if limit_s is None else threading.Timer(limit_s, self._end, [limit_s])
        if self._clock is not None:
            self._clock.start()

    def _end(self, limit_s: float) -> None:
        self._why = f"gave no answer within {limit_s:.0f} s"
        self.process.kill()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise CandidateEnded(f"{self.script} {self._why}")
        return json.loads(line)

    def step(self, name: str = "") -> dict[str, Any]:
        """What the candidate answers to a line.

        Raises:
            CandidateEnded: there is no answer, or it is an error.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended: then there is no answer
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise CandidateEnded(answer["error"])
        return answer

    def close(self) -> None:
        """Lets the process end, and waits for that."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        if self._clock is not None:
            self._clock.cancel()

    def __enter__(self) -> "Candidate":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers_in_turn(
    running: Mapping[str, Candidate], rounds: int, *, warm: int = 1, step: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """What each candidate answers in each round; the first `warm` rounds do not count. Ends the candidates.

    step: its name, where candidates have several."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for number in range(warm + rounds):
        for name, candidate in running.items():
            answer = candidate.step(step)
            if number >= warm:
                answers[name].append(answer)
    for candidate in running.values():
        candidate.close()
    return answers


def spread(times_s: list[float]) -> str:
    return f"{statistics.median(times_s):7.3f} s ({min(times_s):.3f} to {max(times_s):.3f})"


def result_path(name: str) -> Path:
    """benchmarks/results/NAME-DEVICE.json."""
    device = jax.devices()[0].device_kind.replace(" ", "-").lower()
    return RESULTS / f"{name}-{device}.json"


def save_result(name: str, result: Mapping[str, Any]) -> Path:
    """Writes the figures to result_path(name), with date, device and versions."""
    path = result_path(name)
    RESULTS.mkdir(exist_ok=True)
    about = {
        "date": datetime.date.today().isoformat(),
        "device": path.stem.removeprefix(f"{name}-"),
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }
    path.write_text(json.dumps(about | dict(result), indent=1) + "\n")
    return path
