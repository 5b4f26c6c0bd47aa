"""The stage po.

Preference optimisation of the policy against the frozen reference, and of the masks with it.
"""

import functools
from pathlib import Path

import numpy as np

from sparsepo_jax.build.compute import compute_dtype
from sparsepo_jax.build.data import check_room, make_training_plan
from sparsepo_jax.build.masks import initial_masks
from sparsepo_jax.build.objective import cached_problem
from sparsepo_jax.config.derive import decided_by_evaluation, metric_starts
from sparsepo_jax.config.schema.masking import warm_gate
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval.scores import mask_sparsity, mean_metrics
from sparsepo_jax.run.beforehand import rounded_reference
from sparsepo_jax.stages.ahead import compile_eval_meanwhile
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.reference import (
    add_reference,
    describe_reference,
    keep_frozen,
    make_first_step_check,
)
from sparsepo_jax.stages.scores import score_table
from sparsepo_jax.stages.training import Prepared, check_watched, prepare, say_choices, train
from sparsepo_jax.stages.weights import (
    adapted,
    is_policy_itself,
    policy_to_train,
    reference_weights,
    say_finished,
    start_weights,
    starting_policy,
)
from sparsepo_jax.train.checkpoint import save_once
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import State

DEAD_ON = 256  # pairs: a mask that is zero on all of them does not learn


def po(run: Run) -> None:
    """Trains on data.train; evaluates on the evaluation pairs every po.eval_every_steps."""
    if run.marks.finished("po"):
        say_finished(run, "po")
        return
    config = run.config
    check_po(run)
    prepared, run.prepared_po = run.prepared_po or prepare_po(run), None
    table = run.training_pairs
    evaluated = _evaluated(run)
    if prepared is not None:
        say_choices("po", prepared.choices)
    start: dict[str, Weights] | None = _begin(run, table)
    reference: Weights | None = reference_weights(run, start)
    start = adapted(run, start) if run.problem.adapted or is_policy_itself(run) else None  # frees the rest
    record = describe_reference(run, reference)
    say(f"po: reference: {record['is']}, {record['dtype']}, digest {record['digest']}")
    keep_frozen(run, "po", "reference", record)
    if prepared is None:
        table = add_reference(run, table, reference)
        prepared = _prepare(run, table, cached_problem(run.problem, config))
        say_choices("po", prepared.choices)

    def evaluate(state: State) -> dict[str, float]:
        return _evaluate(run, evaluated, state.weights, reference)

    if config.reference.cached and not evaluated and not run.problem.adapted:
        start = reference = None  # frees their memory: the step does not read them

    def initial() -> dict[str, Weights]:
        return start_weights(run) if start is None else start

    train(
        run,
        "po",
        prepared,
        initial,
        reference,
        evaluate=evaluate if evaluated else None,
        check_first=make_first_step_check(run),
        reference_record=record,
        meanwhile=functools.partial(compile_eval_meanwhile, run),
    )


def check_po(run: Run) -> None:
    """Refuses the stage by its settings and rows, before anything is trained."""
    run.check_training("po")
    if problem := rounded_reference(run.config, str(compute_dtype(run.config, run.mesh))):
        raise UserError(problem)
    table, eval_pairs = run.training_pairs, run.evaluation_pairs
    run.marks.check_data("po", _rows_that_decide(run, table))
    if not run.marks.begun("po"):  # with a gate that an older version let pass, and that stays as it is
        _refuse_warm_gate(run, table)
    _check_room_to_answer(run, eval_pairs)


def prepare_po(run: Run) -> Prepared | None:
    """Begins to compile the stage's programs.

    None: the step reads log-probs of the reference, which are computed first.
    """
    return None if run.config.reference.cached else _prepare(run, run.training_pairs, run.problem)


def _prepare(run: Run, table: TokenTable, problem: Problem) -> Prepared:
    """The stage with its programs. UserError: evaluations will not have the metric that one goes by."""
    evaluated = _evaluated(run)
    scored = list(evaluated.values())
    if _masks_may_be_dead(run):
        scored.append(_first_rows(table, run.config.evaluation.batch_size))
    prepared = prepare(run, "po", table, problem, scored)
    check_watched(run, evaluated, prepared.step)
    return prepared


def _evaluated(run: Run) -> dict[str, TokenTable]:
    """What is evaluated between steps, by name."""
    return run.evaluation_sets if run.config.po.eval_every_steps is not None else {}


def _evaluate(
    run: Run, sets: dict[str, TokenTable], weights: dict[str, Weights], reference: Weights
) -> dict[str, float]:
    """Metrics of all sets: eval/METRIC of the main one, eval_NAME/METRIC of each that has a name."""
    metrics: dict[str, float] = {}
    for name, table in sets.items():
        means = mean_metrics(score_table(run, table, weights, reference))
        for start in metric_starts(run.config, name):
            metrics |= {f"{start}/{metric}": x for metric, x in means.items()}
    return metrics


def _refuse_warm_gate(run: Run, table: TokenTable) -> None:
    """UserError if epochs end before the gate of the masks is as cold as held-out figures have it."""
    config = run.config
    if config.po.steps is None and getattr(config.objective.mask, "temperature_steps", None) is not None:
        steps = make_training_plan(config, "po", table, run.mesh).steps
        if line := warm_gate(config.objective.mask, steps):
            raise UserError(line)


def _check_room_to_answer(run: Run, eval_pairs: TokenTable | None) -> None:
    """Checks now, rather than after hours of training, that the stage eval will be able to answer prompts."""
    config = run.config
    answers = config.evaluation.sampled_prompts is not None and "eval" in config.stages
    if answers and eval_pairs is not None:
        check_room("generation.max_new_tokens", config.generation.max_new_tokens, eval_pairs, run.spec)


def _rows_that_decide(run: Run, table: TokenTable) -> dict[str, str]:
    """Digests of the rows of each file: with the evaluation pairs, where po stops or is kept by them."""
    digests = table.file_digests()
    if decided_by_evaluation(run.config):
        for name, pairs in run.evaluation_sets.items():
            of_set = f"evaluation set {name}".rstrip()
            digests |= {f"{of_set}: {file}": digest for file, digest in pairs.file_digests().items()}
    return digests


def _begin(run: Run, table: TokenTable) -> dict[str, Weights]:
    """{"policy", "masks"} that po starts from, kept in po/start when it begins."""
    directory = _start_directory(run)
    if not directory.exists():
        masks = initial_masks(run.config, run.problem.mask_source, run.mesh)
        policy = starting_policy(run) if run.problem.adapted else policy_to_train(run)
        start = {"policy": policy, "masks": masks}
        del policy
        if _masks_may_be_dead(run):
            _refuse_dead_masks(run, table, start)
        run.begin("po", _rows_that_decide(run, table))
        save_once(directory, start)
        del start
    return start_weights(run)


def _start_directory(run: Run) -> Path:
    return run.output_dir / "po" / "start"


def _masks_may_be_dead(run: Run) -> bool:
    """Whether masks are learned, and nobody has looked at their start yet.

    Scores have the median of what training draws: with hard_concrete it may be zero where many draws are not.
    """
    mask = run.config.objective.mask
    is_learned = mask is not None and mask.kind == "learned" and mask.mixer_activation != "hard_concrete"
    return is_learned and not _start_directory(run).exists()


def _first_rows(table: TokenTable, most: int) -> TokenTable:
    return table.take(np.arange(min(len(table), most, DEAD_ON)))


def _refuse_dead_masks(run: Run, table: TokenTable, start: dict[str, Weights]) -> None:
    """UserError if a learned reward mask is zero on every token of all the first pairs.

    With policy = reference nothing would move.
    """
    adapted_start, reference = adapted(run, start), reference_weights(run, start)
    # Nearly always the first batch shows a mask that is alive; the others need not be waited for.
    for most in sorted({min(run.config.evaluation.batch_size, DEAD_ON), DEAD_ON}):
        first_rows = _first_rows(table, most)
        if mask_sparsity(score_table(run, first_rows, adapted_start, reference)) < 1.0:
            return
    raise UserError(
        f"the reward mask starts at zero on every token of the first {len(first_rows)} rows: neither "
        "policy nor mask would get a gradient; set objective.mask.init=ones, or take another seed"
    )
