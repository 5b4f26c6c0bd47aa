"""benchmarks/gpu.py: what it counts and leaves out, and one of its parts from end to end on CPU."""

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.tolerances import TOKEN
from sparsepo_jax.models.spec import spec_from_hf

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scripts(monkeypatch):
    """import_module for modules of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def bench(scripts, tmp_path):
    parts, ahead = scripts("gpu_bench"), scripts("ahead").Ahead()
    ceilings = {"card": "NVIDIA H200", "matrix_rate": 1e12}
    return parts.Bench(parts.TINY, True, tmp_path, {}, tmp_path / "log", None, ceilings, ahead)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob", "attention"),
        ("gemm_fusion_dot_12", "products"),
        ("MemcpyD2D", "copies"),
        ("loop_dynamic_update_slice_fusion", "copies"),
        ("wrapped_convert", "conversions"),
        ("input_reduce_fusion_3", "reductions"),
        ("loop_add_fusion", "other loops"),
    ],
)
def test_a_kernel_is_of_the_kind_that_its_name_says(scripts, name, kind):
    assert scripts("kernels").kind_of(name) == kind


def test_open_instructs_share_by_hand(scripts, bench):
    """Two sequences of 3 tokens in 1 layer of width 4 with 2 heads of 2, an MLP of 8, 10 words, in a second.

    A token: q, k, v, out 4 x 16, up and down 2 x 32, head 40, each for a multiply and an add; scores and
    their use 2 x 2 x 4 for each of 9 pairs of tokens. Three times all of it: forward, twice for backward."""
    spec = spec_from_hf(
        {
            "model_type": "gpt_neox",
            "vocab_size": 10,
            "max_position_embeddings": 8,
            "hidden_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "rotary_pct": 1.0,
            "hidden_act": "gelu",
        }
    )
    share = scripts("gpu_parts").open_instruct_mfu(bench, spec, np.array([3, 3]), 1.0)
    by_hand = 3 * 2 * (2 * (4 * 16 + 2 * 32 + 40) * 3 + 2 * 2 * 4 * 9)
    assert share == pytest.approx(by_hand / 989e12)


def test_no_share_over_a_data_sheet_that_is_not_known(scripts, bench):
    bench.ceilings["card"] = "cpu"
    parts = scripts("gpu_parts")
    spec = spec_from_hf(bench.shape("pythia-1.4b"))
    assert parts.open_instruct_mfu(bench, spec, np.array([3]), 1.0) is None


def test_options_are_those_of_the_schema(scripts):
    """A kernel or policy that is added to the schema is measured without a change here."""
    choices = scripts("gpu_parts").choices_of("attention")
    assert "cudnn" in choices and "auto" not in choices
    assert scripts("gpu_parts").choices_of("remat")


def test_jobs_are_chosen_by_part_or_by_the_beginning_of_a_name(scripts):
    gpu, parts = scripts("gpu"), scripts("gpu_parts")
    jobs = parts.all_jobs(scripts("gpu_bench").TINY, None)
    assert {job.part for job in gpu.wanted(jobs, ["trl"])} == {"trl"}
    assert {job.name for job in gpu.wanted(jobs, ["trl/pythia"])} == {
        "pythia-1.4b autocast",
        "pythia-1.4b bfloat16",
    }
    with pytest.raises(SystemExit, match="there is no stepz; parts: steps, trl, golden"):
        gpu.wanted(jobs, ["stepz"])


def test_a_job_that_does_not_fit_the_budget_is_left_out_and_the_next_is_tried(scripts, bench, tmp_path):
    gpu, parts = scripts("gpu"), scripts("gpu_bench")

    def work(bench, limit_s):
        yield {"name": "short", "seconds": limit_s}

    results = gpu.Results(tmp_path, {"card": "NVIDIA H200"})
    jobs = [parts.Job("steps", "long", 100.0, work), parts.Job("lora", "short", 1.0, work)]
    assert gpu.run_jobs(jobs, bench, results, time.monotonic() + 10)
    kept = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())
    assert [row["name"] for row in kept["parts"]["lora"]] == ["short"] and "steps" not in kept["parts"]
    assert kept["left_out"] == [
        {"part": "steps", "name": "long", "why": "needs about 100 s, 9 are left"}
    ] or ("10 are left" in kept["left_out"][0]["why"])


def test_a_failed_job_is_named_and_what_it_had_measured_is_kept(scripts, bench, tmp_path):
    gpu, parts, ended = scripts("gpu"), scripts("gpu_bench"), scripts("work").CandidateEnded

    def work(bench, limit_s):
        yield {"name": "8 pairs", "step_s": 1.0}
        raise ended("out of memory")

    bench.log.write_text("the last line\n")
    results = gpu.Results(tmp_path, {"card": "NVIDIA H200"})
    assert not gpu.run_jobs([parts.Job("trl", "big", 1.0, work)], bench, results, time.monotonic() + 10)
    kept = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())
    assert [row["name"] for row in kept["parts"]["trl"]] == ["8 pairs"]
    assert "out of memory; the last line" in kept["left_out"][0]["why"]


def test_what_compiles_ahead_is_ready_before_anything_is_timed(scripts, bench, tmp_path, monkeypatch):
    """And jobs without a time run meanwhile. Kills: a process that is started again in its turn."""
    gpu, parts, events = scripts("gpu"), scripts("gpu_bench"), []

    class Process:
        def __init__(self, script):
            self.limit_s = 100.0
            time.sleep(0.3)
            events.append(f"{script} ready")

        def within(self, limit_s):
            self.limit_s = limit_s

        def close(self):
            events.append("closed")

    def work(bench, limit_s, name, script=None):
        events.append(name)
        if script:
            assert bench.ahead._starting[(script,)].result().limit_s is None  # no clock runs while it waits
            assert bench.candidate(limit_s, script).limit_s == limit_s
        yield {"name": name, "compile_s": 1.0}

    def job(name, script=None, expected_s=1.0, **fields):
        return parts.Job(name, name, expected_s, functools.partial(work, name=name, script=script), **fields)

    monkeypatch.setattr(parts.Bench, "start", lambda bench, limit_s, script: Process(script))
    compiles = {"compiles": True, "ahead": lambda bench: ("ours.py",)}
    too_long = compiles | {"expected_s": 100.0, "ahead": lambda bench: ("other.py",)}
    jobs = [
        job("trl"),
        job("steps", "ours.py", **compiles),
        job("golden", is_timed=False),
        job("lora", "other.py", **too_long),
    ]
    results = gpu.Results(tmp_path, {"card": "NVIDIA H200"})
    assert gpu.run_jobs(jobs, bench, results, time.monotonic() + 10)
    assert events[0] == "golden" and sorted(events[1:3]) == ["other.py ready", "ours.py ready"]
    assert events[3:] == ["trl", "steps", "closed"]  # lora did not fit: its process is ended
    assert results.parts["steps"][0]["compiled_beside"] == 1
    assert "compiled_beside" not in results.parts["trl"][0]


def test_none_that_waits_for_its_turn_is_left_running(scripts):
    """Whatever became of one before it. Kills: a delayed process that is started after the end."""
    ahead, events = scripts("ahead").Ahead(), []

    class Process:
        def within(self, limit_s):
            events.append("ready")

        def close(self):
            events.append("closed")

    ahead.begin("no answer", lambda: json.loads("no JSON"))
    ahead.begin("waits", Process)
    ahead.wait()
    ahead.begin("delayed", Process, delay_s=60)
    began_s = time.monotonic()
    ahead.close()
    assert events == ["ready", "closed"] and time.monotonic() - began_s < 10


@pytest.mark.slow
def test_our_step_is_a_run_s(scripts, bench, tmp_path):
    """Prepared as the stage po prepares it, and traced. Kills: a reference that is not the policy, whose
    first loss would not be ln 2."""
    size = bench.size
    shape, settings = bench.shape("pythia-1.4b"), {"compute": {"mesh": {"data": None}}}
    step = scripts("run_step").RunStep(shape, "sparsepo", settings, [8], size.prompt, size.response)
    first, second = float(step(8)), float(step(8))
    assert first == pytest.approx(np.log(2), abs=TOKEN) and second < first
    about = step.about(8)
    assert (
        about["temporary_bytes"] > 0 and about["compile_s"] > 0 and "blocks" in about["choices"]["attention"]
    )
    assert step.traced(8, tmp_path)["kernels"]["seconds"]["products"] > 0


@pytest.mark.slow
def test_on_a_cpu_our_step_is_over_when_it_is_answered(scripts):
    """Else it would run while the next candidate is timed. Kills: the loss of the step before."""
    work = scripts("work")
    shape = json.dumps(scripts("shapes").gpt2(64, 32, width=64, layers=1))
    with work.Candidate("ours.py", "sparsepo", shape, 8, 8, 8) as candidate:
        losses = [candidate.step("8")["loss"] for _ in range(3)]
    assert losses[0] == pytest.approx(np.log(2), abs=TOKEN) and len(set(losses)) == 3


@pytest.mark.slow
def test_our_step_from_the_command_to_the_result_file(tmp_path):
    """The script itself, in processes of its own as on a GPU; tiny shapes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--only", "steps/pythia"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert kept["left_out"] == [] and kept["matrix_rate"] > 0
    small, large = kept["parts"]["steps"]
    assert small["pairs"] < large["pairs"] and small["temporary_bytes"] < large["temporary_bytes"]
    for row in (small, large):
        assert row["step_s"] > 0 and row["mfu"] > 0 and row["compile_s"] > 0 and np.isfinite(row["loss"])
        assert row["kernels"]["seconds"]["products"] > 0
