"""The command: `python -m sparsepo_jax.main --config FILE [section.field=value ...]`. JAX is imported only when a stage runs."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence

_EXAMPLES = """\
examples:
  run the stages of a config (run again to continue an interrupted run):
    python -m sparsepo_jax.main --config configs/quickstart.yaml
  the same with other values (any YAML: numbers, lists, null, {a: 1}; an index picks an entry of a list):
    python -m sparsepo_jax.main --config configs/quickstart.yaml output_dir=runs/dpo objective.kind=dpo objective.beta=0.1
    python -m sparsepo_jax.main --config FILE 'stages=[po, eval]' data.train.0.path=pairs.jsonl po.optimizer.learning_rate=1e-6
  see what it would do:
    python -m sparsepo_jax.main --config FILE --check
  the JSON schema of configs, for an editor:
    python -m sparsepo_jax.main --schema > schema.json

exit status: 0 done; 1 a run failed; 2 the config or the command line is wrong; 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsepo_jax.main",
        description="Token-level preference optimisation in JAX: train, evaluate and explain SparsePO and its relatives.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that describes the run")
    parser.add_argument("--check", action="store_true", help="check the config and print the plan; runs nothing")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configs")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    options = parser.parse_intermixed_args(arguments)
    if options.schema:
        from sparsepo_jax.config.load import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    if options.config is None:
        parser.error("--config FILE is required (or --schema)")

    from sparsepo_jax.config.load import ConfigError, load_config

    try:
        config, notes = load_config(options.config, options.overrides)
        for note in notes:
            print(f"note: {note}")
        if options.check:
            from sparsepo_jax.plan import make_plan_text

            print(make_plan_text(config))
            return 0
    except ConfigError as error:
        count = len(error.lines)
        print(f"{options.config}: {count} mistake{'s' if count > 1 else ''}", *error.lines, sep="\n", file=sys.stderr)
        return 2

    from sparsepo_jax.core.errors import UserError

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch is no news here
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a machine that is taken away asks first: as Ctrl-C
        from sparsepo_jax.stages import run_stages

        return run_stages(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
