"""What a config's train step takes of a TPU topology that is not here.

Compiled as it would run there, from shapes alone; `--aot`.

The step is the one that stages.py trains with. Batches are those of the data where that and its tokenizer are
here, else all pairs are as long as data.max_length and data.max_prompt_length allow. Needs neither weights
nor a network.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sparsepo_jax.aot.hlo import Footprint, absent_devices, compile_for_memory
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.build.compute import check_batch, compute_dtype, set_precision
from sparsepo_jax.build.data import abstract_batches, length_limits, load_data, make_training_plan
from sparsepo_jax.build.lora import make_lora, make_reference_lora, with_adapter_settings
from sparsepo_jax.build.models import policy_config
from sparsepo_jax.build.objective import brings_weights, cached_problem, make_problem
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.tokenizer import make_tokenizer
from sparsepo_jax.build.weights import abstract_frozen, check_sharding
from sparsepo_jax.config.load import ConfigError
from sparsepo_jax.config.schema.models import Policy
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.holdout import split_holdout
from sparsepo_jax.data.table import TokenTable, ragged
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.run.check import read_model, read_policy
from sparsepo_jax.sharding.mesh import make_mesh

FITS, TOO_LARGE = 0, 3  # exit statuses


class Compiled(NamedTuple):
    """The step of a stage for a topology.

    lengths: where those of its batch come from; refusal: the compiler's own words, if it does not fit.
    """

    topology: Topology
    mesh: Mesh
    stage: str
    batch: PairBatch
    lengths: str
    attention: str
    dtype: str
    footprint: Footprint
    refusal: str | None
    seconds: float


def compile_step(config: Config, topology: Topology) -> Compiled:
    """The po step (sft, where there is no po among the stages). Raises UserError and ConfigError."""
    began_s, config = time.perf_counter(), with_adapter_settings(config)
    jax.config.update("jax_platforms", "cpu")  # an accelerator that is here is not asked
    set_precision(config, "tpu")
    stage = next((stage for stage in ("po", "sft") if stage in config.stages), None)
    if stage is None:
        raise UserError(f"stages: {', '.join(config.stages)} train nothing: add po or sft")
    tokenizer_here = _tokenizer_is_here(config)
    tokenizer = make_tokenizer(config) if tokenizer_here else None
    policy, reference = _specs(config, tokenizer)
    axes, training = config.compute.mesh, getattr(config, stage)
    mesh = make_mesh(axes.data, axes.fsdp, axes.tensor, axes.slices, absent_devices(topology))
    check_batch(f"{stage}.batch_size", training.batch_size, training.accumulation, mesh)
    check_sharding(config, stage, policy, reference if stage == "po" else policy, mesh)
    lora = make_lora(training, stage, policy)
    reference_lora = make_reference_lora(config, policy, lora) if stage == "po" else None
    problem = make_problem(config, policy, reference if stage == "po" else policy, mesh, lora, reference_lora)
    if stage == "po" and config.reference.cached:
        problem = cached_problem(problem, config)
    table, lengths = _table(config, stage, policy, tokenizer, tokenizer_here)
    plan = make_training_plan(config, stage, table, mesh)
    with_weights = stage == "po" and brings_weights(config)
    batch = abstract_batches(
        config, table, plan, mesh, micro_steps=training.accumulation, with_weights=with_weights
    )[-1]
    frozen = abstract_frozen(config, stage, problem, policy, reference, mesh)
    step = make_step(config, stage, problem, policy, plan.steps, mesh)
    arguments = step.like, frozen, batch
    with jax.set_mesh(mesh), _no_compile_cache():
        footprint, refusal = compile_for_memory(
            step.program.lower(step.numbers, *arguments), arguments, topology.chip_bytes
        )
    dtype = str(compute_dtype(config, mesh))
    return Compiled(
        topology,
        mesh,
        stage,
        batch,
        lengths,
        problem.attention,
        dtype,
        footprint,
        refusal,
        time.perf_counter() - began_s,
    )


@contextlib.contextmanager
def _no_compile_cache():
    """Programs for chips that are not here cannot be loaded again."""
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", kept)


def _specs(config: Config, tokenizer: Any | None) -> tuple[DecoderSpec, DecoderSpec]:
    """Of policy and reference, from what is here.

    A tokenizer says how large the vocabulary of a policy from scratch is.
    """
    if tokenizer is not None and config.policy.path is None:
        config = config.model_copy(update={"policy": Policy(config=policy_config(config, tokenizer))})
    mistakes: list[str] = []
    policy = read_policy(config, mistakes)
    reference = (
        policy
        if config.reference.path is None
        else read_model(config.reference.path, "reference.path", mistakes)
    )
    if mistakes:
        raise ConfigError(mistakes)
    if policy.spec is None:
        raise UserError(
            f"policy.path: {policy.origin} is not here; give its shape beside it, policy.config: "
            f"{{model_type: ..., ...}} as in its config.json"
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
    name, kind = ("sft", "sft") if stage == "sft" else ("train", "pairs")
    sources = getattr(config.data, name)
    missing = [source.path for source in sources if source.kind == "file" and not Path(source.path).exists()]
    if not tokenizer_here:
        missing.append("the tokenizer")
    if missing:
        prompt, response = _longest(config, spec)
        table = _equal_rows(getattr(config, stage).batch_size, prompt, response, 1 if stage == "sft" else 2)
        lengths = f"assumed, prompts of {prompt:,} and responses of {response:,} tokens, the longest by data.max_length ({missing[0]} is not here)"
    else:
        table = load_data(config, kind, sources, name, tokenizer, spec)
        if stage == "po" and config.data.holdout is not None:
            table, _ = split_holdout(table, config.data.holdout.share, config.data.holdout.seed)
        lengths = f"of data.{name}"
    numbers = np.zeros(len(table.responses.flat), np.float32)
    if stage == "po" and config.reference.cached:
        table = dataclasses.replace(table, all_ref_logp=numbers)
    if stage == "po" and brings_weights(config):
        table = dataclasses.replace(table, all_weights=numbers)
    return table, lengths


def _tokenizer_is_here(config: Config) -> bool:
    match config.tokenizer.kind:
        case "auto":  # beside the policy; without a policy.path the data must be tokenised
            return config.policy.path is None or Path(config.policy.path).exists()
        case "pretrained":
            return Path(config.tokenizer.path).exists()
        case "bpe":  # learned when a run begins
            return (Path(config.output_dir) / "tokenizer").exists()
    return True


def _longest(config: Config, spec: DecoderSpec) -> tuple[int, int]:
    longest, prompt = length_limits(config, spec)
    return prompt, longest - prompt


def _equal_rows(rows: int, prompt: int, response: int, responses: int) -> TokenTable:
    zeros, none = (
        lambda number, length: ragged([np.zeros(length, np.int32)] * number, np.int32),
        np.zeros(rows, bool),
    )
    return TokenTable(
        zeros(rows, prompt),
        zeros(rows * responses, response),
        np.arange(rows),
        none,
        np.zeros((rows, responses), bool),
        np.ones(rows, np.float32),
        ("assumed",),
        np.zeros(rows, np.int32),
        np.arange(rows),
    )


# ---------------------------------------------------------------- words


def as_json(found: Compiled) -> dict[str, Any]:
    footprint, packing = found.footprint, found.batch.packing
    return {
        "topology": str(found.topology),
        "chips": found.topology.chips,
        "mesh": dict(found.mesh.shape),
        "stage": found.stage,
        "dtype": found.dtype,
        "batch": {
            "rows": int(np.prod(found.batch.row_B.shape)),
            "micro_steps": packing.ids_RS.shape[0],
            "rows_of_tokens": packing.ids_RS.shape[1],
            "positions": packing.ids_RS.shape[2],
            "lengths": found.lengths,
        },
        "argument_bytes": footprint.argument_bytes,
        "temp_bytes": footprint.temp_bytes,
        "alias_bytes": footprint.alias_bytes,
        "needed_bytes": footprint.needed_bytes,
        "hbm_bytes": found.topology.chip_bytes,
        "fits": footprint.fits,
        "collectives": footprint.collectives
        and {kind: one._asdict() for kind, one in footprint.collectives.items()},
        "open_loops": footprint.open_loops,
        "kernels": {"attention": found.attention, "custom_calls": footprint.kernels},
        "refusal": found.refusal,
        "seconds": round(found.seconds, 1),
    }


def as_text(found: Compiled) -> str:
    footprint, topology, packing = found.footprint, found.topology, found.batch.packing
    micro_steps, rows, positions = packing.ids_RS.shape
    axes = " x ".join(f"{axis} {size}" for axis, size in found.mesh.shape.items())
    batch = (
        f"{micro_steps} micro-step(s) of {rows} rows of {positions:,} tokens, "
        f"{found.batch.row_B.shape[1] // rows} "
        f"{'row' if found.stage == 'sft' else 'pair'}(s) in each; lengths {found.lengths}"
    )
    needed = (
        "unknown"
        if footprint.needed_bytes is None
        else f"{_gb(footprint.needed_bytes)}, {100 * footprint.needed_bytes / topology.chip_bytes:.0f} % of it"
    )
    slices = f" in {topology.slices} slices" if topology.slices > 1 else ""
    lines = [
        (
            "topology",
            f"{topology}: {topology.chips} chips of {topology.chip_bytes / 2**30:.0f} GiB, {axes}{slices}",
        ),
        ("step", f"{found.stage} in {found.dtype}, compiled in {found.seconds:.0f} s"),
        ("batch", batch),
        (
            "a chip",
            f"arguments {_gb(footprint.argument_bytes)} (donated {_gb(footprint.alias_bytes)}), "
            f"temporaries {_gb(footprint.temp_bytes)}",
        ),
        ("fits", f"{'yes' if footprint.fits else 'no'}: it needs {needed}"),
    ]
    if footprint.collectives is not None:
        sent = (
            ", ".join(
                f"{kind} {one.count:,} of {_gb(one.bytes)}" for kind, one in footprint.collectives.items()
            )
            or "none"
        )
        lines.append(
            (
                "collectives",
                sent
                + (
                    " a step (what is in loops of unknown length counts once)"
                    if footprint.open_loops
                    else " a step"
                ),
            )
        )
        calls = (
            ", ".join(f"{name} x {count}" for name, count in footprint.kernels.items()) or "no custom calls"
        )
        lines.append(("kernels", f"attention {found.attention}; {calls}"))
    if found.refusal is not None:
        lines.append(("compiler", found.refusal[:400]))
    return "\n".join(f"{name:<12}{text}" for name, text in lines)


def _gb(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
