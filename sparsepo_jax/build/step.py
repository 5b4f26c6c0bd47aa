"""The compiled step of a training stage."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sparsepo_jax.build.compute import compiler_options
from sparsepo_jax.build.lora import make_lora
from sparsepo_jax.build.objective import without_objective
from sparsepo_jax.build.optimizer import build_optimizer, optimizer_kind, optimizer_rates
from sparsepo_jax.build.weights import abstract, trained_shapes
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.program import Program
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.lora import is_trained_matrix
from sparsepo_jax.run.mixture import training_mistakes
from sparsepo_jax.sharding.mesh import (
    replicated,
)
from sparsepo_jax.sharding.rules import in_host_memory
from sparsepo_jax.train import optimizer as optimizers
from sparsepo_jax.train.anchor import RUNNING, needs_pass
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import (
    RunningState,
    State,
    make_pair_loss,
    make_sft_loss,
    make_update,
    start_state,
)


class Traced(NamedTuple):
    """The first argument of a step's program: what is traced, so that other values do not compile again.

    Attributes:
        problem: its leaves are numbers, the objective's settings (beta among them) and the seed; its other
            parts are compared, and another value makes another program.
        rates: learning rates, weight decays, the schedule's steps and the largest norm of a gradient.
    """

    problem: Problem
    rates: optimizers.Rates


class Step(NamedTuple):
    """The program of a training stage, with the numbers that it is called with.

    Attributes:
        like: shapes and shardings of the state.
        start: start(weights) gives the first state, of copies.
    """

    program: Program
    numbers: Traced
    like: State
    start: Callable[[dict[str, Weights]], State]

    def update(self, state: State, reference: Weights | None, batch: PairBatch):
        """One step; see train.step. Takes the memory of `state`."""
        return self.program(self.numbers, state, reference, batch)

    def compile_ahead(self, reference: Any, batches: list[Any]) -> Callable[[], tuple[int, float]]:
        """See Program.compile_ahead. reference, batches: abstract or not."""
        return self.program.compile_ahead([(self.numbers, self.like, reference, batch) for batch in batches])


def make_step(
    config: Config, stage: str, problem: Problem, spec: DecoderSpec, steps: int, mesh: Mesh
) -> Step:
    """The compiled step of a training stage.

    Args:
        spec: the policy's.
        steps: of the stage, for the schedule.
    """
    training = getattr(config, stage)
    kind = optimizer_kind(training)
    rates = optimizer_rates(config, training, steps, spec.width)
    make_loss = make_pair_loss
    for mistake in training_mistakes(stage, training, spec):
        raise UserError(mistake)
    problem = problem._replace(router_aux=training.router_aux_coefficient)
    if stage == "sft":
        problem = without_objective(problem)
        problem = problem._replace(reads=frozenset())
        make_loss = make_sft_loss
    optimizer, _ = build_optimizer(kind, rates)
    running = stage == "po" and RUNNING in problem.reads
    like = abstract(
        trained_shapes(spec, make_lora(training, stage, spec)),
        problem.mask_source,
        mesh,
        lambda weights: start_state(weights, optimizer, running=running),
        held=config.compute.weights,
    )
    in_turn = config.compute.offload in ("optimizer", "both")
    if in_turn:
        like = like._replace(optimizer=in_host_memory(like.optimizer, is_trained_matrix))
    shardings, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, like))
    program, start = _step_programs(make_loss, kind, tuple(shardings), tree, mesh, in_turn)
    return Step(program, Traced(problem, rates), like, functools.partial(start, rates))


@functools.cache
def _step_programs(
    make_loss: Callable,
    kind: tuple[Callable, str],
    shardings: tuple[NamedSharding, ...],
    tree: jax.tree_util.PyTreeDef,
    mesh: Mesh,
    in_turn: bool,
):
    """(update(numbers, state, reference, batch), start(rates, weights)). shardings, tree: the state's."""
    state_shardings = jax.tree.unflatten(tree, shardings)
    on_every_host = replicated(mesh)

    def update(
        numbers: Traced,
        state: State,
        reference: Weights | None,
        batch: PairBatch,
    ):
        problem, optimizer = numbers.problem, build_optimizer(kind, numbers.rates)
        update_state = make_update(
            make_loss(problem),
            *optimizer,
            dtype=problem.dtype,
            seed=problem.seed,
            in_turn=in_turn,
            anchored=problem if needs_pass(problem) else None,
            adds=problem.adds,
        )
        return update_state(state, reference, batch)

    def start(rates: optimizers.Rates, weights: dict[str, Weights]) -> State:
        # Copies: the state will be donated, but the reference, which may be these very arrays, must live on.
        return start_state(
            jax.tree.map(jnp.copy, weights),
            build_optimizer(kind, rates)[0],
            running=isinstance(state_shardings, RunningState),
        )

    # Give the new state the shardings of the old one; otherwise the second step would compile again.
    return Program(
        jax.jit(
            update,
            donate_argnums=1,
            out_shardings=(state_shardings, on_every_host, on_every_host),
            compiler_options=compiler_options(mesh),
        )
    ), jax.jit(start, out_shardings=state_shardings)
