"""The command: `python -m sparsepo_jax.main --config FILE [section.field=value ...]`.

JAX is imported only when a stage runs.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsepo_jax.config.schema.root import Config

PIPE_CLOSED = 141  # what a shell says of a program that wrote to `head` after it had ended
RUN_AGAIN = 75  # sysexits' EX_TEMPFAIL: whoever started the run should start it again

_EXAMPLES = """\
examples:
  run the stages of a config (run again to continue an interrupted run):
    python -m sparsepo_jax.main --config configs/quickstart.yaml
  the same with other values (any YAML: numbers, lists, null, {a: 1}; an index picks an entry of a list):
    python -m sparsepo_jax.main --config configs/quickstart.yaml output_dir=runs/dpo objective.kind=dpo objective.beta=0.1
    python -m sparsepo_jax.main --config FILE 'stages=[po, eval]' data.train.0.path=pairs.jsonl po.optimizer.learning_rate=1e-6
  see what it would do:
    python -m sparsepo_jax.main --config FILE --check
  see whether it would fit 16 chips of a TPU v5e, without one (needs the extra [tpu]):
    python -m sparsepo_jax.main --config FILE --aot v5e-16
  start from the sft of another run, with the same settings of sft, in place of training one:
    python -m sparsepo_jax.main --config configs/quickstart.yaml output_dir=runs/dpo objective.kind=dpo objective.beta=0.1 sft.taken_from=runs/quickstart
  a grid of runs in one process, each in output_dir/beta=0.1,seed=0 and so on; run again to continue it (values are any YAML, other overrides come before;
  runs whose sft would be the same train it once):
    python -m sparsepo_jax.main --config FILE po.steps=500 --sweep objective.beta=0.1,0.4,0.8 seed=0,1,2
    python -m sparsepo_jax.main --config FILE --sweep 'objective={kind: dpo, beta: 0.1},{kind: tdpo1}' --check
  one report of many runs: tables with confidence intervals, metrics against the KL, curves, heat maps (a sweep ends with one of its own):
    python -m sparsepo_jax.main --compare runs/sweep runs/dpo --metric accuracy_unmasked --baseline dpo --output runs/comparison.html
  the JSON schema of configs, for an editor:
    python -m sparsepo_jax.main --schema > schema.json

exit status: 0 done; 1 a run failed; 2 the config or the command line is wrong; 3 with --aot: it does not fit;
  with --sweep 1 if any of its runs failed (the others are done);
  130 interrupted (Ctrl-C);
  75 stopped by SIGTERM, or since another process of the run is gone: start it again, and it continues (134: the same, JAX has aborted it)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Whoever reads its output may stop to: what has nothing else to do then ends.
    """
    from sparsepo_jax.core.streams import discard, opened_output

    try:
        with opened_output():
            status = command(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except BrokenPipeError:
        discard(sys.stdout)
        return PIPE_CLOSED


def command(arguments: Sequence[str] | None) -> int:
    """What the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsepo_jax.main",
        description="Token-level preference optimisation in JAX: train, evaluate and explain SparsePO and its relatives.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that describes the run")
    parser.add_argument(
        "--sweep",
        nargs="+",
        action="extend",
        metavar="KEY=V1,V2",
        help="run the config with every combination of these values, one run after the other",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="write one report of these runs (or sweeps, or directories of runs); runs nothing",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="with --compare: the report, FILE.html (default: comparison.html in DIR, or here if there are several)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="with --compare or --sweep: a number to draw against the KL, of "
        "summary.json (kl, lexicons.opinion.auroc_reward), measures.json (measures.text.rouge1) or "
        "harness.json (harness.arc_easy.acc); may be "
        "given more than once (default: accuracy_unmasked)",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="with --compare or --sweep: the group of runs that the others are held against (default: the first)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the config and print the plan; runs nothing"
    )
    parser.add_argument(
        "--aot",
        metavar="TOPOLOGY",
        help="compile the train step for a TPU topology, such as v5p:4x4x4, v5e-16 or 2xv5e-16, and print what it "
        "takes of a chip; runs nothing and needs no TPU",
    )
    parser.add_argument("--json", action="store_true", help="with --aot: print one JSON object")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configs")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.schema:
        from sparsepo_jax.config.load import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    try:
        expand_paths(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.output and not (options.compare and options.output.endswith(".html")):
        parser.error("--output FILE.html goes with --compare")
    if options.sweep and options.aot:
        parser.error("--aot compiles one config: give it the values of one run in place of --sweep")
    if options.compare:
        return compare(options)
    if options.config is None:
        parser.error("--config FILE is required (or --schema, or --compare)")
    if options.json and options.aot is None:
        parser.error("--json goes with --aot TOPOLOGY")

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
            return compile_for(config, options.aot, as_json=options.json)
    except ConfigError as error:
        count = len(error.lines)
        print(
            f"{options.config}: {count} mistake{'s' if count > 1 else ''}",
            *error.lines,
            sep="\n",
            file=sys.stderr,
        )
        return 2

    return leave(run(config))


def expand_paths(options: argparse.Namespace) -> None:
    """Puts home directories and environment variables into the paths among the options.

    ValueError: there is no such variable or user.
    """
    from sparsepo_jax.config.paths import expand_path

    for name in ("config", "output"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, expand_path(path))
    options.compare = options.compare and [expand_path(path) for path in options.compare]


def leave(status: int) -> int:
    """The exit status of what has run."""
    if status and "jax" in sys.modules and sys.modules["jax"].process_count() > 1:
        # JAX would wait at the end for processes that may never come.
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.modules["jax"].process_index() == 0:
            time.sleep(
                2
            )  # JAX's service is in this process, and aborts those that are still on their way out when it goes
        os._exit(status)
    return status


def compile_for(config: "Config", name: str, *, as_json: bool) -> int:
    """Prints what the train step takes of each chip of a TPU topology; returns the exit status.

    Raises ConfigError.
    """
    from sparsepo_jax.aot.topology import find_topology
    from sparsepo_jax.core.errors import UserError

    try:
        topology = find_topology(name)
    except UserError as error:
        print(f"error: --aot: {error}", file=sys.stderr)
        return 2
    from sparsepo_jax.aot import compile as aot

    try:
        found = aot.compile_step(config, topology)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(aot.as_json(found)) if as_json else aot.as_text(found))
    return aot.FITS if found.footprint.fits else aot.TOO_LARGE


def sweep(options: argparse.Namespace) -> int:
    """The runs of a grid; returns the exit status.

    Raises ConfigError, of whichever run, before the first of them begins.
    """
    from sparsepo_jax.run import sweep as sweeps

    base, planned, notes = sweeps.plan_sweep(
        options.config, options.overrides, sweeps.parse_axes(options.sweep)
    )
    for note in notes:
        print(f"note: {note}")
    if options.check:
        from sparsepo_jax.run.check import make_plan_text

        plans = [make_plan_text(one.config) for one in planned]
        print(sweeps.grid_text(base, planned), f"the first of them, {planned[0].name}:", plans[0], sep="\n")
        return 0
    from sparsepo_jax.core.stop import Stop, Terminated
    from sparsepo_jax.core.streams import lasting_output

    try:
        with Stop().listening(), lasting_output():  # while no run listens
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
        if said := write_comparison([base], base / "comparison.html", options):
            print(f"note: no comparison: {said}")
    return leave(status)


def compare(options: argparse.Namespace) -> int:
    """One report of many runs; returns the exit status."""
    directories = [Path(name) for name in options.compare]
    output = Path(options.output or (directories[0] if len(directories) == 1 else Path()) / "comparison.html")
    if said := write_comparison(directories, output, options):
        print(f"error: {said}", file=sys.stderr)
    return 1 if said else 0


def lacks_metric(names: Sequence[str], directory: Path) -> str | None:
    """In one line, the first of --metric's names that is none of a run's numbers; None: all are."""
    from sparsepo_jax.core.errors import UserError
    from sparsepo_jax.report import compare as comparison

    try:
        comparison.check_metrics(names, directory)
        return None
    except UserError as error:
        return str(error)


def write_comparison(directories: Sequence[Path], output: Path, options: argparse.Namespace) -> str | None:
    """Says where the report is, or returns in one line why there is none."""
    from sparsepo_jax.core.errors import UserError
    from sparsepo_jax.report import compare as comparison

    try:
        print(
            "comparison: "
            f"{comparison.write_comparison(directories, output, metrics=options.metric, baseline=options.baseline)}"
        )
        return None
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or output}: {error.strerror}"


def run(config: "Config") -> int:
    """The stages of a config, and what went wrong on stderr; returns the exit status."""
    from sparsepo_jax.core.streams import lasting_output
    from sparsepo_jax.run.resume import LOOKING

    with contextlib.nullcontext() if LOOKING.issuperset(config.stages) else lasting_output():
        status, said = attempt(config)
        if said:
            print(said, file=sys.stderr)
    return status


def attempt(config: "Config") -> tuple[int, str | None]:
    """Runs the stages of a config: the exit status, and what went wrong in one line.

    An error that nobody foresaw is shown whole.
    """
    from sparsepo_jax.core.errors import UserError
    from sparsepo_jax.core.stop import Stop, Terminated

    os.environ.setdefault(
        "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
    )  # that there is no PyTorch is no news here
    try:
        with Stop().listening() as stop:
            from sparsepo_jax.stages.runner import run_stages

            return run_stages(config, stop), None
    except UserError as error:
        return 1, f"error: {error}"
    except Terminated:
        return RUN_AGAIN, "stopped by SIGTERM; the same command continues the run"
    except KeyboardInterrupt:
        return 130, "interrupted; the same command continues the run"
    except Exception as error:
        from sparsepo_jax.run.faults import explain
        from sparsepo_jax.run.resume import LOOKING
        from sparsepo_jax.sharding.processes import lost_process

        if isinstance(error, BrokenPipeError) and LOOKING.issuperset(config.stages):
            raise  # nobody reads any more

        if lost_process(error):
            return RUN_AGAIN, (
                f"error: another process of this run is gone ({' '.join(str(error).split())[:200]}); start "
                "all of them again, and the run "
                "continues from its last checkpoint"
            )
        said = explain(error, config.output_dir)
        return 1, f"error: {said}" if said else traceback.format_exc()


if __name__ == "__main__":
    sys.exit(main())
