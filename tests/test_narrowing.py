"""Weights in 16 bits, in a file and in a step: what training changes is kept, however small."""

from types import SimpleNamespace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file

from helpers.configs import make_config
from helpers.parity import IDS, VALID, our_logits
from helpers.program import run, write_config
from helpers.quick import named_slow_but
from helpers.tiny import CONFIGS
from sparsepo_jax.build.weights import random_weights
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.main import main
from sparsepo_jax.models import narrowing
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.lora import hold_base
from sparsepo_jax.models.narrowing import narrow_at_random
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.stages.export import rounded_to
from sparsepo_jax.train.rounding import spread

BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
BOTH = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


@BOTH
def test_numbers_of_the_narrow_type_stay_as_they_are(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(256, 256)
    narrowed = narrow_at_random(wide(every), dtype, "w")
    np.testing.assert_array_equal(wide(narrowed), wide(every))
    assert narrowed.shape == every.shape and np.signbit(wide(narrowed)).sum() == np.signbit(wide(every)).sum()


@BOTH
@pytest.mark.parametrize("x", [1.0003, 0.9999, -1.0003, 3e-7, 1.0])
def test_a_number_becomes_one_of_its_neighbours_and_itself_on_average(dtype, x):
    """Just above and below a power of two neighbours are not equally far. Kills: the spacing of one side
    taken for both, and rounding to the nearest."""
    count = 400_000
    narrowed = wide(narrow_at_random(np.full(count, x, np.float32), dtype, "w"))
    nearest = np.float32(x).astype(dtype)
    around = {float(wide(np.nextafter(nearest, np.array(side, dtype)))) for side in (-np.inf, np.inf)}
    found = set(map(float, np.unique(narrowed)))
    assert found <= around | {float(nearest)} and len(found) <= 2
    assert found == {x} or min(found) < x < max(found)
    error = narrowed.astype(np.float64).mean() - np.float32(x)
    assert abs(error) <= 5 * narrowed.std() / count**0.5
    assert (narrowed.std() > 0) == (np.float32(x) != wide(nearest))


@BOTH
def test_what_is_beyond_all_numbers_is_infinite(dtype):
    x = np.array([np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    narrowed = wide(narrow_at_random(x, dtype, "w"))
    np.testing.assert_array_equal(narrowed[:3], x[:3])
    assert narrowed[3] == np.inf or abs(narrowed[3] / 3.4e38 - 1) < 0.01


def test_a_name_always_draws_the_same_numbers_and_others_draw_others(monkeypatch):
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    first = narrow_at_random(x, BFLOAT16, "layers.0.w").tobytes()
    assert narrow_at_random(x, BFLOAT16, "layers.0.w").tobytes() == first
    assert narrow_at_random(x, BFLOAT16, "layers.1.w").tobytes() != first
    monkeypatch.setattr(narrowing, "BLOCK", 64)
    assert narrow_at_random(x, BFLOAT16, "layers.0.w").tobytes() == first


# ---------------------------------------------------------------- a run of small changes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint in bfloat16."""
    return run(tmp_path_factory.mktemp("model"), stages=["export"], export={"dtype": "bfloat16"}) / "export"


def trained_from(model, directory, **changes):
    """(the export of a run, the same in float32). It changes weights by less than half of a last digit."""
    po = {"optimizer": {"kind": "adamw", "learning_rate": 3e-6}} | changes.pop("po", {})
    changes |= {"stages": ["po", "export"], "po": po, "policy": {"config": None, "path": str(model)}}
    exported = run(directory, tokenizer=None, **changes) / "export"
    whole = directory / "float32"
    config = str(write_config(directory, tokenizer=None, **changes))
    assert main(["--config", config, "stages=[export]", "export.dtype=float32", f"export.path={whole}"]) == 0
    return exported, whole


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """What a run in float32 makes of it."""
    return trained_from(model, tmp_path_factory.mktemp("float32"))


def share_kept(model, exported, whole) -> float:
    """How much of the change of a run, `whole`, an export in bfloat16 has, projected on that change."""
    start, out, after = (load_file(path / "model.safetensors") for path in (model, exported, whole))
    assert {x.dtype for x in out.values()} == {torch.bfloat16} and after.keys() == out.keys()
    made = {name: after[name] - start[name].float() for name in after}
    kept = sum(((out[name].float() - start[name].float()) * made[name]).sum() for name in made)
    return float(kept / sum((x**2).sum() for x in made.values()))


def is_nearest(exported, whole) -> bool:
    out, after = (load_file(path / "model.safetensors") for path in (exported, whole))
    return all(torch.equal(x, after[name].to(torch.bfloat16)) for name, x in out.items())


def test_an_export_in_the_type_of_the_checkpoint_keeps_what_training_changed(model, trained):
    exported, whole = trained
    assert share_kept(model, exported, whole) == pytest.approx(1, abs=0.1) and not is_nearest(exported, whole)


def test_so_do_merged_adapters_whatever_the_activations(model, tmp_path, capsys):
    changes = {"compute": {"dtype": "bfloat16"}, "po": {"lora": {"rank": 2}}}
    exported, whole = trained_from(model, tmp_path, **changes)
    assert share_kept(model, exported, whole) == pytest.approx(1, abs=0.1)
    assert "weights in bfloat16, rounded at random" in capsys.readouterr().out


def test_a_run_in_bfloat16_changes_what_one_in_float32_changes(model, trained, tmp_path, capsys):
    """Its weights are rounded to the nearest numbers in every step, and so exported: what was evaluated.

    Kills: a start from the checkpoint's numbers themselves, of whose change not half is seen.
    """
    exported, whole = trained_from(model, tmp_path, compute={"dtype": "bfloat16"})
    printed = capsys.readouterr().out
    assert is_nearest(exported, whole) and "at random" not in printed
    assert share_kept(model, exported, trained[1]) > 0.8
    assert "loss 0.6931 is that of policy = reference (log-ratio and KL at most 0 nats" in printed


@pytest.mark.parametrize(
    ("export", "compute", "merged", "marks", "expected"),
    [
        ("auto", {}, False, ["po"], "bfloat16"),  # trained, and evaluated on a CPU, in float32
        ("auto", {"dtype": "bfloat16"}, False, ["po"], None),
        ("auto", {"weights": "bfloat16"}, False, ["po"], None),
        ("auto", {"dtype": "bfloat16"}, True, ["sft", "po"], "bfloat16"),
        ("float16", {}, False, ["sft"], "float16"),
        ("float32", {}, True, ["po"], None),
        ("auto", {}, False, ["eval"], None),
    ],
)
def test_what_was_evaluated_is_told_from_what_is_exported(export, compute, merged, marks, expected):
    """For the model card, whose figures are of other weights where these are rounded behind them."""
    run = SimpleNamespace(
        config=make_config(export={"dtype": export}, compute=compute),
        marks=SimpleNamespace(all=lambda: {stage: {} for stage in marks}),
        checkpoint_dtype="bfloat16",
        mesh=make_mesh(None, 1, 1, None),
    )
    assert rounded_to(run, merged=merged) == expected


# ---------------------------------------------------------------- the start of a run in bfloat16

EVERY = np.arange(2**16, dtype=np.uint16).view(BFLOAT16)
FINITE = wide(EVERY)[np.isfinite(wide(EVERY)) & (wide(EVERY) != 0)]


def test_weights_are_spread_within_what_rounds_to_the_same_number():
    """Kills: offsets of half a digit, which round to another number, and powers of two, below which numbers
    lie closer."""
    for seed in range(3):
        weights = {"a": jnp.asarray(FINITE), "b": jnp.asarray(FINITE)}
        moved = spread(weights, seed)
        assert not weights and not np.array_equal(moved["a"], moved["b"])
        for x in moved.values():
            np.testing.assert_array_equal(wide(np.asarray(x).astype(BFLOAT16)), FINITE)
            assert np.mean(np.asarray(x) != FINITE) > 0.99  # but for the smallest, which XLA takes for zeros
    again = spread({"a": jnp.asarray(FINITE)}, 2)
    np.testing.assert_array_equal(again["a"], moved["a"])


def test_what_is_no_number_of_bfloat16_stays_and_zeros():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0003, 3e-39, 1 / 3], np.float32)
    np.testing.assert_array_equal(spread({"w": jnp.asarray(x)}, 0)["w"], x)


def test_a_small_change_of_spread_weights_is_kept_on_average():
    start = np.repeat(np.array([1.0, -0.05, 0.3], np.float32).astype(BFLOAT16).astype(np.float32), 200_000)
    moved = np.asarray(spread({"w": jnp.asarray(start)}, 0)["w"])
    rounded = wide((moved + np.float32(1e-5)).astype(BFLOAT16)).astype(np.float64)
    for of_number in np.split(rounded - start, 3):
        error = of_number.mean() - 1e-5
        assert abs(error) <= 5 * of_number.std() / len(of_number) ** 0.5


@pytest.mark.parametrize("config", named_slow_but(("gpt-oss",), CONFIGS))
def test_rounded_matrices_compute_what_they_did_where_activations_are_bfloat16(config):
    """So policy and reference agree at the start, whatever is rounded first. In every family."""
    spec = spec_from_hf(config)
    weights = random_weights(spec, 0, make_mesh(None, 1, 1))
    graph = split_module(nnx.eval_shape(lambda: Decoder(spec, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))[0]
    logits = [our_logits(graph, of, IDS, VALID)[0] for of in (weights, hold_base(weights, "bfloat16"))]
    np.testing.assert_array_equal(*logits)


def test_so_does_supervised_training(model, tmp_path):
    """Kills: an sft that starts from the checkpoint's numbers themselves."""
    sft = {"optimizer": {"kind": "adamw", "learning_rate": 3e-6}}
    settings = {"sft": sft, "policy": {"config": None, "path": str(model)}, "tokenizer": None}
    exports = {
        dtype: run(tmp_path / dtype, stages=["sft", "export"], compute={"dtype": dtype}, **settings)
        / "export"
        for dtype in ("float32", "bfloat16")
    }
    config = str(tmp_path / "float32" / "config.yaml")
    whole = tmp_path / "whole"
    assert main(["--config", config, "stages=[export]", "export.dtype=float32", f"export.path={whole}"]) == 0
    assert share_kept(model, exports["bfloat16"], whole) > 0.8
