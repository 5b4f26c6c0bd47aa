"""Several processes as one run, for real: JAX's own service and collectives (gloo) on this machine."""

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers.processes import run_together
from helpers.program import lines_of, run, weights_of, write_config
from helpers.tolerances import SHARDED
from sparsepo_jax.main import RUN_AGAIN
from sparsepo_jax.sharding.processes import lost_process

PO = {
    "stages": ["po"],
    "policy": {"config": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64}},
    "checkpoint": {"every_steps": 100},
    "po": {
        "epochs": 2,
        "steps": None,
        "batch_size": 8,
        "eval_every_steps": None,
        # A large eps; otherwise a gradient that is rounding alone moves a weight by a whole learning rate.
        "optimizer": {"kind": "adamw", "learning_rate": 0.001, "eps": 1e-4},
    },
    "evaluation": {"batch_size": 8, "sampled_prompts": None},
    "logging": {"every_steps": 1, "trackers": []},
}
STEPS, PAIRS = 8, 30  # two epochs of 30 pairs in batches of 8


def rows_by_batch(directory: Path) -> dict[int, list[int]]:
    """Over all processes; what was fetched again after a stop counts once, as it was at last."""
    rows: dict[int, list[int]] = {}
    for path in sorted(directory.glob("rows_*.jsonl")):
        of_process = {row["batch"]: row["rows"] for row in lines_of(path)}
        for batch, some in of_process.items():
            rows.setdefault(batch, []).extend(np.ravel(some).tolist())
    return rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process."""
    return run(tmp_path_factory.mktemp("alone"), **PO)


def same_run(output: Path, expected: Path) -> None:
    losses = [
        {row["step"]: row["loss"] for row in lines_of(path / "metrics.jsonl")} for path in (output, expected)
    ]
    assert list(losses[0]) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), atol=SHARDED)
    ours = weights_of(output / "po")
    for path, weights in weights_of(expected / "po").items():
        np.testing.assert_allclose(ours[path], weights, atol=SHARDED, err_msg=path)


@pytest.mark.slow
def test_two_processes_stop_together_and_four_go_on(alone, tmp_path):
    """SIGTERM reaches one of two processes; both save the same step and ask to be started again; four
    continue. Losses and weights are those of one process, and every epoch has seen every pair once.

    Kills: a host that takes the whole batch; a stop that only one of them knows of.
    """
    config = write_config(tmp_path, **PO)
    stopped = run_together(config, 2, 1, at_batch={1: "4 SIGTERM"})
    assert [status for status, _ in stopped] == [RUN_AGAIN] * 2, stopped
    assert "stopped by SIGTERM or SIGHUP; the same command continues the run" in stopped[0][1]
    before = rows_by_batch(tmp_path)
    saved = max(
        int(path.name) for path in (tmp_path / "run" / "po" / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert 3 <= saved < STEPS
    for path in tmp_path.glob("rows_*.jsonl"):
        path.unlink()
    finished = run_together(config, 4, 1, "compute.mesh={data: 2, fsdp: 2}")
    assert [status for status, _ in finished] == [0] * 4, finished
    assert f"po: continues after step {saved} of {STEPS}" in finished[0][1]
    seen = {batch: rows for batch, rows in before.items() if batch < saved} | rows_by_batch(tmp_path)
    for epoch in (range(STEPS // 2), range(STEPS // 2, STEPS)):
        assert Counter(row for batch in epoch for row in seen[batch]) == Counter(range(PAIRS))
    same_run(tmp_path / "run", alone)


def test_sigterm_outside_of_training_stops_all_between_the_same_batches(tmp_path):
    """Only one process is sent it, while the reference scores the pairs before the first step.

    Kills: a signal that is heard only when training begins, or by one process alone.
    """
    po = PO | {
        "objective": {"kind": "dpo", "mask": None},
        "reference": {"cached": True},
        "evaluation": {"batch_size": 2, "sampled_prompts": None},
        "data": {"train": [{"kind": "reviews", "rows": 90, "seed": 2}]},
    }
    ended = run_together(write_config(tmp_path, **po), 2, 1, at_batch={1: "0 SIGTERM 3"})
    assert [status for status, _ in ended] == [RUN_AGAIN] * 2, ended
    output = ended[0][1]
    assert "stopped by SIGTERM or SIGHUP; the same command continues the run" in output
    assert "steps of" not in output
    assert not (tmp_path / "run" / "po" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_if_one_process_is_killed_the_other_ends_and_says_so(tmp_path, victim):
    ended = run_together(write_config(tmp_path, **PO), 2, 1, at_batch={victim: "4 SIGKILL"})
    status, output = ended[1 - victim]
    # Whichever notices first: we, by the collective that fails (75), or JAX's own service, which aborts the
    # process (134 in a shell).
    assert ended[victim][0] == -9 and status in (RUN_AGAIN, -6), output
    ours = "another process of this run is gone" in output and "start all of them again" in output
    theirs = status == -6 and "another task died" in output
    assert ours or theirs


LOSSES = [
    "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] "
    "Connection closed by peer [127.0.0.1]:46873",
    "FAILED_PRECONDITION: Buffer Definition Event: Gloo AllGather failed: [..] "
    "Read error [10.0.0.2]:1234: Connection reset by peer",
    "INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network error.",
    "UNAVAILABLE: Task /job:jax_worker/replica:0/task:1 heartbeat timeout. "
    "This indicates that the remote task has failed, got preempted, or crashed",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: orbax::3. "
    "Timed out task names:\n/job:jax_worker/replica:0/task:1",
    "UNAVAILABLE: Failed to send RPC to coordination service. "
    "Either the leader task was preempted/died/restarted unexpectedly\n:UNKNOWN: Socket closed",
    "ABORTED: /job:jax_worker/replica:0/task:1 unexpectedly tried to connect with a different incarnation.",
]
NO_LOSSES = [
    jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes for %opt-barrier.3, "
        "all-reduce of 2 processes"
    ),
    jax.errors.JaxRuntimeError(
        "UNAVAILABLE: TPU initialization failed: no device found; the chip is unavailable"
    ),
    jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile: barrier semaphore"),
    ConnectionResetError(104, "Connection reset by peer"),  # of a download
    KeyError("barrier"),
    ValueError("checkpoint.best.metric: UNAVAILABLE: heartbeat of the coordination service"),
    TypeError("gloo"),
    RuntimeError("nccl is unavailable"),
]


def test_only_what_jax_says_of_its_processes_is_a_lost_one(monkeypatch):
    """Kills: any error in a run of many that holds a word such as "barrier" or "unavailable"."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    lost = [jax.errors.JaxRuntimeError(text) for text in LOSSES]
    assert all(map(lost_process, lost)) and not any(map(lost_process, NO_LOSSES))
    led_to = RuntimeError("the save failed")
    led_to.__cause__ = lost[0]
    assert lost_process(led_to)
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert not any(map(lost_process, lost))
