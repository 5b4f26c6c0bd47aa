"""The programs of a run, made of its problem: the step of a training stage, scores, log-ratios, samples.

All makers are cached and take numbers as arguments of the program, so that the next run of the process finds what this one has compiled.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

import sparsepo_jax.config.schema.root as schema
from sparsepo_jax.build import abstract, compute_dtype, make_lora, mask_config, trained_shapes
from sparsepo_jax.core.program import Program
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.generate.sampler import Sampler, Sampling, make_sampler
from sparsepo_jax.masks.source import fixed_source
from sparsepo_jax.models.spec import DecoderSpec
from sparsepo_jax.sharding.mesh import replicated
from sparsepo_jax.train import optimizer as optimizers
from sparsepo_jax.train.forward import Problem, reference_tokens, response_greedy, response_log_ratio
from sparsepo_jax.train.step import (
    TrainState,
    make_pair_loss,
    make_pair_scores,
    make_sft_loss,
    make_update,
    start_state,
)

# ---------------------------------------------------------------- training


class Step(NamedTuple):
    """The program of a training stage, and the numbers that it takes as an argument: stages that differ in these alone have one program, compiled
    once. like: the state's shapes and shardings. start(weights): the first state, of copies."""

    program: Program
    numbers: tuple[Problem, optimizers.Rates]
    like: TrainState
    start: Callable[[dict[str, Weights]], TrainState]

    def update(self, state: TrainState, reference: Weights | None, batch: PairBatch):
        """See train/step. Takes the state's memory."""
        return self.program(self.numbers, state, reference, batch)

    def compile_ahead(self, reference: Any, batches: list[Any]) -> Callable[[], tuple[int, float]]:
        """See Program.compile_ahead. reference, batches: abstract or not."""
        return self.program.compile_ahead([(self.numbers, self.like, reference, batch) for batch in batches])


def make_step(
    config: schema.Config, stage: str, problem: Problem, spec: DecoderSpec, steps: int, mesh: Mesh
) -> Step:
    """spec: the policy's; steps: of the whole stage, for the schedule."""
    training = getattr(config, stage)
    kind, rates, make_loss = (
        optimizer_kind(training),
        optimizer_rates(config, training, steps, spec.width),
        make_pair_loss,
    )
    if stage == "sft":
        problem, make_loss = without_objective(problem), make_sft_loss
    optimizer, _ = _optimizer(kind, rates)
    like = abstract(
        trained_shapes(spec, make_lora(training, stage, spec)),
        problem.mask_source,
        mesh,
        lambda weights: start_state(weights, optimizer),
    )
    shardings, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, like))
    program, start = _step_programs(make_loss, kind, tuple(shardings), tree, mesh)
    return Step(program, (problem, rates), like, functools.partial(start, rates))


@functools.cache
def _step_programs(
    make_loss: Callable,
    kind: tuple[Callable, str],
    shardings: tuple[NamedSharding, ...],
    tree: jax.tree_util.PyTreeDef,
    mesh: Mesh,
):
    """(update(numbers, state, reference, batch), start(rates, weights)). shardings, tree: the state's."""
    of_state, whole = (
        jax.tree.unflatten(tree, shardings),
        replicated(mesh),
    )  # whole: numbers that every host reads

    def update(
        numbers: tuple[Problem, optimizers.Rates],
        state: TrainState,
        reference: Weights | None,
        batch: PairBatch,
    ):
        problem, rates = numbers
        return make_update(make_loss(problem), *_optimizer(kind, rates))(state, reference, batch)

    def start(rates: optimizers.Rates, weights: dict[str, Weights]) -> TrainState:
        # Copies: the state will be donated, and what it was made from must live on (the reference is the policy as it was).
        return start_state(jax.tree.map(jnp.copy, weights), _optimizer(kind, rates)[0])

    # The new state lies as the old one did: else the second step would be another program.
    return Program(jax.jit(update, donate_argnums=1, out_shardings=(of_state, whole, whole))), jax.jit(
        start, out_shardings=of_state
    )


def optimizer_rates(
    config: schema.Config, training: schema.TextTraining, steps: int, width: int
) -> optimizers.Rates:
    """width: of the policy."""
    rule, schedule, mask = training.optimizer, training.schedule, mask_config(config)
    warmup_steps = schedule.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(steps * (0.1 if schedule.warmup_share is None else schedule.warmup_share))
    return optimizers.Rates(
        policy_peak=rule.learning_rate,
        policy_decay=rule.weight_decay,
        mask_peak=mask_rate(mask, rule.learning_rate, width),
        mask_decay=getattr(mask, "weight_decay", 0.0),
        steps=steps,
        warmup_steps=min(warmup_steps, steps),
        end=schedule.end,
        clip_norm=training.clip_norm,
    )


def mask_rate(mask: Any | None, of_policy: float, width: int) -> float:
    """The learning rate of the mask nets: their own; as released the policy's, at which they hardly move; else one that suits states of any width."""
    if mask is None or mask.kind != "learned":
        return of_policy
    if mask.learning_rate is not None:
        return mask.learning_rate
    return of_policy if mask.official else 0.3 / width


def optimizer_kind(training: schema.TextTraining) -> tuple[Callable, str]:
    """What is built into an optimizer's programs: (maker of the rule of a group of weights, kind of schedule)."""
    rule = training.optimizer
    make_rule = {
        "adamw": lambda: optimizers.adamw_rule(rule.b1, rule.b2, rule.eps),
        "lion": lambda: optimizers.lion_rule(rule.b1, rule.b2),
        "adafactor": optimizers.adafactor_rule,
    }[rule.kind]()
    return make_rule, training.schedule.kind


def make_optimizer(
    config: schema.Config, training: schema.TextTraining, steps: int, width: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of {"policy", "masks"} and the policy's learning-rate schedule."""
    return _optimizer(optimizer_kind(training), optimizer_rates(config, training, steps, width))


def _optimizer(
    kind: tuple[Callable, str], rates: optimizers.Rates
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    make_rule, schedule = kind
    of_policy, of_masks = (
        optimizers.make_schedule(
            schedule, peak=peak, steps=rates.steps, warmup_steps=rates.warmup_steps, end=rates.end
        )
        for peak in (rates.policy_peak, rates.mask_peak)
    )
    return optimizers.make_optimizer(
        make_rule,
        policy_schedule=of_policy,
        policy_decay=rates.policy_decay,
        mask_schedule=of_masks,
        mask_decay=rates.mask_decay,
        clip_norm=rates.clip_norm,
    ), of_policy


# ---------------------------------------------------------------- what reads only


@functools.cache
def _on_every_host(function: Callable, mesh: Mesh):
    """Compiled, its results on every host. Cached, as all makers of programs here are: the next run of the process finds what this one has compiled."""
    return Program(jax.jit(function, out_shardings=replicated(mesh)))


def make_score_batch(problem: Problem, mesh: Mesh):
    """score_batch(weights, reference, batch [1, B, ...]) for eval.scores, its results on every host."""
    return functools.partial(_on_every_host(_score, mesh), problem)


def score_ahead(problem: Problem, mesh: Mesh, calls: list[tuple]) -> Callable[[], tuple[int, float]]:
    """Program.compile_ahead of score_batch's calls."""
    return _on_every_host(_score, mesh).compile_ahead([(problem, *call) for call in calls])


def _score(problem: Problem, weights: dict[str, Weights], reference: Weights, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return (
        *make_pair_scores(problem, training=False)(weights, reference, batch, jnp.int32(0)),
        batch.row_B,
        batch.weight_B,
    )


def make_sum_log_ratios(problem: Problem, mesh: Mesh):
    """sum over a batch's rows [1, B, ...] of log pi(y) - log pi_ref(y), nats, on every host."""
    return functools.partial(_on_every_host(_sum_log_ratios, mesh), without_objective(problem))


def _sum_log_ratios(problem: Problem, policy: Weights, reference: Weights, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return jnp.sum(
        jnp.where(batch.weight_B > 0, response_log_ratio(problem, policy, reference, batch)[:, 0], 0.0)
    )


def make_score_responses(problem: Problem, mesh: Mesh):
    """response_greedy of a batch [1, B, ...], with its rows and their weights, on every host."""
    return functools.partial(_on_every_host(_score_responses, mesh), without_objective(problem))


def _score_responses(problem: Problem, policy: Weights, base: Weights | None, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return *response_greedy(problem, policy, base, batch), batch.row_B, batch.weight_B


def make_reference_tokens(problem: Problem, mesh: Mesh):
    """reference_tokens of a batch [1, B, ...], with its rows and their weights, on every host."""
    return functools.partial(_on_every_host(_reference_tokens, mesh), problem._replace(objective=None))


def _reference_tokens(problem: Problem, reference: Weights, batch: PairBatch):
    batch = jax.tree.map(lambda x: x[0], batch)
    return batch.row_B, batch.weight_B, *reference_tokens(problem, reference, batch)


def make_policy_sampler(problem: Problem, config: schema.Config, mesh: Mesh, sampling: Sampling) -> Sampler:
    return make_sampler(problem.policy_graph, compute_dtype(config, mesh), mesh, sampling)


# ---------------------------------------------------------------- the same problem with less in it


def without_objective(problem: Problem) -> Problem:
    """The models alone: programs that need no more are the same for all objectives."""
    return problem._replace(objective=None, mask_source=None, beta=1.0)


def cached_problem(problem: Problem, config: schema.Config) -> Problem:
    """The same objective for batches that carry the reference's log-probs and, if masks are read off its activations, the masks."""
    source, mask = problem.mask_source, mask_config(config)
    if source.reads_activations:
        source = fixed_source("given", on=mask.on, normalised=mask.normalise)
    return problem._replace(cached=True, mask_source=source)
