"""`--aot`: compiles a config's train step for devices that are not here, from shapes alone.

The step is the one that a run trains with. Batches are those of the data if data and tokenizer are here;
otherwise all pairs are as long as data.max_length and data.max_prompt_length allow. Needs neither weights nor
a network.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sparsepo_jax.aot.absent import absent_devices, options_for
from sparsepo_jax.aot.bound import Bound, lower_bound, passes_of, tokens_of
from sparsepo_jax.aot.footprint import Footprint, compile_for_memory
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.build.choices import training_choices, with_choices
from sparsepo_jax.build.compute import check_batch, compute_dtype, set_precision
from sparsepo_jax.build.data import abstract_batches, load_data, make_training_plan
from sparsepo_jax.build.lora import make_lora, make_reference_lora, with_adapter_settings
from sparsepo_jax.build.models import policy_config
from sparsepo_jax.build.objective import brings_weights, cached_problem, make_problem
from sparsepo_jax.build.step import Step, make_step
from sparsepo_jax.build.tokenizer import make_tokenizer
from sparsepo_jax.build.weights import abstract_frozen, check_sharding
from sparsepo_jax.config.derive import is_unpaired, length_limits
from sparsepo_jax.config.load import ConfigError
from sparsepo_jax.config.schema.models import Policy
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.holdout import split_holdout
from sparsepo_jax.data.ragged import Ragged, ragged
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.operations import matrix_operations
from sparsepo_jax.run.choices import Choices
from sparsepo_jax.run.model_facts import read_model, read_policy
from sparsepo_jax.sharding.mesh import make_mesh, platform_of
from sparsepo_jax.train.anchor import MISMATCHED
from sparsepo_jax.train.problem import Problem


class Task(NamedTuple):
    """What is compiled and for what: a stage of a config, its models and its rows.

    Attributes:
        lengths: where the lengths of the rows come from.
    """

    topology: Topology
    config: Config
    stage: str
    policy: DecoderSpec
    reference: DecoderSpec
    table: TokenTable
    lengths: str


class StepShapes(NamedTuple):
    """The step of a task on a mesh, as shapes and shardings.

    Attributes:
        choices: what was left to the program.
        arguments: state, frozen weights and the largest batch, abstract arrays.
    """

    mesh: Mesh
    problem: Problem
    choices: Choices
    step: Step
    arguments: tuple[Any, Any, PairBatch]

    @property
    def batch(self) -> PairBatch:
        """The largest batch."""
        return self.arguments[-1]


class Compiled(NamedTuple):
    """The step of a stage, compiled for a topology.

    Attributes:
        lengths: where the lengths of its batch come from.
        bound: of the step's time; None where the compiler refuses, or for what it says nothing about.
        refusal: the compiler's own words, if it does not fit.
    """

    topology: Topology
    mesh: Mesh
    stage: str
    batch: PairBatch
    lengths: str
    attention: str
    choices: Choices
    dtype: str
    footprint: Footprint
    bound: Bound | None
    refusal: str | None
    seconds: float


def compile_step(config: Config, topology: Topology) -> Compiled:
    """Compiles the step of po, or of sft if po is not among the stages.

    Raises:
        UserError: what compiles for the topology is missing, something that is needed is not here, or nothing
            would be trained.
        ConfigError: the config is wrong.
    """
    return compile_task(read_task(config, topology), absent_devices(topology))


def read_task(config: Config, topology: Topology) -> Task:
    """What a config would train, from what is here. Raises as `compile_step` does."""
    if config.compute.offload != "nothing":
        raise UserError(
            "compute.offload: JAX does not know the host's memory for devices that are not here: compile "
            "with compute.offload=nothing (--check counts what lies on the host)"
        )
    config = with_adapter_settings(config)
    jax.config.update("jax_platforms", "cpu")  # leaves an accelerator that is here alone
    set_precision(config, topology.platform)
    stage = next((stage for stage in ("po", "sft") if stage in config.stages), None)
    if stage is None:
        raise UserError(f"stages: {', '.join(config.stages)} train nothing: add po or sft")
    tokenizer_here = _tokenizer_is_here(config)
    tokenizer = make_tokenizer(config) if tokenizer_here else None
    policy, reference = _specs(config, tokenizer)
    if stage == "sft":
        reference = policy
    table, lengths = _table(config, stage, policy, tokenizer, tokenizer_here)
    return Task(topology, config, stage, policy, reference, table, lengths)


def shapes_of(task: Task, devices: list[jax.Device]) -> StepShapes:
    """The step's shapes and shardings on devices. UserError if the config does not fit them."""
    topology, config, stage, policy, reference, table, _ = task
    axes, training = config.compute.mesh, getattr(config, stage)
    mesh = make_mesh(axes.data, axes.fsdp, axes.tensor, axes.slices, devices)
    check_batch(f"{stage}.batch_size", training.batch_size, training.accumulation, mesh)
    check_sharding(config, stage, policy, reference, mesh)
    problem = _problem(config, stage, policy, reference, mesh)
    plan = make_training_plan(config, stage, table, mesh)
    with_weights = stage == "po" and brings_weights(config)
    # Layers stay in a loop unless the config says otherwise: that compiles quickly and needs the same memory.
    chosen = training_choices(
        config, stage, policy, reference, mesh, plan.shapes, steps=0, device_bytes=topology.usable_bytes
    )
    problem = with_choices(problem, config, policy, make_lora(training, stage, policy), mesh, chosen)
    largest_batch = abstract_batches(config, table, plan, mesh, with_weights=with_weights)[-1]
    step = make_step(config, stage, problem, policy, plan.steps, mesh)
    frozen = abstract_frozen(config, stage, problem, policy, reference, mesh)
    return StepShapes(mesh, problem, chosen, step, (step.like, frozen, largest_batch))


def compile_task(task: Task, devices: list[jax.Device]) -> Compiled:
    """Compiles a task's step. Raises as `compile_step` does."""
    began_s, topology = time.perf_counter(), task.topology
    shapes = shapes_of(task, devices)
    mesh, problem, choices, step, arguments = shapes
    with jax.set_mesh(mesh), _no_compile_cache():
        lowered = step.program.lower(step.numbers, *arguments)
        footprint, refusal = compile_for_memory(
            lowered, arguments, topology, options_for(topology), groups_of(mesh)
        )
    tokens = tokens_of(shapes.batch, task.table)
    passes = passes_of(task.config, task.stage, choices.remat.value)
    return Compiled(
        topology=topology,
        mesh=mesh,
        stage=task.stage,
        batch=shapes.batch,
        lengths=task.lengths,
        attention=problem.attention,
        choices=choices,
        dtype=str(compute_dtype(task.config, mesh)),
        footprint=footprint,
        bound=lower_bound(topology, matrix_operations(task.policy, tokens, passes), footprint),
        refusal=refusal,
        seconds=time.perf_counter() - began_s,
    )


def groups_of(mesh: Mesh) -> list[int]:
    """The slice of each TPU or the host of each GPU, in the order of the mesh."""
    name = "slice_index" if platform_of(mesh) == "tpu" else "process_index"
    return [getattr(device, name, 0) for device in mesh.devices.flat]


def _problem(config: Config, stage: str, policy: DecoderSpec, reference: DecoderSpec, mesh: Mesh) -> Problem:
    lora = make_lora(getattr(config, stage), stage, policy)
    reference_lora = make_reference_lora(config, policy, lora) if stage == "po" else None
    problem = make_problem(config, policy, reference, mesh, lora, reference_lora)
    return cached_problem(problem, config) if stage == "po" and config.reference.cached else problem


@contextlib.contextmanager
def _no_compile_cache() -> Iterator[None]:
    """Switches JAX's cache of programs off: those for chips that are not here cannot be loaded again."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def _specs(config: Config, tokenizer: Any | None) -> tuple[DecoderSpec, DecoderSpec]:
    """The decoders of policy and reference, from what is here.

    The tokenizer tells the size of the vocabulary of a policy from scratch.
    """
    if tokenizer is not None and config.policy.path is None:
        config = config.model_copy(update={"policy": Policy(config=policy_config(config, tokenizer))})
    mistakes: list[str] = []
    policy = read_policy(config, mistakes)
    reference = policy
    if config.reference.path is not None:
        reference = read_model(config.reference.path, "reference.path", mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    if policy.spec is None:
        raise UserError(
            f"policy.path: {policy.origin} is not here; give its shape beside it, policy.config: "
            "{model_type: ..., ...} as in its config.json"
        )
    if policy.parameters is None:
        raise UserError("policy.config.vocab_size: needed, since the tokenizer is not here to tell it")
    if reference.spec is None:
        raise UserError(
            f"reference.path: {reference.origin} is not here; give a local directory with its config.json"
        )
    return policy.spec, reference.spec


# ---------------------------------------------------------------- the batch


def _table(
    config: Config, stage: str, spec: DecoderSpec, tokenizer: Any | None, tokenizer_here: bool
) -> tuple[TokenTable, str]:
    """(rows to make a batch of, where their lengths come from)."""
    alone = stage == "po" and is_unpaired(config.objective)
    name, kind = ("sft", "sft") if stage == "sft" else ("train", "unpaired" if alone else "pairs")
    sources = getattr(config.data, name)
    missing = [source.path for source in sources if source.kind == "file" and not Path(source.path).exists()]
    if not tokenizer_here:
        missing.append("the tokenizer")
    if missing:
        longest, prompt = length_limits(config.data, spec.max_positions, spec.positions_note)
        response = longest - prompt
        responses = 1 if stage == "sft" or alone else 2
        table = _equal_rows(getattr(config, stage).batch_size, prompt, response, responses)
        lengths = (
            f"assumed, prompts of {prompt:,} and responses of {response:,} tokens, the longest by "
            f"data.max_length ({missing[0]} is not here)"
        )
    else:
        table = load_data(config, kind, sources, name, tokenizer, spec)
        if stage == "po" and config.data.holdout is not None:
            table, _ = split_holdout(table, **dict(config.data.holdout))
        lengths = f"of data.{name}"
    if alone:
        table = dataclasses.replace(table, label_N=np.zeros(len(table), bool))
    zeros_N = np.zeros(len(table.responses.flat), np.float32)
    if stage == "po" and config.reference.cached:
        table = dataclasses.replace(table, all_ref_logp=zeros_N)
    if stage == "po" and brings_weights(config):
        table = dataclasses.replace(table, all_weights=zeros_N)
    if stage == "po" and MISMATCHED in config.objective.reads:  # as long as the rows' own
        table = dataclasses.replace(table, mismatched=table)
    return table, lengths


def _tokenizer_is_here(config: Config) -> bool:
    match config.tokenizer.kind:
        case "auto":  # it lies beside the policy; without a policy.path the data must come tokenised
            return config.policy.path is None or Path(config.policy.path).exists()
        case "pretrained":
            return Path(config.tokenizer.path).exists()
        case "bpe":  # a run learns it when it begins
            return (Path(config.output_dir) / "tokenizer").exists()
    return True


def _equal_rows(rows: int, prompt: int, response: int, responses: int) -> TokenTable:
    """Rows of equal lengths, in tokens. responses: of a row, 1 or 2."""

    def zeros(count: int, length: int) -> Ragged:
        return ragged([np.zeros(length, np.int32)] * count, np.int32)

    return TokenTable(
        zeros(rows, prompt),
        zeros(rows * responses, response),
        np.arange(rows),
        np.zeros(rows, bool),
        np.zeros((rows, responses), bool),
        np.ones(rows, np.float32),
        ("assumed",),
        np.zeros(rows, np.int32),
        np.arange(rows),
    )
