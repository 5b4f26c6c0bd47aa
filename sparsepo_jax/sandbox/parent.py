"""Programs that a model wrote, each run in a process of its own under limits: did it run to its end?

A guard against accidents, not a security boundary. It keeps a model's mistakes (endless loops, all the
memory, a deleted directory, a request to a server) from doing harm; it is not made to hold a program that was
written to break out. For code from people who mean harm run the stage in a virtual machine.

A program passes if its last line was reached. An exit code would say nothing (`sys.exit(0)` before the
tests), so that the child sends a secret word, drawn anew for each program, after the last line.

What it stops (child.py sets it up; `guards` names which of the last three this machine has):

    always       endless programs and too much memory: limits of wall-clock and CPU time, address space, size
                 of a file, open files; no core files. Leavings: a process, session and working directory of
                 its own are removed with the program. It has an environment of a few names and no input,
                 and its output is thrown away
    "network"    Linux: a network namespace of its own and no sockets. Elsewhere a Python audit hook refuses
                 sockets, which C code could pass
    "processes"  Linux (seccomp): no other process can be started, signalled or traced. Elsewhere the audit
                 hook refuses fork, exec and kill
    "files"      Linux 5.13 (Landlock): nothing outside the working directory can be written, made, renamed or
                 removed. Elsewhere it can

What it does not stop:

    reading      any file that the user may read; nothing of it gets out but the message of an exception
    a full disk  many files, until the program ends
    cheating     a program written against this very file can find the word in the frames above it and claim
                 to have passed
    the kernel   its faults

It needs nothing but Python's standard library, so that it is no extra: there would be nothing to install.
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
MOST_BYTES = 65536  # of a child's answer that are read


class SandboxLimits(NamedTuple):
    """Of one program.

    Attributes:
        time_s: wall clock, from the program's first line.
        memory_mb: MiB of address space, the interpreter (about 30) included.
    """

    time_s: float = 4.0
    memory_mb: int = 1024


DEFAULT_LIMITS = SandboxLimits()


class Outcome(NamedTuple):
    """What became of a program.

    Attributes:
        passed: whether it ran to its end.
        why: "" if it passed, else "AssertionError: ...", "time", "memory", "signal SIGSEGV", or "exit 3" (it
            left before its end, with whatever code).
    """

    passed: bool
    why: str


def run_programs(
    programs: Sequence[str], limits: SandboxLimits = DEFAULT_LIMITS, workers: int | None = None
) -> list[Outcome]:
    """What became of each program, in order. Hashes, and so the order of sets, are the same in every run.

    Args:
        programs: Python source.
        limits: of each program.
        workers: how many run at a time; None: one for each CPU.

    Raises:
        UserError: Python does not start.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return [outcome for outcome, _ in pool.map(lambda program: _run(program, limits), programs)]


def guards() -> tuple[str, ...]:
    """Which of "network", "processes" and "files" the kernel of this machine guards."""
    return _run("", SandboxLimits(time_s=START_S))[1]


def _run(program: str, limits: SandboxLimits) -> tuple[Outcome, tuple[str, ...]]:
    """(what became of the program, the guards that held)."""
    directory = tempfile.mkdtemp(prefix="sandbox-")
    word = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    try:
        Path(directory, "program.py").write_bytes(program.encode("utf-8", "surrogatepass"))
        try:
            child = _start(directory, writing, limits)
        finally:
            os.close(writing)
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(word)
            answer, in_time = _listen(reading, child.pid, limits.time_s)
        finally:  # before the leader is reaped, so that the group is still ours
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    finally:
        os.close(reading)
        shutil.rmtree(directory, ignore_errors=True)
    first_line, has_begun, verdict = answer.partition(b"\n")
    if not has_begun:
        reason = f"ended with {code}" if in_time else f"took more than {START_S:.0f} s"
        raise UserError(f"programs cannot be run here: {sys.executable} {reason}")
    return _judge(verdict, word, code, in_time), tuple(json.loads(first_line))


def _start(directory: str, writing: int, limits: SandboxLimits) -> subprocess.Popen:
    # As python -I, but with the hash seed, which -I ignores: the order of sets must not change a verdict.
    options = ["-P", "-s", "-B"]
    arguments = [str(CHILD), str(writing), str(limits.time_s), str(limits.memory_mb)]
    return subprocess.Popen(
        [sys.executable, *options, *arguments],
        cwd=directory,
        env=_environment(directory),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[writing],
        start_new_session=True,
    )


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
    """(what the child wrote, whether it ended in time). Its time runs from its first line: it is ready."""
    answer = b""
    has_begun = False
    deadline_s = time.monotonic() + START_S
    while True:
        if not select.select([reading], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            return answer, False
        part = os.read(reading, MOST_BYTES)
        if not part:
            break
        answer += part[: MOST_BYTES - len(answer)]
        if not has_begun and b"\n" in answer:
            has_begun = True
            deadline_s = time.monotonic() + time_s
    # It may have closed the pipe and live on.
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline_s:
            return answer, False
        time.sleep(0.001)
    return answer, True


def _judge(verdict: bytes, word: bytes, code: int, in_time: bool) -> Outcome:
    if not in_time or code == -signal.SIGXCPU:
        return Outcome(False, "time")
    if verdict.startswith(word):
        why = verdict[len(word) :].decode("utf-8", "replace")
        return Outcome(why == "", why)
    return Outcome(False, f"exit {code}" if code >= 0 else f"signal {signal.Signals(-code).name}")
