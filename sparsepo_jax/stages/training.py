"""Training, as the stages sft and po have it in common.

Plan, compile ahead, continue from a checkpoint, loop.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsepo_jax.build.choices import training_choices, with_choices
from sparsepo_jax.build.compute import put_on
from sparsepo_jax.build.data import abstract_batches, is_shared, make_training_plan
from sparsepo_jax.build.facts import stage_facts
from sparsepo_jax.build.objective import brings_weights
from sparsepo_jax.build.step import Step, make_step
from sparsepo_jax.build.weights import abstract_frozen
from sparsepo_jax.config.derive import metric_starts
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.files import write_json
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.ends import missing_ends
from sparsepo_jax.data.packing import FILLER
from sparsepo_jax.data.pipeline import make_batches
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.report.doctor import FirstSteps
from sparsepo_jax.report.evidence import facts_path
from sparsepo_jax.run.choices import Choices
from sparsepo_jax.sharding.processes import wait_for_all
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.scores import compile_scores, metric_names
from sparsepo_jax.train.best import Best, Watched, check_metric
from sparsepo_jax.train.checkpoint import Checkpoints, SavePolicy, save_once
from sparsepo_jax.train.log import MetricsLog
from sparsepo_jax.train.loop import Evaluating, Stopping, Work, run_training
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.progress import Checks, Reporting
from sparsepo_jax.train.step import State
from sparsepo_jax.train.trackers import About, import_packages

Compiling = Callable[[], tuple[int, float]]  # Program.compile_ahead's


class Prepared(NamedTuple):
    """A training stage whose programs are being compiled.

    Attributes:
        problem: as the step is compiled.
        choices: what was left to the program, and why it chose so.
        compiled_before: how many programs of its step this process had compiled before it.
        with_weights: whether its batches carry the table's token weights.
        begin: begins to compile; each of what it gives waits and gives (how many were compiled, seconds).
        compiling: what `begin` gave.
        beside: the stage that trained while this one's programs compiled; None: none did.
    """

    table: TokenTable
    problem: Problem
    choices: Choices
    plan: BatchPlan
    step: Step
    compiled_before: int
    with_weights: bool
    begin: Callable[[], list[Compiling]]
    compiling: list[Compiling]
    beside: str | None = None

    def wait(self) -> str:
        """Waits until all programs are compiled; returns what there is to say of it."""
        meanwhile = "" if self.beside is None else f", while {self.beside} trained"
        done, failures = [], []
        for wait in self.compiling:
            try:
                done.append(wait())
            except jax.errors.JaxRuntimeError as error:  # such as too little memory beside what trained
                if self.beside is None:
                    raise
                failures.append(" ".join(str(error).split())[:200])
        if failures:
            done = [wait() for wait in self.begin()]
            meanwhile = f"; it had failed{meanwhile} ({failures[0]})"
        counts, seconds = zip(*done, strict=True)
        shapes = len(self.plan.shapes)
        if any(counts):
            at_once = ", side by side" if shapes > 1 else ""
            when = f"compiled in {max(seconds):.1f} s{at_once}{meanwhile}"
        else:
            when = "compiled before, by this process"
        return f"{shapes} batch {'shape' if shapes == 1 else 'shapes'}, {when}"


def prepare(
    run: Run, stage: str, table: TokenTable, problem: Problem, scored: Iterable[TokenTable] = ()
) -> Prepared:
    """Plans a training stage and begins to compile its programs, from shapes alone.

    The caller can do other work meanwhile.

    Args:
        problem: its blocks of logits and what is computed again are chosen here, by the batches.
        scored: the pairs that the stage scores before or between its steps.
    """
    config = run.config
    plan = make_training_plan(config, stage, table, run.mesh)
    reference_spec = run.reference_spec if stage == "po" else run.spec
    choices = training_choices(config, stage, run.spec, reference_spec, run.mesh, plan.shapes, plan.steps)
    problem = with_choices(problem, config, run.spec, run.lora(stage), run.mesh, choices)
    step = make_step(config, stage, problem, run.spec, plan.steps, run.mesh)
    compiled_before = len(step.program)
    reference = abstract_frozen(config, stage, problem, run.spec, reference_spec, run.mesh)
    with_weights = stage == "po" and brings_weights(config)
    batches = abstract_batches(config, table, plan, run.mesh, with_weights=with_weights)

    def begin() -> list[Compiling]:
        with jax.set_mesh(run.mesh):
            compiling = [step.compile_ahead(reference, batches)]
        return [*compiling, *(compile_scores(run, pairs, step.like.weights) for pairs in scored)]

    return Prepared(table, problem, choices, plan, step, compiled_before, with_weights, begin, begin())


def say_choices(stage: str, choices: Choices) -> None:
    """Says what was left to the program, and why it chose so."""
    say(f"{stage}: " + "; ".join(f"{name} {text}" for name, text in choices.words().items()))


def without_checkpoints(config: Config, *, follows_best: bool) -> str | None:
    """What a run of several processes loses where nothing says when to keep a checkpoint; else None.

    Args:
        follows_best: whether evaluations are kept, since one may be the best.
    """
    if jax.process_count() == 1 or follows_best or config.checkpoint.every_steps is not None:
        return None
    return (
        "several processes keep no checkpoints by time, and checkpoint.every_steps is not set: if a process "
        "is lost, this stage begins anew (one that is stopped by SIGTERM saves a checkpoint first)"
    )


def _state_to_go_on_from(
    stage: str, prepared: Prepared, checkpoints: Checkpoints, initial: Callable[[], dict[str, Weights]]
) -> State:
    """That of the last checkpoint, or of the beginning."""
    state = checkpoints.restore(prepared.step.like)
    if state is None:
        return prepared.step.start(initial())
    say(f"{stage}: continues after step {checkpoints.latest_step} of {prepared.plan.steps}")
    return state


def _work(run: Run, stage: str, prepared: Prepared, reference: Weights | None, start: int) -> Work:
    """What is trained, from a step on."""
    step = prepared.step
    return Work(
        stage=stage,
        update=step.update,
        programs=lambda: len(step.program) - prepared.compiled_before,
        reference=reference,
        batches=_batches(run, prepared, start),
        put=put_on(run.mesh),
        total_steps=prepared.plan.steps,
    )


def _reporting(run: Run, stage: str, log: MetricsLog, facts: dict[str, Any], unit: str) -> Reporting:
    """Where numbers and notes go; of po the doctor sees the first steps."""
    watch = FirstSteps(run.config.model_dump(mode="json"), facts) if stage == "po" else None
    tell_first_step = functools.partial(_tell_first_step, run, stage, facts)
    return Reporting(log.write, run.config.logging.every_steps, unit, watch, tell_first_step)


def train(
    run: Run,
    stage: str,
    prepared: Prepared,
    initial: Callable[[], dict[str, Weights]],
    reference: Weights | None,
    *,
    evaluate: Callable[[State], dict[str, float]] | None = None,
    finish: Callable[[dict[str, Weights]], dict[str, Weights]] = lambda weights: weights,
    check_first: Callable[[dict[str, float], float], None] | None = None,
    reference_record: dict[str, Any] | None = None,
    meanwhile: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Trains a prepared stage from its last checkpoint or from the beginning, and keeps what it leaves.

    Args:
        initial: makes {"policy", "masks"} to begin with, if there is no checkpoint.
        reference: what the step reads beside its state; None for nothing.
        evaluate: gives metrics of a state, between steps.
        finish: makes what is kept of the trained weights.
        check_first: is given the metrics of step 1 and the tokens of a pair; raises if they are wrong.
        reference_record: what the reference is, for checkpoints.
        meanwhile: is given the trained weights as abstract arrays before the first step, to begin in the
            background what later stages need.
    """
    config = run.config
    training = getattr(config, stage)
    table, plan, step = prepared.table, prepared.plan, prepared.step
    began_s = time.time()
    watched = None if evaluate is None else watched_metric(config)
    best = None if watched is None else Best(watched)
    checkpoints = _checkpoints(run, stage, reference_record, best)
    state = _state_to_go_on_from(stage, prepared, checkpoints, initial)
    real = f"{100 * plan.real_token_share():.0f} % real tokens"
    say(f"{stage}: {len(table)} {table.unit}, {plan.steps} steps of {training.batch_size}, {real}")
    if jax.process_index() == 0 and config.data.add_eos:
        note = missing_ends(table, run.ends, config.generation.stop, run.tokenizer)
        if note is not None:
            say(f"note: {stage}: {note}")
    if (note := without_checkpoints(config, follows_best=best is not None)) is not None:
        say(f"note: {stage}: {note}")
    with jax.set_mesh(run.mesh):
        checkpoints.warm_up(state)
    if jax.process_index() == 0:
        import_packages(config.logging.trackers)  # while programs compile
    say(f"{stage}: {prepared.wait()}")
    if meanwhile is not None:
        meanwhile(step.like.weights)
    work = _work(run, stage, prepared, reference, start=int(state.step))
    run.write_config()
    facts = _write_facts(run, stage, prepared)
    every_steps = getattr(training, "eval_every_steps", None)
    evaluation = Evaluating(evaluate, every_steps, best) if evaluate and every_steps else None
    with jax.set_mesh(run.mesh), _metrics_log(run, stage, state, evaluation, plan.steps) as log:
        state = run_training(
            work,
            state,
            reporting=_reporting(run, stage, log, facts, table.unit),
            checks=Checks(training.skip_nonfinite, functools.partial(name_rows, table, plan), check_first),
            stopping=Stopping(run.stop, run.should_stop),
            checkpoints=checkpoints,
            evaluation=evaluation,
        )
    done = int(state.step)
    if best is not None and training.keep == "best" and best.step not in (None, done):
        del state  # two of them may not fit
        state = _read_state(run, stage, best.step, step.like)
    elif best is not None and training.keep == "best" and best.step is None:
        say(f"note: {stage}: no best {best.watched.metric} is known: the last weights are kept")
    kept = int(state.step)
    save_once(run.output_dir / stage / "final", finish(state.weights))
    if kept != done:
        say(f"{stage}: the weights of step {kept} are kept, the best by {best.watched.metric}")
    _write_ending(run, stage, facts, done, kept)
    run.earlier_s += log.earlier_s
    run.mark(stage, began_s - log.earlier_s)
    wait_for_all(f"{stage} marked")


def watched_metric(config: Config) -> Watched | None:
    """The metric of evaluations while po trains that says which state is the best; None: none does."""
    stopping, best = config.po.early_stopping, config.checkpoint.best
    if stopping is not None:
        name = "po.early_stopping.metric"
        return Watched(name, stopping.metric, stopping.mode, stopping.patience, stopping.min_delta)
    return None if best is None else Watched("checkpoint.best.metric", best.metric, best.mode)


def check_watched(run: Run, evaluated: dict[str, TokenTable], step: Step) -> None:
    """UserError: the evaluations of po will not have the metric that it goes by."""
    watched = watched_metric(run.config)
    if watched is not None and evaluated:
        # Pairs have other metrics than single responses, all sets of one kind the same.
        alike = {table.responses_per_row: table for table in evaluated.values()}
        known = {kind: metric_names(run, table, step.like.weights) for kind, table in alike.items()}
        names = [
            f"{start}/{metric}"
            for name, table in evaluated.items()
            for start in metric_starts(run.config, name)
            for metric in known[table.responses_per_row]
        ]
        check_metric(watched, names)


def check_watched_of_po(run: Run) -> None:
    """The same before the stage po, whose metrics follow from shapes. Raises as `check_watched`."""
    config = run.config
    asked = "po" in config.stages and config.po.eval_every_steps is not None
    if asked and watched_metric(config) is not None:
        step = make_step(config, "po", run.problem, run.spec, 1, run.mesh)
        check_watched(run, run.evaluation_sets, step)


def _checkpoints(
    run: Run, stage: str, reference_record: dict[str, Any] | None, best: Best | None = None
) -> Checkpoints:
    config = run.config
    chosen = config.checkpoint
    policy = SavePolicy(chosen.every_steps, chosen.every_minutes, chosen.keep)
    record = {
        "stage": stage,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "finished_stages": sorted(run.marks.all()),
        "reference": reference_record,
    }
    directory = run.output_dir / stage / "checkpoints"
    return Checkpoints(directory, policy, record, note=lambda text: say(f"{stage}: {text}"), best=best)


def _read_state(run: Run, stage: str, step: int, like: State) -> State:
    """The state of a step that was saved."""
    checkpoints = _checkpoints(run, stage, None)
    try:
        return checkpoints.load(step, like)
    finally:
        checkpoints.close()


def _batches(run: Run, prepared: Prepared, start: int) -> Any:
    """This process's part of the batches of steps start + 1 to the last."""
    return make_batches(
        prepared.table,
        prepared.plan,
        start=start,
        stop=prepared.plan.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shared=is_shared(run.config),
        with_weights=prepared.with_weights,
    )


def _metrics_log(run: Run, stage: str, state: State, evaluation: Evaluating | None, steps: int) -> MetricsLog:
    logging, step = run.config.logging, int(state.step)
    about = About(
        output_dir=run.output_dir,
        stage=stage,
        after_step=step,
        project=logging.project,
        name=logging.name or run.output_dir.resolve().name,
        config=run.config.model_dump(mode="json"),
    )
    again = evaluation is not None and evaluation.is_missing(step, steps)
    return MetricsLog(about, logging.trackers, evaluates_again=again)


def _write_facts(run: Run, stage: str, prepared: Prepared) -> dict[str, Any]:
    """Writes what the stage works on, for the doctor and the report, which read files alone."""
    facts = stage_facts(run.config, stage, prepared.table, run.spec, prepared.plan.steps, run.mesh)
    facts["choices"] = prepared.choices.words()
    if run.policy_defaults:
        facts["config_defaults"] = run.policy_defaults
    if jax.process_index() == 0:
        write_json(facts_path(run.output_dir, stage), facts)
    return facts


def _write_ending(run: Run, stage: str, facts: dict[str, Any], done: int, kept: int) -> None:
    """Adds to the facts where the stage ended, if that is not at its last step with its last weights."""
    if (done, kept) == (facts["steps"], facts["steps"]) or jax.process_index() != 0:
        return
    facts |= {"steps_done": done, "weights_of_step": kept}
    write_json(facts_path(run.output_dir, stage), facts)


def _tell_first_step(run: Run, stage: str, facts: dict[str, Any]) -> str:
    """Adds to the facts how long the first step took to come, and says it."""
    facts["first_step_s"] = round(time.time() - run.waiting_since_s, 1)
    if jax.process_index() == 0:
        write_json(facts_path(run.output_dir, stage), facts)
    return f"first step done {facts['first_step_s']:.1f} s after the {run.waiting_since}"


def name_rows(table: TokenTable, plan: BatchPlan, step: int, finite: np.ndarray) -> str:
    """Names the rows of a step whose loss is not finite; all of its rows if only the gradient is not.

    Args:
        step: counted from 1.
        finite: [micro-steps, rows of a micro-step], bool.
    """
    rows = plan.batch(step - 1).rows
    blamed = rows[~finite.ravel() & (rows != FILLER)]
    if not len(blamed):
        blamed = rows[rows != FILLER]
    names = ", ".join(table.origin(row) for row in blamed[:8])
    return names + (f" and {len(blamed) - 8} more" if len(blamed) > 8 else "")
