"""Faults: damaged checkpoints, numbers that are not finite, files that change, signals, disks, kills.

The real program each time.
"""

import errno
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.interrupt import Interrupted, stop_before
from helpers.program import lines_of, run, weights_of, write_config
from helpers.quick import slow_but
from sparsepo_jax.main import RUN_AGAIN, main
from sparsepo_jax.run.faults import explain
from sparsepo_jax.stages import runner

PO = {
    "stages": ["po"],
    "checkpoint": {"every_steps": 2, "keep": 3},
    "evaluation": {"batch_size": 8, "sampled_prompts": None},
}


def same_weights(found: Path, expected: Path) -> None:
    expected, found = weights_of(expected), weights_of(found)
    assert expected.keys() == found.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def steps_in(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())


def array_file(directory: Path) -> Path:
    """The arrays' own bytes, all of which are read.

    (What each process wrote lies beside them in ocdbt.process_N: merged into these, and mostly dead.)
    """
    return max(
        (path for path in directory.rglob("d/*") if not path.parent.parent.name.startswith("ocdbt.process_")),
        key=lambda path: path.stat().st_size,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed po, and its directory; copied before anything is done to it."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory, **PO)


def unfinished(whole, tmp_path: Path) -> tuple[Path, Path]:
    """(config, output_dir) of a run whose last part was never done: checkpoints at 2, 4 and 6, no end."""
    directory, _ = whole
    shutil.copytree(directory, tmp_path / "copy")
    output = tmp_path / "copy" / "run"
    shutil.rmtree(output / "po" / "final")
    (output / "stages.json").unlink()
    return write_config(tmp_path / "copy", **PO), output


# ---------------------------------------------------------------- checkpoints


def flip(path: Path) -> None:
    """Another bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", slow_but([flip], [flip, cut, Path.unlink]))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path, capsys, harm):
    config, output = unfinished(whole, tmp_path)
    assert steps_in(output / "po") == [2, 4, 6]
    harm(array_file(output / "po" / "checkpoints" / "6"))
    assert main(["--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert (
        "checkpoints/6 is damaged" in said
        and "the one of step 4 is used" in said
        and "po: continues after step 4 of 6" in said
    )
    assert (output / "po" / "damaged_6").exists() and steps_in(output / "po") == [2, 4, 6]
    same_weights(output / "po", whole[1] / "po")


def test_damage_that_decompresses_is_found_by_the_checksums(tmp_path):
    """Written by Orbax itself, with another number in one place, which only the checksum can know.

    Kills: a checksum that does not depend on places.
    """
    import jax.numpy as jnp
    from orbax.checkpoint import v1 as ocp

    from sparsepo_jax.core.errors import UserError
    from sparsepo_jax.train.checkpoint import load_once
    from sparsepo_jax.train.checksums import checksums

    state = {
        "a.kernel": jnp.arange(6.0).reshape(2, 3),
        "b": jnp.ones(4, jnp.bfloat16),
        "c": jnp.array([True, False]),
    }
    assert checksums(state) == checksums(dict(reversed(state.items())))
    for other in (
        state | {"a.kernel": state["a.kernel"].at[1, 2].set(5.0000005)},
        state | {"a.kernel": state["a.kernel"][::-1]},
        state | {"c": ~state["c"]},
    ):
        ocp.save(
            (tmp_path / "state").resolve(),
            other,
            custom_metadata={"checksums": checksums(state)},
            overwrite=True,
        )
        with pytest.raises(UserError, match="is damaged .*(a.kernel|c).* not as written"):
            load_once(tmp_path / "state", state)


def test_small_arrays_have_the_same_checksum_without_a_program(monkeypatch):
    """Kills: a state that was written on an accelerator and is called damaged on a CPU."""
    import jax
    import jax.numpy as jnp

    from sparsepo_jax.train import checksums

    draws = jax.random.normal(jax.random.key(0), (3, 4, 5))
    state = {name: draws.astype(name) for name in ("float32", "bfloat16", "float16", "int8", "bool")}
    state |= {"scalar": jnp.int32(-7), "none": jnp.zeros((0, 3))}
    with_numpy = checksums.checksums(state)
    assert len({with_numpy[f"['{name}']"] for name in ("float32", "bfloat16", "float16", "bool")}) == 4
    monkeypatch.setattr(checksums, "SMALL", -1)
    assert checksums.checksums(state) == with_numpy
    monkeypatch.setattr(checksums, "SMALL", 8)
    assert checksums.checksums(state) == with_numpy


def test_if_all_checkpoints_are_damaged_the_run_says_what_to_do(whole, tmp_path, capsys):
    config, output = unfinished(whole, tmp_path)
    for step in (2, 4, 6):
        cut(array_file(output / "po" / "checkpoints" / str(step)))
    assert main(["--config", str(config)]) == 1
    assert "there is no older one; delete" in capsys.readouterr().err
    assert steps_in(output / "po") == [2, 4, 6], "they stay, since what was wrong may be something else"


@pytest.mark.parametrize(
    ("error", "is_raised"),
    [
        (OSError(24, "Too many open files"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ValueError("RESOURCE_EXHAUSTED: Failed to open: Too many open files [os_error_code='24']"), True),
        (KeyboardInterrupt(), True),
        (OSError(5, "Input/output error"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
    ],
)
def test_a_fault_from_elsewhere_is_no_damage(error, is_raised):
    """Orbax says of any that the checkpoint is none. Kills: sound checkpoints that are put aside."""
    from sparsepo_jax.train.checkpoint import _load

    def load():
        raise KeyError("no entry for state") from error

    if is_raised:
        with pytest.raises(KeyError):
            _load(load)
    else:
        assert "no entry" in _load(load)[1]


# ---------------------------------------------------------------- records


def test_a_record_that_a_power_cut_emptied_is_one_line_and_costs_nothing(whole, tmp_path, capsys):
    config, output = unfinished(whole, tmp_path)
    (output / "stages.json").write_text("{}")
    for name in (
        "stages.json",
        *(f"po/{name}.json" for name in ("settings", "data", "computing", "reference")),
    ):
        content = (output / name).read_bytes()
        for left in (b"", b"\0" * len(content), b"null", b'{"po": {"depends": null, "finished": 1}}'):
            if name != "stages.json" and b"depends" in left:
                continue
            (output / name).write_bytes(left)
            assert main(["--config", str(config)]) == 1
            error = capsys.readouterr().err
            assert f"{name}: expected " in error and "bring the old file back, or delete it" in error, error
        (output / name).unlink()  # what it says to do, for the next name, too
    assert main(["--config", str(config)]) == 0
    assert "po: continues after step 6 of 6" in capsys.readouterr().out
    same_weights(output / "po", whole[1] / "po")


def test_a_result_that_a_power_cut_shortened_is_made_again(whole, tmp_path, capsys):
    """Kills: `eval: finished before`, while the report says to run eval again."""
    from sparsepo_jax.config.load import load_config
    from sparsepo_jax.run.resume import Marks

    config, output = unfinished(whole, tmp_path)
    marks, path = Marks(load_config(config)[0]), output / "summary.json"
    path.write_text(json.dumps({"after": {}}))
    marks.mark("eval", 1.0)
    assert marks.finished("eval", path)
    cut(path)
    assert not marks.finished("eval", path)


def test_a_damaged_start_is_refused(whole, tmp_path, capsys):
    """It is the reference: without it the run cannot go on."""
    config, output = unfinished(whole, tmp_path)
    flip(array_file(output / "po" / "start"))
    assert main(["--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert "po/start is damaged" in error and "bring back a copy" in error and error.count("\n") == 1


def test_what_a_damaged_end_asks_for_runs_the_stage_anew(whole, tmp_path, capsys):
    """Kills: `po: finished before`, since stages.json says so of weights that are gone."""
    shutil.copytree(whole[0], tmp_path / "copy")
    output = tmp_path / "copy" / "run"
    flip(array_file(output / "po" / "final"))
    config = str(write_config(tmp_path / "copy", **(PO | {"stages": ["po", "export"]})))
    assert main(["--config", config]) == 1
    asked = f"delete {output}/po and stages.json beside it to run the stage po anew"
    assert asked in capsys.readouterr().err
    shutil.rmtree(output / "po")
    (output / "stages.json").unlink()
    assert main(["--config", config]) == 0
    same_weights(output / "po", whole[1] / "po")


def test_what_a_finished_stage_left_and_is_gone_is_said_by_what_needs_it(whole, tmp_path, capsys):
    """Kills: "damaged (Could not recognize the checkpoint ...", an export without weights that is "finished
    before", and "no preference optimisation has run" where po/start alone is gone."""
    shutil.copytree(whole[0], tmp_path / "copy")
    output = tmp_path / "copy" / "run"
    config = ["--config", str(write_config(tmp_path / "copy", **PO))]
    assert main([*config, "stages=[export]"]) == 0
    shutil.copytree(output, tmp_path / "kept")
    (output / "export" / "model.safetensors").unlink()
    capsys.readouterr()
    assert main([*config, "stages=[po, export]"]) == 0
    assert "po: finished before\n" in (said := capsys.readouterr().out) and "export: finished" not in said
    same = [path / "export" / "model.safetensors" for path in (output, tmp_path / "kept")]
    assert same[0].read_bytes() == same[1].read_bytes()

    shutil.rmtree(output / "po" / "start")
    assert main([*config, "stages=[eval]"]) == 1
    asked = f"delete {output}/po and stages.json beside it to run the stage po anew"
    assert f"{output}/po/start is gone" in (error := capsys.readouterr().err) and asked in error
    assert error.count("\n") == 1

    shutil.copytree(tmp_path / "kept" / "po" / "start", output / "po" / "start")
    shutil.rmtree(output / "po" / "final")
    assert main([*config, "stages=[po, score]"]) == 1
    said, error = capsys.readouterr()
    assert f"po: finished before; {output}/po/final is gone\n" in said
    asked = f"delete {output}/stages.json and run the stage po again"
    assert f"{output}/po/final is gone" in error and asked in error and error.count("\n") == 1
    (output / "stages.json").unlink()
    assert main([*config, "stages=[po, score]"]) == 0
    assert "po: continues after step 6 of 6" in capsys.readouterr().out
    same_weights(output / "po", whole[1] / "po")


def test_an_sft_that_no_mark_knows_is_not_left_out(tmp_path, capsys):
    """Kills: po from the base model, after stages.json was deleted as a line asked."""
    config = str(
        write_config(tmp_path, **(PO | {"stages": ["sft"], "sft": {"steps": 2}, "po": {"steps": 1}}))
    )
    assert main(["--config", config]) == 0
    (tmp_path / "run" / "stages.json").unlink()
    capsys.readouterr()
    assert main(["--config", config, "stages=[po]"]) == 1
    error = capsys.readouterr().err
    assert "run/sft lies there" in error and "run it again" in error and error.count("\n") == 1
    assert main(["--config", config]) == 0 == main(["--config", config, "stages=[po]"])
    assert "sft: continues after step 2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(("begun", "read"), [("sft", "po"), ("sft", "export"), ("po", "export")])
def test_a_stage_that_is_not_finished_is_not_left_out_by_those_behind_it(
    begun, read, tmp_path, capsys, monkeypatch
):
    """Kills: po from the base model, and an export of what po started from, both with status 0."""
    settings = PO | {"stages": [begun], "checkpoint": {"every_steps": 1}, "sft": {"steps": 3}}
    config = ["--config", str(write_config(tmp_path, **settings))]
    with monkeypatch.context() as patched:
        stop_before(patched, 2)
        with pytest.raises(Interrupted):
            main(config)
    capsys.readouterr()
    assert main([*config, f"stages=[{read}]"]) == 1
    error = capsys.readouterr().err
    assert f"stage {begun}" in error and "run it again with the stage" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "export").exists()
    assert main([*config, f"stages=[{begun}, {read}]"]) == 0
    assert f"{begun}: continues after step" in capsys.readouterr().out


def test_adapters_of_an_sft_go_on_upon_the_base_that_they_began_upon(tmp_path, capsys, monkeypatch):
    """Kills: checkpoints hold adapters alone, which went on upon whatever lay in policy.path by then."""
    model = run(tmp_path / "made", "stages=[export]") / "export"
    settings = PO | {"stages": ["sft"], "policy": {"config": None, "path": str(model)}}
    settings |= {"checkpoint": {"every_steps": 1}, "sft": {"steps": 3, "lora": {"rank": 2}}}
    config = ["--config", str(write_config(tmp_path, **settings))]
    with monkeypatch.context() as patched:
        stop_before(patched, 2)
        with pytest.raises(Interrupted):
            main(config)
    kept = load_file(model / "model.safetensors")
    save_file({name: x * 1.5 for name, x in kept.items()}, model / "model.safetensors", {"format": "pt"})
    assert main(config) == 1
    assert f"the base ({model}) has other weights than when sft began" in capsys.readouterr().err
    save_file(kept, model / "model.safetensors", {"format": "pt"})
    assert main(config) == 0
    assert "sft: continues after step" in capsys.readouterr().out


def test_random_weights_that_nobody_trained_are_told_once(tmp_path, capsys):
    config = ["--config", str(write_config(tmp_path, **(PO | {"sft": {"steps": 2}, "po": {"steps": 1}})))]
    assert main([*config, "stages=[generate, export]"]) == 0
    assert capsys.readouterr().out.count("note: the policy is random weights") == 1
    assert main([*config, "stages=[sft, po, export]"]) == 0
    assert "random weights" not in capsys.readouterr().out


# ---------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory):
    """A checkpoint whose position 12 is not a number: only rows that are as long meet it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    directory = tmp_path_factory.mktemp("broken") / "model"
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        model.transformer.wpe.weight[12] = float("nan")
    model.save_pretrained(directory)
    return directory


def broken_config(tmp_path: Path, model: Path, long: set[int], **po) -> Path:
    """24 pairs in batches of 8; the `long` ones meet what is broken in the model."""
    rows = [
        {
            "prompt_ids": [1, 2, n % 5],
            "chosen_ids": [5, 6, 7] * (4 if n in long else 1),
            "rejected_ids": [8, 9],
        }
        for n in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"steps": 6, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.001}} | po
    return write_config(
        tmp_path,
        **(
            PO
            | {
                "data": {"train": [{"path": str(tmp_path / "pairs.jsonl")}], "eval": [], "sft": []},
                "po": training,
                "policy": {"config": None, "path": str(model)},
                "tokenizer": {"kind": "auto"},
                "objective": {"kind": "sparsepo", "mask": {"kind": "ones"}},
            }
        ),
    )


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(broken_model, tmp_path, capsys):
    assert main(["--config", str(broken_config(tmp_path, broken_model, {16}))]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has loss" in error and "pairs.jsonl:17;" in error and "po.skip_nonfinite" in error


def test_so_many_updates_may_be_left_out(broken_model, tmp_path, capsys):
    """Two epochs of three batches, so the row comes twice.

    What is left out changes no weight, and counts over a restart.
    """
    config = str(broken_config(tmp_path, broken_model, {16}, skip_nonfinite=1))
    assert main(["--config", config]) == 1
    error = capsys.readouterr().err
    assert "left out (1 of at most 1)" in error and error.splitlines()[-1].startswith("error: po: step ")
    assert main(["--config", config, "po.skip_nonfinite=2"]) == 0
    weights = weights_of(tmp_path / "run" / "po")
    assert {path for path, x in weights.items() if not np.isfinite(x).all()} == {
        "policy/embed_positions.embedding"
    }  # as it came
    assert lines_of(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 2


# ---------------------------------------------------------------- files that change


@pytest.mark.slow
def test_a_data_file_that_changes_between_stop_and_resume_is_noticed(broken_model, tmp_path, capsys):
    config = str(broken_config(tmp_path, broken_model, set()))
    assert main(["--config", config]) == 0
    shutil.rmtree(tmp_path / "run" / "po" / "final")
    (tmp_path / "run" / "stages.json").unlink()
    rows = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text(rows.replace('"rejected_ids": [8, 9]', '"rejected_ids": [9, 8]', 1))
    assert main(["--config", config]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:") and "pairs.jsonl: other rows than those that stage po" in error
    (tmp_path / "pairs.jsonl").write_text(rows)
    os.utime(tmp_path / "pairs.jsonl", (0, 0))  # the same rows with another date are the same
    assert main(["--config", config]) == 0


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [
        (signal.SIGTERM, RUN_AGAIN, "stopped by SIGTERM"),
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_and_says_how_to_go_on(
    whole, tmp_path, capsys, monkeypatch, number, status, says
):
    """No checkpoint is due before the end; the signal comes while a step is under way."""
    from sparsepo_jax.train import loop

    def update_with_signal(update, at):
        def signalled(state, reference, batch):
            if int(state.step) == at:
                os.kill(os.getpid(), number)
            return update(state, reference, batch)

        return signalled

    run_training = loop.run_training
    config = write_config(tmp_path, **(PO | {"checkpoint": {"every_steps": 100}}))
    with monkeypatch.context() as patched:
        patched.setattr(
            "sparsepo_jax.stages.training.run_training",
            lambda work, *rest, **parts: run_training(
                work._replace(update=update_with_signal(work.update, 2)), *rest, **parts
            ),
        )
        assert main(["--config", str(config)]) == status
    said = capsys.readouterr().err.splitlines()[-1]
    assert says in said and "the same command continues the run" in said
    assert main(["--config", str(config)]) == 0
    assert "po: continues after step 3 of 6" in capsys.readouterr().out
    same_weights(tmp_path / "run" / "po", whole[1] / "po")


def test_a_signal_outside_of_training_ends_the_run_at_once(tmp_path, capsys, monkeypatch):
    def inspect(run):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setitem(runner.STAGES, "inspect", inspect)
    assert main(["--config", str(write_config(tmp_path, stages=["inspect"]))]) == RUN_AGAIN
    assert "stopped by SIGTERM" in capsys.readouterr().err


# ---------------------------------------------------------------- disks, rights, memory


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 3 MiB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_said_in_one_line_and_nothing_is_lost(whole, tmp_path, full_disk, capsys, caplog):
    """Kills, too: a thousand lines of tracebacks of Orbax's threads before that line."""
    config = str(write_config(tmp_path, **(PO | {"output_dir": str(full_disk / "run")})))
    needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole[1].rglob("*") if path.is_file())
    room = full_disk / "something.else"
    room.write_bytes(b"x" * (3 * 2**20 - needed * 6 // 10))
    assert main(["--config", config]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:") and "no space left" in error and "make room" in error
    assert not caplog.records
    room.unlink()
    assert main(["--config", config]) == 0
    same_weights(full_disk / "run" / "po", whole[1] / "po")


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        pytest.param("JAX_PLATFORMS=cuda", "unset it to take what there is", marks=pytest.mark.slow),
        ("JAX_PLATFORMS=gpuu", "JAX finds no such devices here (Unable to initialize backend 'gpuu'"),
        ("JAX_ENABLE_X64=1", "arrays would have 64 bits"),
        pytest.param("JAX_ENABLE_X64=maybe", "invalid truth value 'maybe'", marks=pytest.mark.slow),
        pytest.param("JAX_DISABLE_JIT=1", "would be switched off", marks=pytest.mark.slow),
    ],
)
def test_what_the_environment_tells_jax_and_cannot_be_is_one_line(variable, says, tmp_path):
    """Kills: an AssertionError without a word, and a good checkpoint called damaged, to be deleted."""
    name, _, value = variable.partition("=")
    if value == "cuda" and importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("CUDA is installed here")
    command = [sys.executable, "-m", "sparsepo_jax.main", "--config", write_config(tmp_path, **PO)]
    result = subprocess.run(command, env=os.environ | {name: value}, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    assert name in result.stderr and says in result.stderr and "unset it" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/there/file"), "/there/file: no permission"),
        (OSError(30, "Read-only file system", "/there"), "/there: the file system is read-only"),
        (ValueError("UNKNOWN: write failed [errno ENOSPC: No space left on device]"), "OUT: no space left"),
        (MemoryError(), "the host is out of memory; take smaller micro-steps"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."),
            "a device is out of memory",
        ),
        (
            RuntimeError(
                "INTERNAL: Error dispatching computation: Out of memory allocating 1099511627776 bytes."
            ),
            "a device is out of memory (INTERNAL",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Error allocating device buffer; 3.2G free of the memory"),
            "a device is out of memory",
        ),
        (OSError(12, "Cannot allocate memory"), "the host is out of memory"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Attempting to allocate 4.50G. That was not possible."),
            "a device is out of memory",
        ),
        (RuntimeError("INTERNAL: Failed: CUDNN_STATUS_ALLOC_FAILED"), "a device is out of memory"),
        (
            ValueError('RESOURCE_EXHAUSTED: Failed to open "memory": Too many open files [os_error_code=24]'),
            "OUT: too many files are open: raise the limit (ulimit -n)",
        ),
        (RuntimeError("can't start new thread"), "OUT: no more processes or threads can be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), None),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), None),
        (
            OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/net/f"),
            "/net/f: the file system of the network is away",
        ),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), None),
        (
            NotADirectoryError(20, "Not a directory", "/a.yaml/run"),
            "/a.yaml/run: a part of this path is a file",
        ),
        (FileExistsError(17, "File exists", "/there"), "/there: something else is there"),
        (RuntimeError("RESOURCE_EXHAUSTED: too many pings"), None),
        (OSError(2, "No such file or directory", "pairs.jsonl"), "pairs.jsonl: No such file or directory"),
        (KeyError("a fault of the program"), None),
    ],
)
def test_faults_from_outside_are_one_line_with_what_to_do(error, says):
    found = explain(error, "OUT")
    assert found is None if says is None else found.startswith(says) and "\n" not in found
    wrapped = RuntimeError("the save failed")
    wrapped.__cause__ = error
    assert explain(wrapped, "OUT") == found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited by Linux's means")
def test_a_run_that_is_out_of_memory_ends_in_one_line(tmp_path):
    """The real allocator refuses the real array: an embedding of 128 GiB where 32 may be had.

    So nothing is ever filled.
    """
    policy = {
        "config": {
            "model_type": "gpt2",
            "vocab_size": 2**24,
            "n_layer": 1,
            "n_head": 2,
            "n_embd": 2048,
            "n_positions": 64,
        }
    }
    config = write_config(tmp_path, **(PO | {"policy": policy}))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35)); from "
        "sparsepo_jax.main import main; sys.exit(main(sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", limited, "--config", str(config)], capture_output=True, text=True, timeout=300
    )
    said = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert said.startswith("error: a device is out of memory") and "compute.mesh.fsdp" in said


# ---------------------------------------------------------------- processes that are killed


def kill_when(command: list[str], ready: Callable[[], bool], delay_s: float = 0.0) -> None:
    """Starts the program and sends kill -9 so long after ready().

    That is asked every few milliseconds, so that the speed of the machine does not matter.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ready():
        assert process.poll() is None, f"the run ended ({process.returncode}) before it was killed"
        time.sleep(0.003)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: raise `steps`"


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.exists() else []


def is_written(directory: Path) -> bool:
    """Whether a checkpoint below lies under a passing name."""
    return any(not name.isdigit() for name in names_in(directory))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [pytest.param(3, id="three"), pytest.param(20, id="twenty")])
def test_kills_all_over_a_run_end_in_the_same_bits(kills, tmp_path):
    """kill -9 all over stage po, then a run to the end.

    It comes as po's start is written, as its end is written, and in between at random steps spread over the
    run: in turn while the checkpoint of the step is being written and up to 0.3 s after it was (a checkpoint
    comes every second step).

    pytest tests/test_faults.py -m slow -k twenty -s
    """
    steps, draws = 160, random.Random(0)
    changes = PO | {
        "po": {"steps": steps, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.0001}}
    }
    whole = run(tmp_path / "whole", **changes)
    command = [
        sys.executable,
        "-m",
        "sparsepo_jax.main",
        "--config",
        str(write_config(tmp_path / "parts", **changes)),
    ]
    po = tmp_path / "parts" / "run" / "po"

    def saved():
        return max((int(name) for name in names_in(po / "checkpoints") if name.isdigit()), default=0)

    kill_when(command, lambda: any(name.startswith("start") for name in names_in(po)))
    writing, moments = 0, []
    for n in range(kills - 2):
        before = saved()
        target = max(before + 2, int(0.8 * steps * (n + draws.random()) / (kills - 2)))
        if n % 2 == 0:
            kill_when(command, lambda target=target: saved() >= target and is_written(po / "checkpoints"))
        else:
            kill_when(command, lambda target=target: saved() >= target, draws.uniform(0.0, 0.3))
        writing += is_written(po / "checkpoints")
        moments.append(saved())
        assert moments[-1] > before, "each part goes further"
    kill_when(command, lambda: any(name.startswith("final") for name in names_in(po)))
    assert not (po.parent / "stages.json").exists(), "po was not done yet"
    subprocess.run(command, check=True, capture_output=True)
    print(
        f"\n{kills} kills: at the start, after checkpoints {moments} of {steps} steps ({writing} "
        f"while a checkpoint was being written), at the end"
    )
    assert writing >= max(1, kills // 4) and (
        kills < 20 or (moments[0] < 0.2 * steps and moments[-1] > 0.6 * steps)
    )
    same_weights(po, whole / "po")
