"""Programs run to their end or are judged by what stopped them; none reaches the network, other processes
or files outside."""

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sparsepo_jax.sandbox import child
from sparsepo_jax.sandbox.parent import Outcome, SandboxLimits, guards, run_programs

SMALL = SandboxLimits(time_s=10.0, memory_mb=256)
GUARDS = guards()
ENDS = {  # program -> why ("": passes)
    "x = 1": "",
    "raise ValueError('a' * 1000)": "ValueError: " + "a" * 288,
    "assert 1 == 2, 'no'": "AssertionError: no",
    "this is no Python": "SyntaxError: ...",
    "x = '\0'": "...",
    "x = '\ud800'": "UnicodeDecodeError: ...",
    # leaving before the end, however politely, is no pass
    "import sys; sys.exit(0)\nassert False": "exit 0",
    "import os; os._exit(0)": "exit 0",
    "exit(3)": "exit 3",
    "import atexit, os; atexit.register(os._exit, 0); raise SystemExit": "exit 0",
    # writes on every pipe
    "import os\nfor fd in range(1, 64):\n  try: os.write(fd, b'\\n' * 99)\n"
    "  except OSError: pass\nos._exit(0)": "exit 0",
    "import os; os.closerange(3, 64); os._exit(0)": "exit 0",
    "class E(BaseException):\n  def __str__(self): raise self\nraise E": "an exception that cannot be shown",
    "import os; os.abort()": "signal SIGABRT",
    "import ctypes; ctypes.string_at(0)": "signal SIGSEGV",
    "def f(): f()\nf()": "RecursionError: ...",
    "x = bytearray(10**9)": "memory",
    "x = []\nwhile True: x.append(bytearray(10**7))": "memory",
    "open('big', 'wb').write(bytes(10**8))": "OSError: ...",
    "input()": "EOFError: ...",
    # what is allowed
    "print('x' * 10**6)": "",
    "open('own', 'w').write('x'); import os; os.remove('own'); open(os.devnull, 'w').write('x')": "",
    # its end is reached; nobody waits for threads
    "import threading, time\nt = threading.Thread(target=time.sleep, args=(99,)); t.start()": "",
    "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1": "",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n  x: 'int'\nassert A(1) == A(1)": "",
    "if __name__ == '__main__': raise SystemExit": "",
    "import os, sys\nassert 'SECRET' not in os.environ\n"
    "assert sys.argv == ['program.py'] and os.listdir() == ['program.py']": "",
}
REFUSED = {
    "network": [
        "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
        "import urllib.request as r; r.urlopen('http://127.0.0.1:PORT', timeout=1)",
    ],
    "processes": [
        "import os; os.fork()",
        "import os\nif os.fork() == 0: os._exit(0)",
        "import subprocess; subprocess.run(['true'])",
        "import os; assert os.system('true') == 0",
        "import os; os.kill(-1, 9)",
        "import os; os.kill(VICTIM, 9)",
        "import os; os.killpg(VICTIM, 9)",
        "import resource as r; r.prlimit(VICTIM, r.RLIMIT_CPU, (0, 0))",
    ],
    "files": [
        "open('FILE', 'w')",
        "open('FILE', 'r+').write('x')",
        "import os; os.remove('FILE')",
        "import os; os.truncate('FILE', 0)",
        "import os; os.rename('FILE', 'here')",
        "import os; os.mkdir('DIRECTORY/new')",
        "open('DIRECTORY/new', 'w')",
        "import os; os.symlink('x', 'DIRECTORY/new')",
        "import os; os.chmod('FILE', 0)",
        "import os; os.utime('FILE', (0, 0))",
        "import os; os.link('FILE', 'here'); open('here', 'w')",
    ],
}


def test_what_stops_a_program_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for program, why, outcome in zip(ENDS, ENDS.values(), run_programs(list(ENDS), SMALL), strict=True):
        assert outcome.passed == (why == ""), (program, outcome)
        assert (
            outcome.why.startswith(why[:-3]) and outcome.why if why.endswith("...") else outcome.why == why
        ), (program, outcome)
    assert list(tmp_path.iterdir()) == [], "working directories are removed"


def test_time_is_up():
    hanging = [
        "while True: pass",
        "import time; time.sleep(60)",
        "while True: print('x' * 1000)",
        "import os; os.closerange(3, 64)\nwhile True: pass",
        "import signal\nfor n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: pass",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    ]
    assert run_programs(hanging, SandboxLimits(time_s=0.5), workers=3) == [Outcome(False, "time")] * len(
        hanging
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's guards are Linux's")
def test_nothing_outside_is_reached(tmp_path):
    file = tmp_path / "file"
    file.write_text("whole")
    before = file.stat()
    victim = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            server.settimeout(0.1)
            names = {
                "PORT": str(server.getsockname()[1]),
                "VICTIM": str(victim.pid),
                "FILE": str(file),
                "DIRECTORY": str(tmp_path),
            }
            programs = [program for guard in GUARDS for program in REFUSED[guard]]
            for name, value in names.items():
                programs = [program.replace(name, value) for program in programs]
            for program, outcome in zip(programs, run_programs(programs, SMALL), strict=True):
                assert not outcome.passed and outcome.why not in ("", "time", "exit 0"), (program, outcome)
            with pytest.raises(TimeoutError):
                server.accept()
            assert victim.poll() is None
        finally:
            victim.kill()
            victim.wait()
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "whole"
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_without_the_kernels_guards_an_audit_hook_refuses():
    for program in (
        "import socket; socket.socket()",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.kill(1, 0)",
    ):
        directory = str(Path(child.__file__).parent)
        code = (
            f"import sys; sys.path.insert(0, {directory!r}); import child\n"
            f"sys.addaudithook(child.refuse_events)\n{program}"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode and "PermissionError: [Errno 1] not in the sandbox" in run.stderr


def test_order_is_kept_and_hashes_are_the_same_in_every_run():
    programs = [f"raise ValueError({n}, hash('a'))" for n in range(6)]
    first, second = run_programs(programs, SMALL, workers=4), run_programs(programs, SMALL, workers=1)
    assert first == second and [outcome.why.split(",")[0] for outcome in first] == [
        f"ValueError: ({n}" for n in range(6)
    ]
    assert run_programs([], SMALL) == []
