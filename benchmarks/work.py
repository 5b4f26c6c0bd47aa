"""What the speed benchmarks share: shapes, random pairs, our own step, floating point operations counted by hand, the measured matrix rate,
and times taken in turn.

Ratios are of medians over rounds in which every candidate runs once, so that a machine that slows down slows all of them.
"""

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsepo_jax import build
from sparsepo_jax.config.schema import Config
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.dist.mesh import make_mesh, put_batch
from sparsepo_jax.models.spec import DecoderSpec, spec_from_hf
from sparsepo_jax.train.step import TrainState, make_pair_loss, make_sft_loss, make_update

RESULTS = Path(__file__).parent / "results"


def gpt2(vocab: int, positions: int, *, width: int = 384, layers: int = 6) -> dict[str, Any]:
    """A config.json of the GPT-2 shape; heads of 64."""
    return {"model_type": "gpt2", "vocab_size": vocab, "n_positions": positions, "n_embd": width, "n_layer": layers, "n_head": width // 64}


def random_batch(pairs: int, prompt: int, response: int, vocab: int, seed: int = 0) -> PairBatch:
    """[1, pairs, ...], no padding."""
    rng = np.random.default_rng(seed)
    ids = lambda *shape: rng.integers(0, vocab, shape).astype(np.int32)  # noqa: E731
    whole = PairBatch(ids(pairs, prompt), np.ones((pairs, prompt), bool), ids(pairs, 2, response), np.ones((pairs, 2, response), bool),
                      np.arange(pairs, dtype=np.int32), np.ones(pairs, np.float32))
    return PairBatch(*(None if x is None else x[None] for x in whole))


class OurStep:
    """One compiled optimizer step of an objective, its state kept between calls. kind: an objective's, or "sft" (chosen responses alone)."""

    def __init__(self, shape: Mapping[str, Any], batch: PairBatch, kind: str = "sparsepo", dtype: str = "float32", **compute):
        objective = {"kind": kind if kind != "sft" else "dpo"}
        if kind == "sparsepo":
            objective["mask"] = {"kind": "learned", "init": "ones"}
        config = Config(stages=["inspect"], output_dir="unused", policy={"config": dict(shape)}, objective=objective,
                        compute={"dtype": dtype} | compute)
        spec, mesh = spec_from_hf(dict(shape)), make_mesh(None, 1, 1)
        problem = build.make_problem(config, spec, spec, mesh)
        optimizer, schedule = build.make_optimizer(config, config.po, 1000)
        weights = {"policy": build.random_weights(spec, 0, mesh), "masks": build.initial_masks(config, problem.mask_source, mesh) if kind != "sft" else {}}
        self.state = TrainState(weights, optimizer.init(weights), jnp.int32(0))
        self.reference = None if kind == "sft" else jax.tree.map(jnp.copy, weights["policy"])
        if kind == "sft":
            batch = batch._replace(response_BPT=batch.response_BPT[:, :, :1], valid_BPT=batch.valid_BPT[:, :, :1])
        self.batch, self.spec, self.mesh = put_batch(batch, mesh), spec, mesh
        loss = make_sft_loss(problem) if kind == "sft" else make_pair_loss(problem)
        began_s = time.perf_counter()
        with jax.set_mesh(mesh):
            update = jax.jit(make_update(loss, optimizer, schedule), donate_argnums=0)
            self.compiled = update.lower(self.state, self.reference, self.batch).compile()
        self.compile_s = time.perf_counter() - began_s

    def __call__(self) -> float:
        self.state, metrics = self.compiled(self.state, self.reference, self.batch)
        return float(metrics["loss"])

    @property
    def temporary_bytes(self) -> int:
        """XLA's own count of what the step needs beyond its arguments."""
        return self.compiled.memory_analysis().temp_size_in_bytes


# ---------------------------------------------------------------- counting


def step_flop(spec: DecoderSpec, pairs: int, prompt: int, response: int, *, passes: int = 4, head_products: int = 6) -> float:
    """Matrix operations of one pair step in the shared layout, counted by hand: 2 for each multiply-add.

    passes: of the decoder over its positions: reference forward 1, policy forward 1, backward 2. head_products: of [response tokens, D] with
    [D, V]: both forward, both again backward, and the gradients of states and head. Attention counts what a token may see: half a square.
    """
    positions = pairs * (prompt + 2 * (response - 1))
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    weights = spec.width * (2 * queries + 2 * keys) + spec.width * spec.mlp_width * (3 if spec.gated_mlp else 2)
    seen = prompt * prompt / 2 + 2 * (response - 1) * (prompt + (response - 1) / 2)
    attention = 2 * 2 * queries * seen * pairs
    head = 2 * spec.vocab_size * spec.width * pairs * 2 * response
    return passes * spec.num_layers * (2 * weights * positions + attention) + head_products * head


def matrix_rate(dtype: str = "float32", size: int | None = None) -> float:
    """FLOP/s of one large square product on the default device, the best of several."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    times_s = []
    for _ in range(10):
        began_s = time.perf_counter()
        product(x, x).block_until_ready()
        times_s.append(time.perf_counter() - began_s)
    return 2 * size**3 / min(times_s)


# ---------------------------------------------------------------- timing


def in_turn(candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; the first `warm` rounds do not count."""
    times_s: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm + rounds):
        for name, call in candidates.items():
            began_s = time.perf_counter()
            call()
            if number >= warm:
                times_s[name].append(time.perf_counter() - began_s)
    return times_s


def spread(times_s: list[float]) -> str:
    return f"{statistics.median(times_s):7.3f} s ({min(times_s):.3f} to {max(times_s):.3f})"


def save_result(name: str, result: Mapping[str, Any]) -> Path:
    """benchmarks/results/NAME-DEVICE.json: what was found, when, on what, with which versions."""
    device = jax.devices()[0].device_kind.replace(" ", "-").lower()
    path = RESULTS / f"{name}-{device}.json"
    RESULTS.mkdir(exist_ok=True)
    about = {"date": datetime.date.today().isoformat(), "device": device, "devices": jax.device_count(), "python": platform.python_version(),
             "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "optax", "numpy")}}
    path.write_text(json.dumps(about | dict(result), indent=1) + "\n")
    return path
