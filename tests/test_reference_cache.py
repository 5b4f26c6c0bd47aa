"""The reference's log-probs and masks from the disk: the same training, found again when nothing that
counts has changed."""

import json

import numpy as np
import pytest

from helpers.program import lines_of, run, weights_of, write_config
from sparsepo_jax.main import main

PO = {"steps": 3, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.001}}
MAPO = {"kind": "mapo", "mask": {"kind": "activation", "on": "reward_only", "normalise": True}}


def cached_run(directory, cache, objective, *, seed=0, po=PO, cached=True, **changes):
    data = {"train": [{"kind": "reviews", "rows": 30, "seed": 2}], "buckets": 1}
    return run(
        directory,
        stages=["po"],
        objective=objective,
        po=po,
        seed=seed,
        reference={"cached": cached, "cache_dir": str(cache)},
        **{"data": data} | changes,
    )


def cached_config(directory, cache, objective, **changes):
    return write_config(
        directory,
        stages=["po"],
        po=PO,
        reference={"cached": True, "cache_dir": str(cache)},
        objective=objective,
        **changes,
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """SMALL's objective has a learned mask: another kind takes its place whole."""
    from helpers import program

    monkeypatch.setattr(
        program, "SMALL", {name: value for name, value in program.SMALL.items() if name != "objective"}
    )


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "dpo"},
        pytest.param(MAPO, marks=pytest.mark.slow),
        pytest.param(
            {"kind": "sparsepo", "mask": {"kind": "confidence", "on": "reward_only"}}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda x: x["kind"],
)
def test_training_is_the_same_and_a_second_run_finds_the_file(tmp_path, capsys, objective):
    plain = cached_run(tmp_path / "plain", tmp_path / "cache", objective, cached=False)
    assert "(log-ratio and KL at most" in capsys.readouterr().out
    first = cached_run(tmp_path / "first", tmp_path / "cache", objective)
    said = capsys.readouterr().out
    assert "log-probs of 30 pairs computed" in said and "(log-ratio at most" in said  # the KL is unknown
    again = cached_run(
        tmp_path / "again",
        tmp_path / "cache",
        objective,
        po=PO | {"optimizer": {"kind": "adamw", "learning_rate": 0.001}, "batch_size": 8},
    )
    assert "log-probs of 30 pairs found on disk" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").iterdir())) == 1
    expected, computed, cached = (weights_of(output / "po") for output in (plain, first, again))
    for path in expected:
        np.testing.assert_allclose(computed[path], expected[path], atol=2e-5, err_msg=path)
        np.testing.assert_array_equal(cached[path], computed[path], err_msg=path)
    of_plain, of_cached = (lines_of(output / "metrics.jsonl")[-1] for output in (plain, first))
    np.testing.assert_allclose(of_cached["loss"], of_plain["loss"], atol=1e-5)
    assert "kl/chosen" in of_plain and not any(name.startswith("kl/") for name in of_cached), (
        "unknown is not zero"
    )


@pytest.mark.slow
def test_what_counts_misses_and_what_does_not_hits(tmp_path, capsys):
    cache, dpo = tmp_path / "cache", {"kind": "dpo"}

    def is_found(name, objective=dpo, **changes):
        capsys.readouterr()
        cached_run(tmp_path / name, cache, objective, **changes)
        return "found on disk" in capsys.readouterr().out

    assert not is_found("one")
    assert is_found(
        "rate",
        {"kind": "ipo", "beta": 0.5},
        po=PO | {"optimizer": {"kind": "lion", "learning_rate": 0.1}, "steps": 1},
    )
    assert is_found("layout", compute={"layout": "plain"}, evaluation={"batch_size": 16})
    data = {"train": [{"kind": "reviews", "rows": 30, "seed": 2}], "buckets": 1}
    assert not is_found("truncation", data=data | {"max_length": 50, "max_prompt_length": 20})
    assert not is_found("tokens", data=data | {"train": [{"kind": "reviews", "rows": 30, "seed": 4}]})
    assert not is_found("reference", seed=1), "another random start is another reference"
    assert not is_found("mask", MAPO) and is_found("mask again", MAPO | {"beta": 0.3})
    assert not is_found("other mask", MAPO | {"mask": MAPO["mask"] | {"mapping": "sigmoid"}})


@pytest.mark.slow
def test_a_file_of_something_else_is_refused_and_half_a_file_is_made_anew(tmp_path, capsys):
    cache = tmp_path / "cache"
    cached_run(tmp_path / "one", cache, {"kind": "dpo"})
    (file,) = cache.iterdir()
    config = str(
        cached_config(
            tmp_path / "two",
            cache,
            {"kind": "dpo"},
            data={"train": [{"kind": "reviews", "rows": 30, "seed": 2}], "buckets": 1},
        )
    )
    # Of the same reference: held in another type it would be another one, with a file of its own.
    command = ["--config", config, "reference.dtype=float32"]
    with np.load(file) as arrays:
        kept = dict(arrays)
    other = json.dumps(json.loads(str(kept["about"])) | {"dtype": "bfloat16"})
    np.savez(file, **kept | {"about": other})
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert (
        f"{file}: reference log-probs of something else: dtype 'bfloat16' (expected 'float32'); delete "
        "the file" in errors
    )
    np.savez(file, **kept | {"ref_logp": kept["ref_logp"][:-1]})
    assert main(command) == 1
    assert "another number of tokens" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:100])
    assert main(command) == 0
    out = capsys.readouterr().out
    assert (
        f"{file} is damaged" in out
        and "computed in" in out
        and json.loads(str(np.load(file)["about"]))["dtype"] == "float32"
    )


def test_a_damaged_file_is_made_anew_and_said_whatever_the_damage(tmp_path, capsys):
    """Kills: a kind of damage that ends in a traceback, or in training on what is left of the file."""
    from sparsepo_jax.train.reference_cache import _read, _write

    file, about, columns = (
        tmp_path / "kept.npz",
        {"key": 1},
        {"ref_logp": np.linspace(-3, 0, 400, dtype=np.float32)},
    )

    def read():
        return _read(file, about, ("ref_logp",), 400)

    assert read() is None and capsys.readouterr().out == "", "nothing there is no damage"
    _write(file, about, columns)
    whole = file.read_bytes()
    np.testing.assert_array_equal(read()["ref_logp"], columns["ref_logp"])
    rng = np.random.default_rng(0)
    contents = [b"", whole[:100], whole[:-30], b"\x93NUMPY" + whole[6:], bytes(1000)]
    for at in [*range(60), *range(len(whole) - 300, len(whole)), *rng.integers(0, len(whole), 200)]:
        contents.append(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :])
    for content in contents:
        file.write_bytes(content)
        columns_read = read()
        printed = capsys.readouterr().out
        if columns_read is None:
            assert printed == f"note: {file} is damaged: the reference's log-probs are computed anew\n"
        else:  # a bit that nothing reads, such as a date
            np.testing.assert_array_equal(columns_read["ref_logp"], columns["ref_logp"])
    about_N = np.array(json.dumps(about))
    for parts in (
        {"about": about_N},
        {"about": np.array("[1, 2]"), **columns},
        {"about": about_N, "ref_logp": np.array(["a"])},
        {"about": about_N, "ref_logp": np.zeros((400, 1))},
        {"about": about_N, "ref_logp": np.full(400, np.nan)},
    ):
        np.savez(file, **parts)
        assert read() is None and "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "sparsepo"}, "objective.mask.kind learned reads the reference's states"),
        ({"kind": "mapo"}, "objective mapo has a KL term (but with objective.mask.on=reward_only)"),
        ({"kind": "tdpo2"}, "objective tdpo2 has a KL term"),
        ({"kind": "tbpo_a"}, "objective tbpo_a has a KL term"),
    ],
)
def test_objectives_that_need_the_reference_itself_are_refused(tmp_path, capsys, objective, message):
    assert main(["--config", str(cached_config(tmp_path, tmp_path, objective))]) == 2
    assert f"reference.cached: {message}" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_train_over_a_cached_reference(tmp_path):
    """The base is still needed; without the cache the adapters come out the same."""
    po = PO | {"lora": {"rank": 2, "base": "nf4"}}
    plain = weights_of(
        cached_run(tmp_path / "plain", tmp_path / "cache", {"kind": "dpo"}, po=po, cached=False) / "po"
    )
    cached = weights_of(cached_run(tmp_path / "cached", tmp_path / "cache", {"kind": "dpo"}, po=po) / "po")
    for path in plain:
        np.testing.assert_allclose(cached[path], plain[path], atol=2e-5, err_msg=path)
