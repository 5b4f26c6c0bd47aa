"""Runs the stages of a configuration in order. A finished stage is marked in output_dir/stages.json."""

import contextlib
from collections.abc import Callable

from sparsepo_jax.build.compute import start_jax
from sparsepo_jax.config.rounds import parts_of
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.run.places import place_mistakes
from sparsepo_jax.run.resume import LOOKING, TRAINING, Marks
from sparsepo_jax.scoring.scorers import function_scorer
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.evaluate import evaluate
from sparsepo_jax.stages.export import export
from sparsepo_jax.stages.generate import generate
from sparsepo_jax.stages.harness import harness
from sparsepo_jax.stages.hub import check_hub, push_export
from sparsepo_jax.stages.inspect import inspect
from sparsepo_jax.stages.measure import check_packages, measure
from sparsepo_jax.stages.pairs import make_pairs
from sparsepo_jax.stages.po import po
from sparsepo_jax.stages.report import report, say_doctor
from sparsepo_jax.stages.rounds import say_rounds
from sparsepo_jax.stages.score import score
from sparsepo_jax.stages.sft import sft
from sparsepo_jax.stages.weigh import weigh
from sparsepo_jax.train.trackers import check_trackers

STAGES: dict[str, Callable[[Run], None]] = {
    "inspect": inspect,
    "sft": sft,
    "weigh": weigh,
    "po": po,
    "score": score,
    "eval": evaluate,
    "generate": generate,
    "pairs": make_pairs,
    "measure": measure,
    "harness": harness,
    "report": report,
    "export": export,
}

_SCORED = {"pairs", "eval"}  # stages that ask the scorer


def run_stages(config: Config, stop: Stop, began_s: float | None = None) -> int:
    """Runs config.stages and returns the exit code. Everything is written under config.output_dir.

    Raises what `stop` is asked for, after what was trained so far is saved.

    Args:
        began_s: when the command was started, time.time(); None: now.
    """
    if config.rounds is not None:
        return _run_rounds(config, stop, began_s)
    run = Run(config, stop, began_s)
    _check_needs(run.config)
    only_looks = LOOKING.issuperset(run.config.stages)
    with contextlib.nullcontext() if only_looks else run.locked_directory():
        if config.reference.path is not None and "po" in config.stages and not run.marks.finished("po"):
            _ = run.reference_spec  # raises now instead of after sft
        for stage in run.config.stages:
            STAGES[stage](run)
            run.stage_ended(stage)
        push_export(run)
    if "po" in run.config.stages and {"eval", "report"}.isdisjoint(run.config.stages):
        say_doctor(run, evaluated=False)  # a summary.json here may be of an earlier run
    return 0


def _check_needs(config: Config) -> None:
    """UserError for what would be missed only after hours of work."""
    if mistakes := list(place_mistakes(config)):
        raise UserError("; ".join(mistakes))
    check_packages(config)
    scored, trained = ({*stages} & {*config.stages} for stages in (_SCORED, TRAINING))
    is_function = config.scorer is not None and config.scorer.kind == "function"
    if is_function and scored and trained - Marks(config).all().keys():
        function_scorer(config.scorer.function)
    if not set(TRAINING).isdisjoint(config.stages):
        check_trackers(config.logging.trackers)
    check_hub(config)


def _run_rounds(config: Config, stop: Stop, began_s: float | None) -> int:
    """Runs the parts of the rounds one after the other; what is finished is not repeated."""
    start_jax(config)
    _check_needs(config)
    parts = parts_of(config)
    for part in parts:
        say(f"rounds: {part.name}")
        run_stages(part.config, stop, began_s)
        began_s = None
    say_rounds(config, parts)
    return 0
