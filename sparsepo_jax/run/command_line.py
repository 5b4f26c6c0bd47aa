"""What can be written behind `python -m sparsepo_jax.main`, and what goes together."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

_EXAMPLES = """\
examples:
  run the stages of a config (run again to continue an interrupted run):
    python -m sparsepo_jax.main --config configs/quickstart.yaml
  the same with other values (any YAML: numbers, lists, null, {a: 1}; an index picks an entry of a list):
    python -m sparsepo_jax.main --config configs/quickstart.yaml output_dir=runs/dpo objective.kind=dpo
    python -m sparsepo_jax.main --config FILE 'stages=[po, eval]' data.train.0.path=pairs.jsonl
  see what it would do:
    python -m sparsepo_jax.main --config FILE --check
  see whether it would fit GPUs or TPUs that are not here, and how fast it could be (extras [aot-gpu], [tpu]):
    python -m sparsepo_jax.main --config FILE --aot h100x8
    python -m sparsepo_jax.main --config FILE --aot v5e-16
    python -m sparsepo_jax.main --config FILE --aot h100x8 --fit      # which settings would be the best
  start from the sft of another run, with the same settings of sft, in place of training one:
    python -m sparsepo_jax.main --config FILE output_dir=runs/new sft.taken_from=runs/old
  a grid of runs in one process, each in output_dir/beta=0.1,seed=0 and so on; run again to continue it
  (values are any YAML, other overrides come before; runs whose sft would be the same train it once):
    python -m sparsepo_jax.main --config FILE po.steps=500 --sweep objective.beta=0.1,0.4,0.8 seed=0,1,2
    python -m sparsepo_jax.main --config FILE --sweep 'objective={kind: dpo, beta: 0.1},{kind: tdpo1}' --check
  one report of many runs: tables with confidence intervals, metrics against the KL, curves, heat maps
  (a sweep ends with one of its own):
    python -m sparsepo_jax.main --compare runs/sweep runs/dpo --baseline dpo --output runs/comparison.html
  a config of TRL, Axolotl, LLaMA-Factory or open-instruct, run on 8 devices, as one of ours:
    python -m sparsepo_jax.main --from-trl dpo.yaml --devices 8 > my.yaml
  the JSON schema of configs, for an editor:
    python -m sparsepo_jax.main --schema > schema.json

exit status: 0 done; 1 a run failed; 2 the config or the command line is wrong; 3 with --aot: it does not fit;
  with --sweep 1 if any of its runs failed (the others are done);
  130 interrupted (Ctrl-C);
  75 stopped by SIGTERM or SIGHUP, or because another process of the run is gone: start it again, and it
  continues
  (134: the same, JAX has aborted it)
"""


class _Once(argparse.Action):
    """Keeps a value. An error if there is one already: of two, none is passed over."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        if before is not None:
            parser.error(f"{option_string} is there twice, with {before} and {values}: give one")
        if values == "":
            parser.error(f"{option_string}: expected {self.metavar}, got an empty text (a variable not set?)")
        setattr(namespace, self.dest, values)


# (name, help, further settings of argparse's add_argument)
_OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--config", "YAML file that describes the run", {"metavar": "FILE", "action": _Once}),
    (
        "--sweep",
        "run the config with every combination of these values, one run after the other",
        {"metavar": "KEY=V1,V2", "nargs": "+", "action": "extend"},
    ),
    (
        "--compare",
        "write one report of these runs (or sweeps, or directories of runs); runs nothing",
        {"metavar": "DIR", "nargs": "+", "action": "extend"},
    ),
    (
        "--output",
        "with --compare: the report, FILE.html (default: comparison.html in DIR, or here for several)",
        {"metavar": "FILE", "action": _Once},
    ),
    (
        "--metric",
        "with --compare or --sweep: a number to draw against the KL, of summary.json (kl, "
        "lexicons.opinion.auroc_reward), measures.json (measures.text.rouge1) or harness.json "
        "(harness.arc_easy.acc); may be given more than once (default: accuracy_unmasked)",
        {"metavar": "NAME", "action": "append", "default": []},
    ),
    (
        "--baseline",
        "with --compare or --sweep: the group of runs that the others are compared with (default: the first)",
        {"metavar": "NAME", "action": _Once},
    ),
    ("--check", "check the config and print the plan; runs nothing", {"action": "store_true"}),
    (
        "--aot",
        "compile the train step for devices that are not here, such as h100, a100-80gx8, '2x h100x8', "
        "v5p:4x4x4, v5e-16 or 2xv5e-16, and print what it takes of each; runs nothing",
        {"metavar": "DEVICES", "action": _Once},
    ),
    (
        "--fit",
        "with --aot: search mesh, micro-steps, what is recomputed, blocks of logits and types of numbers for "
        "the settings that fit and have the lowest bound of a step's time",
        {"action": "store_true"},
    ),
    ("--json", "with --aot: print one JSON object", {"action": "store_true"}),
    ("--schema", "print the JSON schema of configs", {"action": "store_true"}),
    (
        "--from-trl",
        "print the config of TRL, Axolotl, LLaMA-Factory or open-instruct (YAML, JSON, or a shell or Python "
        "script with its settings) as one of ours",
        {"metavar": "FILE", "action": _Once},
    ),
    (
        "--trainer",
        "with --from-trl: which of TRL's trainers a file is for that fits several",
        {"choices": ["dpo", "sft", "kto", "cpo", "orpo", "simpo"]},
    ),
    (
        "--devices",
        "with --from-trl: on how many devices the file was run, since batches there are per device (default: "
        "as many as a launcher's command in it starts processes, else 1)",
        {"metavar": "N", "type": int},
    ),
    ("overrides", "replaces a value of the config", {"metavar": "section.field=value", "nargs": "*"}),
)


_MEANT = {"-c": "--config", "--dry-run": "--check", "--dry_run": "--check", "--validate": "--check"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, in place of all that could be written."""
        self.exit(2, f"error: {message}; --help shows what can be written\n")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line. Ends the program with status 2 if they do not go together."""
    parser = _Parser(
        prog="python -m sparsepo_jax.main",
        description=(
            "Token-level preference optimisation in JAX: train, evaluate and explain SparsePO and its "
            "relatives."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, help_text, settings in _OPTIONS:
        parser.add_argument(name, help=help_text, **settings)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        parser.error(_about_unknown(unknown[0]))
    if options.schema:
        return options
    if options.output and not (options.compare and options.output.endswith(".html")):
        parser.error("--output FILE.html goes with --compare")
    if options.sweep and options.aot:
        parser.error("--aot compiles one config: give it the values of one run in place of --sweep")
    devices_are_wrong = options.devices is not None and options.devices < 1
    if devices_are_wrong or (options.from_trl is None and (options.trainer or options.devices)):
        parser.error("--trainer and --devices N (1 or more) go with --from-trl FILE")
    others = ("config", "overrides", "check", "sweep", "aot")
    if options.from_trl and any(getattr(options, name) for name in others):
        parser.error(
            "--from-trl FILE prints a config and does no more: give settings and --check to that config"
        )
    if options.compare and (options.from_trl or any(getattr(options, name) for name in others)):
        parser.error(
            "--compare DIR ... reads runs as they are: it takes --output, --metric and --baseline alone"
        )
    if not options.compare and not options.from_trl and options.config is None:
        meant = next((text for text in options.overrides if text.endswith((".yaml", ".yml", ".json"))), None)
        hint = f"; did you mean --config {meant}?" if meant else ""
        parser.error(f"--config FILE is required (or --schema, --compare or --from-trl){hint}")
    for name in ("json", "fit"):
        if not options.compare and getattr(options, name) and options.aot is None:
            parser.error(f"--{name} goes with --aot DEVICES")
    return options


def _about_unknown(argument: str) -> str:
    """What was meant by an option that does not exist: another, or a setting of the config."""
    option, _, value = argument.partition("=")
    names = [name for name, _, _ in _OPTIONS if name.startswith("--")]
    near = difflib.get_close_matches(_MEANT.get(option, option), names, n=1, cutoff=0.8)
    if near:
        return f"{argument}: no such option; did you mean {near[0]}?"
    setting = option.lstrip("-")
    return (
        f"{argument}: no such option; settings of the config are written without dashes: "
        f"{setting}={value or 'VALUE'}"
    )


def expand_paths(options: argparse.Namespace) -> None:
    """Expands home directories and environment variables in the paths among the options.

    Raises:
        ValueError: there is no such variable or user.
    """
    from sparsepo_jax.config.paths import expand_path

    for name in ("config", "output", "from_trl"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, expand_path(path))
    options.compare = options.compare and [expand_path(path) for path in options.compare]
