"""Every program of a training stage is compiled before its first step."""

import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from helpers.program import lines_of, run, write_config
from sparsepo_jax.core.program import Program, _kind
from sparsepo_jax.main import main
from sparsepo_jax.stages import evaluate, runner, sft
from sparsepo_jax.stages.po import po
from sparsepo_jax.stages.training import Prepared
from sparsepo_jax.train import loop

OURS = {"update", "_score", "_sums", "start"}  # not Orbax's copies of single arrays
# Lengths as on real dialogues: over a factor of thirty.
LENGTHS = np.clip(np.random.default_rng(0).lognormal(2.2, 0.8, (3, 120)), 2, 60).astype(int)


def write_pairs(path, rows):
    words = np.random.default_rng(1).integers(5, 90, (3, 60))
    path.write_text(
        "".join(
            json.dumps(
                {
                    f"{name}_ids": words[part, : length[part]].tolist()
                    for part, name in enumerate(("prompt", "chosen", "rejected"))
                }
            )
            + "\n"
            for length in rows
        )
    )


@pytest.fixture
def late(monkeypatch):
    """{stage: names of programs of ours that are compiled after its first step}."""
    late_names = {}
    where = [None, 0]  # stage, number of the batch

    class Names(logging.Handler):
        def emit(self, record):
            name = re.match(r"Compiling jit\((\w+)\)", record.getMessage())
            if name and name[1] in OURS and where[0] is not None and where[1] > 1:
                late_names[where[0]].append(name[1])

    def counted(batches):
        for number, batch in enumerate(batches, start=1):
            where[1] = number
            yield batch

    run_training = loop.run_training

    def watched(work, *rest, **parts):
        where[:] = work.stage, 0
        late_names[work.stage] = []
        try:
            return run_training(work._replace(batches=counted(work.batches)), *rest, **parts)
        finally:
            where[0] = None

    monkeypatch.setattr("sparsepo_jax.stages.training.run_training", watched)
    monkeypatch.setattr("sparsepo_jax.train.checksums.SMALL", -1)  # as on an accelerator
    jax.config.update("jax_log_compiles", True)
    handler, compiler = Names(), logging.getLogger("jax._src.interpreters.pxla")
    compiler.addHandler(handler)
    yield late_names
    compiler.removeHandler(handler)
    jax.config.update("jax_log_compiles", False)


def test_the_quickstarts_stages_compile_nothing_in_the_middle(tmp_path, late, capsys):
    """Its buckets, more than one epoch, evaluations and checkpoints in between.

    Kills: a shape that only a later epoch has; a checksum of the state that is compiled at the first
    checkpoint; scores that are compiled at the first evaluation.
    """
    output = run(
        tmp_path,
        "stages=[sft, po]",
        "data.buckets=2",
        "sft.steps=12",
        "po.steps=14",
        "po.eval_every_steps=5",
        "checkpoint.every_steps=4",
    )
    assert late == {"sft": [], "po": []}
    shown = capsys.readouterr()
    assert "sft: 1 batch shape, compiled " in shown.out and "po: 1 batch shape, compiled " in shown.out
    assert "in the middle" not in shown.err
    assert {row["programs"] for row in lines_of(output / "metrics.jsonl") if "programs" in row} <= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, (0.5, 1.5)])
def test_long_tailed_pairs_over_three_epochs_compile_nothing_in_the_middle(
    tmp_path, late, capsys, monkeypatch, weights
):
    """The default buckets, several shapes; with fractional weights, whose rows are drawn anew each epoch."""
    monkeypatch.setattr("sparsepo_jax.build.data.SHAPE_STEPS", 0)  # as if the run was long
    sources, rows = [], LENGTHS.T
    for n, weight in enumerate(weights or [1.0]):
        write_pairs(tmp_path / f"pairs_{n}.jsonl", rows[n :: len(weights or [1.0])])
        sources.append({"path": str(tmp_path / f"pairs_{n}.jsonl"), "weight": weight})
    output = run(
        tmp_path,
        "stages=[po]",
        "po.steps=null",
        "po.epochs=3",
        tokenizer=None,
        evaluation={"batch_size": 8, "sampled_prompts": None},
        policy={
            "config": {
                "model_type": "gpt2",
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 16,
                "n_positions": 128,
                "vocab_size": 96,
            }
        },
        data={"sft": [], "train": sources, "eval": [], "buckets": 4},
    )
    assert late == {"po": []}
    [programs] = {row["programs"] for row in lines_of(output / "metrics.jsonl")}
    assert programs <= 4
    shown = capsys.readouterr()
    assert re.search(r"po: [234] batch shapes, compiled (in [\d.]+ s|before)", shown.out)
    assert "in the middle" not in shown.err


def test_a_program_in_the_middle_is_said(tmp_path, capsys, monkeypatch):
    """Kills: a warm-up that fails silently."""
    monkeypatch.setattr(Program, "compile_ahead", lambda *_: lambda: (0, 0.0))
    jax.clear_caches()
    run(tmp_path, "stages=[sft]", "policy.config.n_embd=20")
    note = "note: sft: step 1 had a shape that was not known before the first step: program 1 was compiled in"
    assert f"{note} the middle" in capsys.readouterr().err


def test_programs_are_compiled_ahead_and_found_again():
    program = Program(jax.jit(lambda scale, x: scale * x))
    abstract = [
        jax.ShapeDtypeStruct((n,), np.float32, sharding=jax.numpy.zeros(1).sharding) for n in (3, 4, 3)
    ]
    count, seconds = program.compile_ahead([(2.0, x) for x in abstract])()
    assert count == len(program) == 2 and seconds > 0
    assert program(3.0, jax.numpy.ones(4)).tolist() == [3.0] * 4 and len(program) == 2
    assert program.compile_ahead([(5.0, abstract[0])])() == (0, 0.0)
    assert program(3.0, jax.numpy.ones(5)).tolist() == [3.0] * 5 and len(program) == 3


def test_a_program_that_failed_in_the_background_is_compiled_again(monkeypatch):
    """Kills: a failure, for want of memory beside training, that is kept and raised by the next call."""
    program = Program(jax.jit(lambda x: 2 * x))
    lower = program.lower
    monkeypatch.setattr(program, "lower", lambda *_: SimpleNamespace(compile=lambda: 1 / 0))
    wait = program.compile_ahead([(jax.numpy.ones(3),)])
    with pytest.raises(ZeroDivisionError):
        wait()
    monkeypatch.setattr(program, "lower", lower)
    failed = Future()
    failed.set_exception(ZeroDivisionError())
    program._compiled = {kind: failed for kind in [_kind((jax.numpy.ones(3),))]}
    assert program.compile_ahead([(jax.numpy.ones(3),)])()[0] == 1, "though its own callback has not run yet"
    assert program(jax.numpy.ones(3)).tolist() == [2.0] * 3


@pytest.mark.parametrize("status", [130, 1])
def test_a_run_that_was_stopped_does_not_wait_for_what_compiles_beside_it(status):
    """A program that takes ten minutes is begun and the process ends; what was printed is there."""
    script = f"""
import time
from sparsepo_jax.core.program import Program
from sparsepo_jax import main as program
from sparsepo_jax.main import console

class Slow:
    def lower(self):
        return self
    def compile(self):
        time.sleep(600)
    def _cache_size(self):
        return 0

Program(Slow()).compile_ahead([()])
print("printed")
program.main = lambda: {status}
console()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (status, "printed\n"), done.stderr
    scripts = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"sparsepo": "sparsepo_jax.main:console"}


def test_po_finds_its_programs_compiled_while_sft_trained(tmp_path, capsys, monkeypatch):
    """Kills: a program of po that is made for other shapes or shardings than po calls it with."""
    compiled = {"sft": [], "po": []}
    stage = "sft"
    plain_compile = Program._compile

    def noting(self, calls, **how):
        compiled[stage].extend(self.jitted.__name__ for _ in calls)
        return plain_compile(self, calls, **how)

    def noting_po(run):
        nonlocal stage
        stage = "po"
        po(run)

    monkeypatch.setattr(Program, "_compile", noting)
    monkeypatch.setitem(runner.STAGES, "po", noting_po)
    run(tmp_path, "stages=[sft, po]", "policy.config.n_layer=1", "sft.steps=1", "po.steps=1")
    assert compiled["po"] == [] and compiled["sft"].count("update") == 2 and "_score" in compiled["sft"]
    assert re.search(r"po: 1 batch shape, compiled in [\d.]+ s, while sft trained", capsys.readouterr().out)


@pytest.mark.parametrize(
    "platform, stages, finished, done",
    [
        ("cpu", ["sft", "po"], False, ["prepare"]),
        ("tpu", ["sft", "po", "eval"], False, ["prepare"]),
        ("gpu", ["sft", "po", "eval"], False, []),
        ("tpu", ["sft", "pairs", "po"], False, []),
        ("cpu", ["sft"], False, []),
        ("cpu", ["sft", "po"], True, []),
    ],
)
def test_when_po_is_compiled_while_sft_trains(monkeypatch, platform, stages, finished, done):
    """Kills: tilings that XLA times on a GPU beside sft's steps; rows that the stage pairs is to make."""
    did = []
    monkeypatch.setattr(sft, "prepare_po", lambda run: did.append("prepare"))
    run_of = SimpleNamespace(
        config=SimpleNamespace(stages=stages),
        marks=SimpleNamespace(finished=lambda stage: finished),
        mesh=None,
    )
    monkeypatch.setattr(sft, "platform_of", lambda mesh: platform)
    sft._prepare_po(run_of, {})
    assert did == done


def test_pairs_are_read_before_sft_trains(tmp_path, capsys):
    """Kills: a mistake in data.train that is found after hours of sft."""
    rows, good = tmp_path / "rows.jsonl", {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": [8]}
    rows.write_text('{"prompt_ids": [5], "chosen_ids": [6]}\n' + 8 * f"{json.dumps(good)}\n")
    config = write_config(tmp_path, stages=["sft", "po"], data={"train": [{"path": str(rows)}]})
    assert main(["--config", str(config)]) == 1
    assert "rows.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    mended = ["data.on_bad_row=skip", "sft.steps=1", "po.steps=1", "policy.config.n_layer=1"]
    assert main(["--config", str(config), *mended]) == 0, "whoever mends a mistake is not held to it"


def test_what_failed_to_compile_while_sft_trained_is_compiled_again():
    """Kills: a run that ends for want of memory beside sft, where po alone has enough."""

    def failed():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    parts = dict.fromkeys(Prepared._fields)
    parts |= {"plan": SimpleNamespace(shapes=[1]), "begin": lambda: [lambda: (1, 2.0)], "compiling": [failed]}
    words = "1 batch shape, compiled in 2.0 s; it had failed, while sft trained (RESOURCE_EXHAUSTED)"
    assert Prepared(**parts)._replace(beside="sft").wait() == words
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        Prepared(**parts).wait()


@pytest.mark.slow
def test_eval_finds_its_programs_compiled(tmp_path, capsys, monkeypatch):
    """Kills: a program of eval that is made for other shapes or shardings than eval calls it with."""
    compiled_in_eval: list[str] = []
    is_in_eval = False
    plain_compile, plain_wait = Program._compile, evaluate.wait_for_programs

    def noting(self, calls, **how):
        if is_in_eval:
            compiled_in_eval.extend(self.jitted.__name__ for _ in calls)
        return plain_compile(self, calls, **how)

    def wait(run):
        nonlocal is_in_eval
        plain_wait(run)
        is_in_eval = True

    monkeypatch.setattr(Program, "_compile", noting)
    monkeypatch.setattr(evaluate, "wait_for_programs", wait)
    run(
        tmp_path,
        "policy.config.n_layer=1",
        "objective={kind: dpo}",
        stages=["po", "eval"],
        po={"steps": 2},
        generation={"max_new_tokens": 5, "batch_size": 8},
    )
    assert compiled_in_eval == []
    assert re.search(r"eval: programs compiled in [\d.]+ s, while po trained", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("override", ["objective={kind: dpo}", "po.lora={rank: 2}"], ids=["cached", "lora"])
def test_other_references_compile_nothing_in_the_middle(tmp_path, late, capsys, override):
    """Kills: a program that is made for another reference than the step gets."""
    cached = {"cached": "dpo" in override, "cache_dir": str(tmp_path / "reference")}
    run(tmp_path, override, stages=["po"], reference=cached)
    assert late == {"po": []} and "in the middle" not in capsys.readouterr().err


HH = Path(os.environ.get("SPARSEPO_HH", "absent"))


@pytest.mark.slow
@pytest.mark.skipif(
    not HH.is_file(), reason="SPARSEPO_HH names no file of HH pairs (prompt, chosen, rejected)"
)
def test_real_dialogues_over_three_epochs_compile_nothing_in_the_middle(tmp_path, late, capsys, monkeypatch):
    """HH pairs with the default buckets, as a long run would have them."""
    monkeypatch.setattr("sparsepo_jax.build.data.SHAPE_STEPS", 0)
    output = run(
        tmp_path,
        "stages=[po]",
        "po.steps=null",
        "po.epochs=3",
        "po.batch_size=32",
        tokenizer={"kind": "bytes"},
        evaluation={"batch_size": 8, "sampled_prompts": None},
        policy={
            "config": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 512}
        },
        data={"sft": [], "train": [{"path": str(HH), "split": "train[:1000]"}], "eval": []},
    )
    assert late == {"po": []}
    assert "in the middle" not in capsys.readouterr().err
    assert {row["programs"] for row in lines_of(output / "metrics.jsonl")} <= {1, 2, 3, 4}
