"""Slurm itself on this machine: launch/slurm.sbatch with two tasks, stopped by SIGTERM, requeued, resumed.

apt-get install slurm-wlm munge && pytest -m slow tests/test_slurm.py
"""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers.program import lines_of, write_config
from helpers.xla_flags import xla_flags

_MISSING = [
    name
    for name in ("munged", "slurmctld", "slurmd", "sbatch")
    if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") is None
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(_MISSING), reason=f"no {', '.join(_MISSING)} here: apt-get install slurm-wlm munge"
    ),
]

SCRIPT = Path(__file__).parent.parent / "launch" / "slurm.sbatch"
STEPS = 40
CHANGES = {
    "stages": ["po", "export"],
    "po": {"steps": STEPS},
    "checkpoint": {"every_steps": 5, "keep": 2},
    "logging": {"every_steps": 1},
}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def write_slurm_conf(directory: Path) -> Path:
    """A cluster of this machine, as one node of at least two CPUs, run by whoever runs the test."""
    controller, node = free_ports(2)
    host = socket.gethostname()
    path = directory / "slurm.conf"
    path.write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,sched_min_interval=0
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={max(2, os.cpu_count() or 1)} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    return path


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """slurm(command, *arguments) -> stdout, of a cluster that runs as long as the module's tests do."""
    directory = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = os.environ | {
        "SLURM_CONF": str(write_slurm_conf(directory)),
        "PATH": os.environ["PATH"] + ":/usr/sbin",
    }

    def command(*arguments: str, **variables: str) -> str:
        done = subprocess.run(
            arguments, check=False, env=environment | variables, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout.strip()

    daemons = (
        [
            "munged",
            "--foreground",
            "--force",
            f"--socket={directory}/munge.socket",
            f"--key-file={key}",
            f"--pid-file={directory}/munged.pid",
            f"--log-file={directory}/munged.log",
            f"--seed-file={directory}/munged.seed",
        ],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    )
    running = []
    try:
        for daemon in daemons:
            with (directory / f"{daemon[0]}.out").open("w") as out:
                running.append(
                    subprocess.Popen(daemon, env=environment, stdout=out, stderr=subprocess.STDOUT)
                )
            time.sleep(1)
        until(
            lambda: command("sinfo", "--noheader", "--format=%T") == "idle",
            60,
            lambda: (directory / "slurmd.log").read_text(),
        )
        yield command
        subprocess.run(["scancel", "--me"], check=False, env=environment, timeout=60)
    finally:
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            daemon.wait(60)


def until(condition, seconds: float, say=lambda: ""):
    """Waits for the condition; its last answer."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, say()
        time.sleep(0.5)
    return answer


def submit(slurm, directory: Path, *overrides: str, **changes) -> tuple[str, Path]:
    """A job of two tasks of one device each: its number and its log."""
    config, log = write_config(directory, **CHANGES | changes), directory / "log"
    printed = slurm(
        "sbatch",
        "--parsable",
        "--ntasks=2",
        "--ntasks-per-node=2",
        f"--output={log}",
        f"--chdir={SCRIPT.parent.parent}",
        str(SCRIPT),
        "--config",
        str(config),
        *overrides,
        PYTHON=sys.executable,
        XLA_FLAGS=xla_flags(devices=1),
    )
    return printed.split(";")[0], log


def state(slurm, job: str) -> str:
    """Such as RUNNING, PENDING, COMPLETED or FAILED."""
    return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))[1]


def steps(directory: Path) -> list[int]:
    path = directory / "run" / "metrics.jsonl"
    return [row["step"] for row in lines_of(path) if "loss" in row] if path.exists() else []


def test_a_run_of_two_tasks_is_stopped_requeued_and_resumed(slurm, tmp_path):
    """Stopped once by the SIGTERM that Slurm sends when the time is nearly over, and once by scontrol
    requeue. It ends with the weights of a run that nobody touched."""
    job, log = submit(slurm, tmp_path / "touched")
    until(lambda: len(steps(tmp_path / "touched")) >= 5, 300, log.read_text)
    slurm("scancel", "--signal=TERM", "--batch", job)
    until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", job), 120, log.read_text)
    stopped = steps(tmp_path / "touched")
    assert "the run is saved; requeued" in log.read_text() and stopped[-1] < STEPS
    until(lambda: len(steps(tmp_path / "touched")) >= len(stopped) + 3, 300, log.read_text)
    slurm("scontrol", "requeue", job)
    until(lambda: state(slurm, job) in ("COMPLETED", "FAILED"), 400, log.read_text)
    shown = slurm("scontrol", "show", "job", job)
    assert "JobState=COMPLETED" in shown and "ExitCode=0:0" in shown and "Restarts=2" in shown, (
        log.read_text()
    )
    assert steps(tmp_path / "touched") == list(range(1, STEPS + 1))

    job, log = submit(slurm, tmp_path / "untouched")
    until(lambda: state(slurm, job) in ("COMPLETED", "FAILED"), 300, log.read_text)
    assert state(slurm, job) == "COMPLETED", log.read_text()
    for file in ("model.safetensors", "masks.safetensors"):
        touched, untouched = (
            load_file(tmp_path / name / "run" / "export" / file) for name in ("touched", "untouched")
        )
        assert set(touched) == set(untouched)
        for name, value in untouched.items():
            np.testing.assert_array_equal(touched[name], value, err_msg=name)


def test_a_run_that_fails_is_not_requeued(slurm, tmp_path):
    """Status 2 of one task and of the other, whatever else a lost task ends with."""
    job, log = submit(slurm, tmp_path, "objective.kind=nothing")
    until(lambda: state(slurm, job) in ("FAILED", "COMPLETED"), 120, log.read_text)
    assert "ExitCode=2:0" in slurm("scontrol", "show", "job", job), log.read_text()
    assert "Restarts=0" in slurm("scontrol", "show", "job", job) and "objective.kind" in log.read_text()


def test_a_run_that_is_cancelled_does_not_come_back(slurm, tmp_path):
    job, log = submit(slurm, tmp_path)
    until(lambda: len(steps(tmp_path)) >= 2, 300, log.read_text)
    slurm("scancel", job)
    until(lambda: slurm("squeue", "--noheader", "--jobs", job) == "", 180, log.read_text)
    assert state(slurm, job) == "CANCELLED"
    time.sleep(8)  # a requeued job would begin after cred_expire
    assert state(slurm, job) == "CANCELLED" and "requeued 1 times" not in log.read_text()
