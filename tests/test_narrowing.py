"""Weights rounded at random to 16 bits, in a file: what training has changed is kept."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.program import run, write_config
from sparsepo_jax.main import main
from sparsepo_jax.models import narrowing
from sparsepo_jax.models.narrowing import narrow_at_random
from sparsepo_jax.train.rounding import share_kept

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


# ---------------------------------------------------------------- the stage export


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint in bfloat16."""
    return run(tmp_path_factory.mktemp("model"), stages=["export"], export={"dtype": "bfloat16"}) / "export"


def changes_of(model, exported, trained) -> tuple[float, bool]:
    """(how much of the change that training made an export has, whether all of it is the nearest number)."""
    start, out, after = (load_file(path / "model.safetensors") for path in (model, exported, trained))
    assert {x.dtype for x in out.values()} == {torch.bfloat16} and after.keys() == out.keys()
    made = {name: after[name] - start[name].float() for name in after}
    whole = sum((x**2).sum() for x in made.values())
    kept = sum(((out[name].float() - start[name].float()) * made[name]).sum() for name in made)
    is_nearest = all(torch.equal(out[name], after[name].to(torch.bfloat16)) for name in made)
    return float(kept / whole), is_nearest


IN_16_BITS = {"compute": {"dtype": "bfloat16"}}


@pytest.mark.parametrize(
    "changes, at_random, counted",
    [
        ({}, True, False),
        (IN_16_BITS, False, True),
        (IN_16_BITS | {"po": {"lora": {"rank": 2}}}, True, False),
    ],
)
def test_an_export_in_the_type_of_the_checkpoint_keeps_what_training_changed(
    model, tmp_path, capsys, changes, at_random, counted
):
    """Of small changes, of which the nearest numbers lose most. Where the run computed with weights rounded
    to the nearest numbers, these are what was evaluated, and the evaluation says how little counts."""
    po = {"optimizer": {"kind": "adamw", "learning_rate": 3e-6}} | changes.get("po", {})
    settings = changes | {"po": po, "policy": {"config": None, "path": str(model)}, "tokenizer": None}
    stages = ["po", "eval", "export"]
    exported = run(tmp_path, stages=stages, **settings) / "export"
    printed = capsys.readouterr().out
    assert ("rounded at random" in printed) == at_random
    trained = tmp_path / "trained"
    more = ["stages=[export]", "export.dtype=float32", f"export.path={trained}"]
    assert main(["--config", str(write_config(tmp_path, stages=stages, **settings)), *more]) == 0
    kept, is_nearest = changes_of(model, exported, trained)
    assert is_nearest != at_random
    assert kept == pytest.approx(1, abs=0.1) if at_random else kept < 0.5
    summary = json.loads((exported.parent / "summary.json").read_text())
    assert summary.get("change_that_counts") == (pytest.approx(kept, abs=1e-3) if counted else None)
    assert ("of what training changed counts" in printed) == counted


def test_the_share_of_a_change_that_rounding_keeps():
    """Kills: a start that is not rounded, too, and differences that are not projected."""
    start = {"w": jnp.linspace(1, 2, 128, endpoint=False)}  # numbers of bfloat16, 1 / 128 apart
    moved = [{"w": start["w"] + change} for change in (0.003, 0.005, 1.0)]
    shares = [share_kept(start, now, "bfloat16") for now in moved]
    assert shares == pytest.approx([0, 1 / 128 / 0.005, 1], rel=1e-4)
    between = {"w": start["w"] + 0.0039 * jnp.linspace(-1, 1, 128)}
    assert share_kept(between, {"w": between["w"] + 0.001}, "bfloat16") == pytest.approx(1, abs=0.5)
    assert share_kept(start, moved[0], "float32") == pytest.approx(1)
    assert share_kept(start, start, "bfloat16") is None
