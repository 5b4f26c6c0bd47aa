"""Runs the stages of a configuration in order. A finished stage is marked in output_dir/stages.json."""

import contextlib
from collections.abc import Callable

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.run.resume import LOOKING, TRAINING
from sparsepo_jax.stages.context import Run
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


def run_stages(config: Config, stop: Stop, began_s: float | None = None) -> int:
    """Runs config.stages and returns the exit code. Everything is written under config.output_dir.

    Raises what `stop` is asked for, after what was trained so far is saved.

    Args:
        began_s: when the command was started, time.time(); None: now.
    """
    run = Run(config, stop, began_s)
    check_packages(run.config)
    if not set(TRAINING).isdisjoint(config.stages):
        check_trackers(config.logging.trackers)
    check_hub(run.config)
    only_looks = LOOKING.issuperset(run.config.stages)
    with contextlib.nullcontext() if only_looks else run.locked_directory():
        for stage in run.config.stages:
            STAGES[stage](run)
            run.stage_ended(stage)
        push_export(run)
    if "po" in run.config.stages and {"eval", "report"}.isdisjoint(run.config.stages):
        say_doctor(run, evaluated=False)  # a summary.json here may be of an earlier run
    return 0
