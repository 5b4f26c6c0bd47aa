"""The command: `python -m sparsepo_jax.main --config FILE [section.field=value ...]`.

JAX is imported only when a stage runs.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sparsepo_jax.config.schema.root import Config

TOO_LARGE = 3
PIPE_CLOSED = 141  # what a shell reports of a program whose reader (`head`) has ended
RUN_AGAIN = 75  # sysexits' EX_TEMPFAIL: whoever started the run should start it again


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    A command that only prints ends quietly when its reader (`head`) does.
    """
    from sparsepo_jax.core.streams import STDOUT, discard, opened_output

    try:
        with opened_output():
            status = command(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except BrokenPipeError:
        discard(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        if error.filename != STDOUT:
            raise
        discard(sys.stdout)  # on a full disk, under `> FILE` of a command that only prints
        print(f"error: stdout: {error.strerror}", file=sys.stderr)
        return 1


def command(arguments: Sequence[str] | None) -> int:
    """Does what the command line asks for and returns the exit status."""
    from sparsepo_jax.run.command_line import expand_paths, parse_arguments

    began_s = time.time()
    options = parse_arguments(arguments)
    if options.schema:
        from sparsepo_jax.config.load import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    try:
        expand_paths(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.compare:
        return compare(options)
    if options.from_trl:
        return convert(options)

    from sparsepo_jax.config.load import ConfigError, load_config

    try:
        if options.sweep:
            return sweep(options)
        config, notes = load_config(options.config, options.overrides)
        for note in notes:
            print(f"note: {note}", file=sys.stderr if options.json else sys.stdout)
        if options.check:
            from sparsepo_jax.run.check import make_plan_text

            print(make_plan_text(config))
            return 0
        if options.aot is not None:
            return compile_for(config, options.aot, as_json=options.json, fit=options.fit)
    except ConfigError as error:
        mistakes = f"{len(error.lines)} mistake{'s' if len(error.lines) > 1 else ''}"
        print(f"{options.config}: {mistakes}", *error.lines, sep="\n", file=sys.stderr)
        return 2
    return leave(run(config, began_s))


def convert(options: argparse.Namespace) -> int:
    """Prints another program's config as one of ours; returns the exit status."""
    from sparsepo_jax.config.foreign.convert import convert as convert_file
    from sparsepo_jax.config.load import ConfigError

    try:
        print(convert_file(options.from_trl, options.trainer, options.devices), end="")
        return 0
    except ConfigError as error:
        print(
            f"{options.from_trl}: it cannot be translated as it is", *error.lines, sep="\n", file=sys.stderr
        )
        return 2


def leave(status: int) -> int:
    """Ends the process if others of the run are gone; otherwise returns the exit status."""
    if status and _is_one_of_many():
        ignore_signals(status)
        # JAX would wait at the end for processes that may never come.
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.modules["jax"].process_index() == 0:
            # JAX's service runs in this process; when it ends it aborts the processes that have not ended
            # yet.
            time.sleep(2)
        os._exit(status)
    return status


def _is_one_of_many() -> bool:
    """Whether JAX runs here as one process of several."""
    jax = sys.modules.get("jax")
    try:
        return jax is not None and jax.process_count() > 1
    except (RuntimeError, AssertionError):  # it has found no devices: nobody waits for this process
        return False


def compile_for(config: "Config", name: str, *, as_json: bool, fit: bool) -> int:
    """Prints what the train step takes of each of some devices that are not here; returns the exit status.

    Raises:
        ConfigError: the config is wrong.
    """
    from sparsepo_jax.aot.topology import find_topology
    from sparsepo_jax.core.errors import UserError

    try:
        topology = find_topology(name)
    except UserError as error:
        print(f"error: --aot: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA would warn about what it compiles for elsewhere
    from sparsepo_jax.aot import describe, describe_fit
    from sparsepo_jax.aot import fit as fits
    from sparsepo_jax.aot.compile import compile_step

    try:
        if fit:
            result = fits.fit(config, topology)
            shown = describe_fit.fit_as_json(result, topology) if as_json else None
            print(json.dumps(shown) if as_json else describe_fit.fit_as_text(result, topology))
            return TOO_LARGE if result.best is None else 0
        compiled = compile_step(config, topology)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(describe.as_json(compiled)) if as_json else describe.as_text(compiled))
    return 0 if compiled.footprint.fits else TOO_LARGE


def sweep(options: argparse.Namespace) -> int:
    """Runs a grid of configs and returns the exit status.

    Raises:
        ConfigError: any of the configs is wrong; nothing has run.
    """
    from sparsepo_jax.run import sweep as sweeps

    base, planned, notes = sweeps.plan_sweep(
        options.config, options.overrides, sweeps.parse_axes(options.sweep)
    )
    for note in notes:
        print(f"note: {note}")
    if options.check:
        from sparsepo_jax.run.check import make_plan_text

        plans = [make_plan_text(planned_run.config) for planned_run in planned]
        print(sweeps.grid_text(base, planned), f"the first of them, {planned[0].name}:", plans[0], sep="\n")
        return 0
    from sparsepo_jax.core.stop import Stop, Terminated
    from sparsepo_jax.core.streams import lasting_output

    try:
        with Stop().listening(), lasting_output():  # hears signals between two runs
            status = sweeps.run_sweep(
                base,
                planned,
                attempt,
                functools.partial(lacks_metric, options.metric) if options.metric else None,
            )
    except KeyboardInterrupt as asked:
        print("stopped between two runs; the same command continues the sweep", file=sys.stderr)
        return RUN_AGAIN if isinstance(asked, Terminated) else 130
    if status in (0, 1) and sweeps.is_first_process():
        problem = write_comparison([base], base / "comparison.html", options)
        if problem:
            print(f"note: no comparison: {problem}")
    return leave(status)


def compare(options: argparse.Namespace) -> int:
    """Writes one report of many runs; returns the exit status."""
    directories = [Path(name) for name in options.compare]
    default = (directories[0] if len(directories) == 1 else Path()) / "comparison.html"
    problem = write_comparison(directories, Path(options.output or default), options)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problem else 0


def lacks_metric(names: Sequence[str], directory: Path) -> str | None:
    """One line about the first of --metric's names that is not among a run's numbers; None if all are."""
    from sparsepo_jax.core.errors import UserError
    from sparsepo_jax.report.compare.numbers import check_metrics

    try:
        check_metrics(names, directory)
        return None
    except UserError as error:
        return str(error)


def write_comparison(directories: Sequence[Path], output: Path, options: argparse.Namespace) -> str | None:
    """Writes the comparison and prints where it is, and what is left out; returns a line if that fails."""
    from sparsepo_jax.core.errors import UserError, escaped
    from sparsepo_jax.report.compare import page as comparison

    try:
        left_out = comparison.write_comparison(
            directories, output, metrics=options.metric, baseline=options.baseline
        )
        for name, why in left_out:
            print(f"note: left out: {escaped(f'{name}: {why}')}")
        print(f"comparison: {output}")
        return None
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or output}: {error.strerror}"


def run(config: "Config", began_s: float) -> int:
    """Runs the stages of a config and prints what went wrong; returns the exit status.

    Args:
        began_s: when the command was started, time.time().
    """
    from sparsepo_jax.core.streams import lasting_output
    from sparsepo_jax.run.resume import LOOKING

    with contextlib.nullcontext() if LOOKING.issuperset(config.stages) else lasting_output():
        status, problem = attempt(config, began_s)
        if problem:
            print(problem, file=sys.stderr)
    return status


def attempt(config: "Config", began_s: float | None = None) -> tuple[int, str | None]:
    """Runs the stages of a config; returns the exit status and one line about what went wrong.

    An unforeseen error comes with its traceback.

    Args:
        began_s: when the command was started, time.time(); None: now.
    """
    began_s = time.time() if began_s is None else began_s
    from sparsepo_jax.core.errors import UserError
    from sparsepo_jax.core.stop import Stop
    from sparsepo_jax.core.streams import STDOUT

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would warn that PyTorch is missing
    try:
        with Stop().listening() as stop:
            with stop.later():  # in the middle of JAX's import a signal would abort the process
                from sparsepo_jax.stages.runner import run_stages

            return run_stages(config, stop, began_s), None
    except UserError as error:
        return 1, f"error: {error}"
    except KeyboardInterrupt as asked:
        return _stopped(type(asked))
    except Exception as error:
        from sparsepo_jax.run.resume import LOOKING

        is_of_output = isinstance(error, BrokenPipeError) or getattr(error, "filename", None) == STDOUT
        if is_of_output and LOOKING.issuperset(config.stages):
            raise  # nobody reads any more, or there is no room
        return _failed(error, config.output_dir)


def _stopped(asked: type[KeyboardInterrupt]) -> tuple[int, str]:
    """(exit status, what is said) of a run that was asked to stop."""
    from sparsepo_jax.core.stop import Terminated

    if issubclass(asked, Terminated):
        return RUN_AGAIN, "stopped by SIGTERM or SIGHUP; the same command continues the run"
    return 130, "interrupted; the same command continues the run"


def _failed(error: Exception, output_dir: str) -> tuple[int, str]:
    """(exit status, what is said) of a run that an error ended: one line, or a traceback."""
    from sparsepo_jax.core.stop import stopped_by
    from sparsepo_jax.run.faults import explain

    explanation = explain(error, output_dir)
    asked = stopped_by(error)
    if explanation is None and asked is not None:
        return _stopped(asked)
    if _says_lost(error):
        reason = " ".join(str(error).split())[:200]
        return RUN_AGAIN, (
            f"error: another process of this run is gone ({reason}); start all of them again, and the run "
            "continues from its last checkpoint"
        )
    return 1, f"error: {explanation}" if explanation else traceback.format_exc()


def _says_lost(error: Exception) -> bool:
    """Whether an error says that another process of the run is gone."""
    if "jax" not in sys.modules:  # it could not be imported
        return False
    from sparsepo_jax.sharding.processes import lost_process

    return lost_process(error)


def ignore_signals(status: int) -> None:
    """Who asks twice shall not change the status of a run that ends. Ctrl-C still ends one that is done."""
    for name in ("SIGTERM", "SIGHUP", *(["SIGINT"] if status else [])):
        if hasattr(signal, name):  # not on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end(status: int) -> NoReturn:
    """Ends the process with an exit status.

    What stopped or failed does not wait for programs that are being compiled beside it: that may take
    minutes, and nobody needs them any more.
    """
    program = sys.modules.get("sparsepo_jax.core.program")
    if status and program is not None and program.is_compiling():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe
                    stream.flush()
        os._exit(status)
    sys.exit(status)


def console() -> NoReturn:
    """The command `sparsepo`, and `python -m sparsepo_jax.main`."""
    from sparsepo_jax.core.stop import Stop, Terminated

    try:
        with Stop().listening():
            status = main()
    except KeyboardInterrupt as asked:  # before a run began
        is_terminated = isinstance(asked, Terminated)
        print("stopped by SIGTERM or SIGHUP" if is_terminated else "interrupted", file=sys.stderr)
        status = RUN_AGAIN if is_terminated else 130
    ignore_signals(status)
    end(status)


if __name__ == "__main__":
    console()
