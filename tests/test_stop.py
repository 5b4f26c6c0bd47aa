"""Signals: none is lost, none ends the process in the middle of what cannot be broken off."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sparsepo_jax.core.stop import AGAIN_AFTER_S, Stop, Terminated
from sparsepo_jax.main import RUN_AGAIN, attempt


class Raising:
    """Python drops what its `__del__` raises, as with JAX's callback at each collection of garbage."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "exception"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.parametrize("goes_on_s", [10, 0])
def test_a_signal_that_a_callback_drops_is_heard_again(number, exception, goes_on_s):
    """Kills: a run that goes on to its end, though it was asked to stop."""
    hook, began_s = sys.unraisablehook, time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught, Stop().listening():
        Raising(number)
        time.sleep(goes_on_s)
    assert caught.type is exception and time.monotonic() - began_s < 5
    assert sys.unraisablehook is hook


def test_a_dropped_signal_still_waits_for_the_step_to_be_complete():
    """Kills: one that counts as the second, which breaks off the step and its donated state with it."""
    completed = False
    stop = Stop()
    with pytest.raises(Terminated), stop.listening():
        Raising(signal.SIGTERM)
        with stop.later():
            time.sleep(0.3)
            completed = True
    assert completed


def test_a_dropped_second_signal_breaks_the_step_off():
    """Kills: one that counts as a first, so that who asks twice waits for the step all the same."""
    completed, stop = False, Stop()
    with pytest.raises(Terminated), stop.listening(), stop.later():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        Raising(signal.SIGTERM)
        time.sleep(5)
        completed = True
    assert not completed


def test_an_error_leaves_no_signal_for_the_old_handlers():
    """Kills: status 143, by a signal that is sent once more when the program does not listen any longer."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("late"))
    try:
        with pytest.raises(ValueError, match="of the run"), Stop().listening():
            Raising(signal.SIGTERM)
            raise ValueError("of the run")
        time.sleep(4 * AGAIN_AFTER_S)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not heard


def test_other_errors_that_python_drops_are_shown_as_before(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_value))

    class Faulty:
        def __del__(self):
            raise ValueError("dropped")

    with Stop().listening():
        Faulty()
    assert [str(error) for error in shown] == ["dropped"]


def test_a_closed_terminal_stops_the_run_as_sigterm_does_but_not_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with pytest.raises(Terminated), Stop().listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(10)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stop().listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("asked", "status", "says"), [(Terminated, RUN_AGAIN, "SIGTERM"), (KeyboardInterrupt, 130, "interrupted")]
)
def test_an_error_that_a_signal_led_to_is_the_signal(monkeypatch, asked, status, says):
    """C code that meets one says ImportError or SystemError. What is known of disks goes before."""

    def failing(error):
        def run_stages(config, stop, began_s):
            raise error from asked()

        return run_stages

    class Settings:
        output_dir = "OUT"
        stages = ("po",)

    runner = "sparsepo_jax.stages.runner.run_stages"
    monkeypatch.setattr(
        runner, failing(ImportError("Encountered an error while initializing the extension."))
    )
    assert attempt(Settings())[0] == status and says in attempt(Settings())[1]
    monkeypatch.setattr(runner, failing(OSError(28, "No space left on device")))
    assert attempt(Settings()) == (
        1,
        "error: OUT: no space left on the device: make room; the same command then continues the run",
    )


def ended(program: str, *numbers: int) -> tuple[int, str]:
    """(exit status, stderr) of a program that is sent signals once it has said something."""
    # The tests themselves may run under nohup, or in the background, where a shell has signals ignored.
    heard = (
        "import signal; [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)]"
    )
    again = f"import os, sys; {heard}; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", again, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline()
    try:
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return process.returncode, error


@pytest.mark.parametrize("status, number", [(RUN_AGAIN, signal.SIGTERM), (130, signal.SIGINT)])
def test_who_asks_twice_gets_the_status_of_the_first_answer(status, number):
    """Kills: status 143 in the place of 75, with which launchers start a run again, and tracebacks of what
    JAX cleans up at the end."""
    program = f"""
import atexit, time
from sparsepo_jax import main as program

atexit.register(lambda: print("ending", flush=True) or time.sleep(1))
program.main = lambda: {status}
program.console()
"""
    assert ended(program, number, number) == (status, "")


def test_who_asks_twice_gets_the_same_of_the_first_of_several_processes():
    """Process 0 waits a while for the others before it ends. Kills: status 143 in that time."""
    program = """
import sys, types
from sparsepo_jax import main as program

def process_index():
    print("leaving", flush=True)
    return 0

sys.modules["jax"] = types.SimpleNamespace(process_count=lambda: 2, process_index=process_index)
program.leave(program.RUN_AGAIN)
"""
    assert ended(program, signal.SIGTERM, signal.SIGHUP) == (RUN_AGAIN, "")


@pytest.mark.parametrize(
    "number, answer",
    [
        (signal.SIGINT, (130, "interrupted\n")),
        (signal.SIGTERM, (RUN_AGAIN, "stopped by SIGTERM or SIGHUP\n")),
    ],
)
def test_a_signal_before_a_run_begins_is_one_line(number, answer):
    """Kills: status 143 of a run stopped while it reads its config, which no launcher starts again."""
    program = """
import time
from sparsepo_jax import main as program

program.command = lambda arguments: print("reading", flush=True) or time.sleep(60)
program.console()
"""
    assert ended(program, number) == answer
