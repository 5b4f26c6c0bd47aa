"""Programs that a model wrote, each run in a process of its own, under limits: did it run to its end?

A program passes if its last line was reached: an exit code says nothing (`sys.exit(0)` before the tests), so the child sends a word, drawn anew for
each program, after the last line. What stands between a program and the machine (child.py sets it up; `guards` names what this machine allows):

    always       its own process, session and empty working directory, which are removed with it; an environment of five names; no input, output thrown
                 away; limits of wall-clock and CPU time, address space, size of a file, open files; no core files
    "network"    Linux: a network namespace of its own and no sockets. Elsewhere a Python audit hook refuses sockets: C code could pass it
    "processes"  Linux (seccomp): no other process can be started, signalled or traced; else the audit hook refuses fork, exec and kill
    "files"      Linux 5.13 (Landlock): nothing outside the working directory can be written, made, renamed or removed

It does not protect against: reading what the user may read (but nothing gets out except the message of an exception), filling the disk with many files
for the time of one program, faults of the kernel, and a program written against this very file, which can find the word in the frames above it
and claim to have passed. For code from people who mean harm run the whole stage in a virtual machine.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sparsepo_jax.core.errors import UserError

CHILD = Path(__file__).with_name("child.py")
START_S = 60.0  # that Python may take to start on a busy machine; a program's time counts from its first line
MOST_BYTES = 65536  # read of what a child says


class Limits(NamedTuple):
    """time_s: wall clock, from the program's first line. memory_mb: MiB of address space, the interpreter (about 30) included."""

    time_s: float = 4.0
    memory_mb: int = 1024


class Outcome(NamedTuple):
    """why: "" if it passed, else "AssertionError: ...", "time", "memory", "exit 3" (left before its end, with whatever code), "signal SIGSEGV"."""

    passed: bool
    why: str


def run_programs(
    programs: Sequence[str], limits: Limits = Limits(), workers: int | None = None
) -> list[Outcome]:
    """What became of each program, in order; `workers` at a time (None: one for each CPU). Hashes, so the order of sets, are the same in every run.
    UserError if Python does not start."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return [outcome for outcome, _ in pool.map(lambda program: _run(program, limits), programs)]


def guards() -> tuple[str, ...]:
    """Which of "network", "processes" and "files" the kernel keeps here."""
    return _run("", Limits(time_s=START_S))[1]


def _run(program: str, limits: Limits) -> tuple[Outcome, tuple[str, ...]]:
    directory, word = tempfile.mkdtemp(prefix="sandbox-"), secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    try:
        Path(directory, "program.py").write_bytes(program.encode("utf-8", "surrogatepass"))
        try:
            # As python -I, but with the hash seed, which -I would ignore: the order of sets must not change a verdict.
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-s",
                    "-B",
                    str(CHILD),
                    str(writing),
                    str(limits.time_s),
                    str(limits.memory_mb),
                ],
                cwd=directory,
                env=_environment(directory),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(word)
            said, in_time = _listen(reading, child.pid, limits.time_s)
        finally:  # before the leader is reaped, so that the group is still ours
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    finally:
        os.close(reading)
        shutil.rmtree(directory, ignore_errors=True)
    first, begun, verdict = said.partition(b"\n")
    if not begun:
        raise UserError(
            f"programs cannot be run here: {sys.executable} "
            + (f"ended with {code}" if in_time else f"took more than {START_S:.0f} s")
        )
    return _judge(verdict, word, code, in_time), tuple(json.loads(first))


def _environment(directory: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {
        "PATH": os.defpath,
        "HOME": directory,
        "TMPDIR": directory,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
    }


def _listen(reading: int, pid: int, time_s: float) -> tuple[bytes, bool]:
    """(what the child said, whether it ended in time). Its first line says that it is ready; from there on its time runs."""
    said, deadline_s, begun = b"", time.monotonic() + START_S, False
    while True:
        if not select.select([reading], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            return said, False
        read = os.read(reading, MOST_BYTES)
        if not read:
            break
        said += read[: MOST_BYTES - len(said)]
        if not begun and b"\n" in said:
            begun, deadline_s = True, time.monotonic() + time_s
    while (
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    ):  # it may have closed the pipe and live on
        if time.monotonic() > deadline_s:
            return said, False
        time.sleep(0.001)
    return said, True


def _judge(verdict: bytes, word: bytes, code: int, in_time: bool) -> Outcome:
    if not in_time or code == -signal.SIGXCPU:
        return Outcome(False, "time")
    if verdict.startswith(word):
        why = verdict[len(word) :].decode("utf-8", "replace")
        return Outcome(why == "", why)
    return Outcome(False, f"exit {code}" if code >= 0 else f"signal {signal.Signals(-code).name}")
