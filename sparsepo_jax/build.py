"""The only place where the configuration meets code: each function makes one thing that the stages need."""

import dataclasses
import datetime
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import Partial

import sparsepo_jax.config.schema.root as schema
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json
from sparsepo_jax.core.tree import Weights, split_module
from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.facts import table_facts
from sparsepo_jax.data.load import cache_directory
from sparsepo_jax.data.packing import sizes_of
from sparsepo_jax.data.pipeline import empty_batch
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.generate.sampler import Sampling
from sparsepo_jax.losses import sequence, token_weighted
from sparsepo_jax.masks.activation import choose_points
from sparsepo_jax.masks.learned import masks_from_tensors
from sparsepo_jax.masks.source import MaskSource, activation_source, fixed_source, learned_source
from sparsepo_jax.models.adapter import Adapter, LoraShape
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.directory import (
    end_tokens,
    has_tokenizer,
    inner_adapter_problem,
    read_config,
    read_generation_config,
    with_end_token,
)
from sparsepo_jax.models.lora import Lora, hold_base
from sparsepo_jax.models.spec import DecoderSpec, SpecError, choose_projections, spec_from_hf
from sparsepo_jax.models.weights import SafeTensors, find_checkpoint, is_mask_tensor, stream_hf
from sparsepo_jax.ops.attention import AttentionKernel
from sparsepo_jax.ops.logprob_kl import HeadBlocks
from sparsepo_jax.run.adapters import settle_lora
from sparsepo_jax.run.resume import LOOKING, trains_adapter_further
from sparsepo_jax.scoring.scorers import Scorer
from sparsepo_jax.sharding.mesh import (
    batch_sharding,
    lay,
    make_constrain,
    make_place_head,
    make_spread,
    pair_shards,
    platform_of,
    put_batch,
    replicated,
)
from sparsepo_jax.sharding.processes import join_processes
from sparsepo_jax.sharding.rules import check_sharded, state_shardings, weight_shardings
from sparsepo_jax.train.forward import Problem
from sparsepo_jax.train.reference_cache import weights_digest

# To compile a batch shape takes about as long as so many steps: from five of a 135M model on two CPU cores, over a hundred on an H100, to more for toys.
SHAPE_STEPS = 64

# ---------------------------------------------------------------- tokenizer and data


def make_tokenizer(config: schema.Config) -> Any | None:
    """The run's tokenizer, or None (data must be tokenised). One that is learned is learned once and kept in output_dir/tokenizer."""
    from sparsepo_jax.data import tokenizers

    choice, kept = config.tokenizer, Path(config.output_dir) / "tokenizer"
    if choice.kind == "auto":
        if config.policy.path is None:
            return None
        directory = find_checkpoint(config.policy.path)
        return tokenizers.load_tokenizer(str(directory)) if has_tokenizer(directory) else None
    if choice.kind == "pretrained":
        return tokenizers.load_tokenizer(choice.path)
    if choice.kind == "bytes":
        return tokenizers.make_byte_tokenizer()
    if choice.kind == "reviews":
        from sparsepo_jax.data.reviews import reviews_vocabulary

        return tokenizers.make_word_tokenizer(reviews_vocabulary())
    if not kept.exists():
        sources, kind = (config.data.sft, "sft") if config.data.sft else (config.data.train, "pairs")
        tokenizer = tokenizers.train_bpe_tokenizer(
            _texts(sources, kind, config, choice.max_rows), choice.vocab_size
        )
        if jax.process_index() == 0 and not LOOKING.issuperset(config.stages):
            tokenizer.save_pretrained(kept)
        return tokenizer
    return tokenizers.load_tokenizer(str(kept))


def tokenizer_directory(config: schema.Config) -> Path | None:
    """Where the files of the run's tokenizer lie, if it came as files; None for one that was made, or that transformers fetches itself."""
    if config.tokenizer.kind == "auto" and config.policy.path is not None:
        return find_checkpoint(config.policy.path)
    if config.tokenizer.kind == "pretrained" and Path(config.tokenizer.path).is_dir():
        return Path(config.tokenizer.path)
    return None


def made_tokenizer(config: schema.Config, tokenizer: Any | None) -> Any | None:
    """The run's tokenizer, if it was made for this model: then each of its tokens needs a row there. One that came as files may have more."""
    return None if config.tokenizer.kind in ("auto", "pretrained") else tokenizer


def _texts(sources: list, kind: str, config: schema.Config, max_rows: int | None):
    """All text in the rows of some sources, for a tokenizer to learn from."""
    from sparsepo_jax.data.load import read_texts

    for number, text in enumerate(
        read_texts([_source(source, kind) for source in sources], on_bad_row=config.data.on_bad_row)
    ):
        if max_rows is not None and number >= max_rows:
            return
        yield text


def _source(source: Any, kind: str) -> Any:
    """A configured source as the data room takes it."""
    from sparsepo_jax.data.sources import FileRows, GeneratedRows

    if source.kind == "reviews":
        from sparsepo_jax.data.reviews import make_labelled_reviews, make_review_pairs, make_review_texts

        make = {"sft": make_review_texts, "labelled": make_labelled_reviews}.get(kind, make_review_pairs)
        return GeneratedRows(
            name=f"reviews(seed={source.seed})", rows=make(source.rows, source.seed), weight=source.weight
        )
    return FileRows(
        path=source.path,
        split=source.split,
        subset=source.subset,
        columns=source.columns,
        weight=source.weight,
    )


def load_data(
    config: schema.Config,
    kind: str,
    sources: list,
    name: str,
    tokenizer: Any | None,
    spec: DecoderSpec | None,
) -> TokenTable:
    """The tokenised rows of `sources` ("sft", "pairs" or "prompts"); with on_bad_row skip the others are listed in output_dir/bad_rows_NAME.jsonl."""
    from sparsepo_jax.data.load import load_table
    from sparsepo_jax.data.sources import FirstWords

    data = config.data
    max_length, max_prompt_length = length_limits(config, spec)
    opened = [_source(source, kind) for source in sources]
    if kind == "prompts" and data.prompt_words is not None:
        opened = [FirstWords(source, "prompt", data.prompt_words) for source in opened]
    return load_table(
        opened,
        kind=kind,
        tokenizer=tokenizer,
        vocab_size=None if spec is None else spec.vocab_size,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        separator=data.separator,
        template=data.template,
        template_arguments=data.template_arguments,
        add_bos=data.add_bos,
        add_eos=data.add_eos,
        on_bad_row=data.on_bad_row,
        bad_rows_path=Path(config.output_dir) / f"bad_rows_{name}.jsonl",
        cache_dir=data.cache_dir,
        template_date=template_date(config, tokenizer),
        name=f"data.{name}",
        say=_say,
        positions=None if spec is None else spec.max_positions,
    )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def template_date(config: schema.Config, tokenizer: Any | None) -> str | None:
    """The day that the chat template is told, if it asks: data.template_date, else the day that this run, or that whose sft it takes, has kept,
    else today, which is kept from now on. None: it does not ask."""
    from sparsepo_jax.data.templates import reads_clock

    data = config.data
    if not reads_clock(tokenizer, data.template, data.template_arguments) or data.template_date is not None:
        return data.template_date
    for directory in filter(None, (config.output_dir, config.sft.taken_from)):
        kept = Path(directory) / "template_date.json"
        if kept.exists():
            return _kept_date(kept)
    day = datetime.date.today().isoformat()
    if jax.process_index() == 0 and not LOOKING.issuperset(config.stages):
        write_json(Path(config.output_dir) / "template_date.json", {"template_date": day})
    return day


def _kept_date(path: Path) -> str:
    try:
        return datetime.date.fromisoformat(json.loads(path.read_text())["template_date"]).isoformat()
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path}: expected the day that the run's chat template was told, found something else; set data.template_date"
        ) from None


def length_limits(config: schema.Config, spec: DecoderSpec | None) -> tuple[int, int]:
    """(max_length, max_prompt_length), tokens: by default the smaller of 2048 and the model's positions, and half of it."""
    positions = 2048 if spec is None else spec.max_positions
    longest = config.data.max_length or min(2048, positions)
    if longest > positions:
        raise UserError(
            f"data.max_length: {longest} tokens do not fit the model's {positions} positions; set it to {positions} or less"
        )
    prompt = config.data.max_prompt_length or longest // 2
    if prompt >= longest:
        raise UserError(
            f"data.max_prompt_length: {prompt} leaves no room for a response within {longest} tokens; set it lower"
        )
    return longest, prompt


def is_shared(config: schema.Config) -> bool:
    """Whether the prompt runs once for all responses of a row."""
    return config.compute.layout == "shared"


def make_training_plan(config: schema.Config, stage: str, table: TokenTable, mesh: Mesh) -> BatchPlan:
    """The plan of a training stage: one row of tokens for each shard and micro-step."""
    training = getattr(config, stage)
    sizes = sizes_of(table.prompt_lengths_N, table.response_lengths_NP, shared=is_shared(config))
    return BatchPlan(
        sizes,
        table.row_weight_N,
        batch_size=training.batch_size,
        rows=training.accumulation * pair_shards(mesh),
        strata=config.data.strata,
        buckets=config.data.buckets,
        seed=config.seed,
        shuffle=True,
        epochs=training.epochs or 1.0,
        steps=training.steps,
        shape_steps=SHAPE_STEPS,
    )


def make_reading_plan(
    config: schema.Config,
    table: TokenTable,
    batch_size: int,
    mesh: Mesh,
    *,
    response_length: int | None = None,
) -> BatchPlan:
    """Every row once, one row of tokens for each shard. response_length: leave room for so many tokens in each response, whatever it has."""
    lengths_NP = (
        table.response_lengths_NP
        if response_length is None
        else np.full_like(table.response_lengths_NP, response_length)
    )
    sizes = sizes_of(table.prompt_lengths_N, lengths_NP, shared=is_shared(config))
    return BatchPlan(
        sizes,
        None,
        batch_size=batch_size,
        rows=pair_shards(mesh),
        strata=config.data.strata,
        buckets=config.data.buckets,
        seed=config.seed,
        shuffle=False,
        shape_steps=SHAPE_STEPS,
    )


def abstract_batches(
    config: schema.Config,
    table: TokenTable,
    plan: BatchPlan,
    mesh: Mesh,
    *,
    micro_steps: int,
    with_weights: bool,
    response_length: int | None = None,
) -> list[Any]:
    """Shapes and shardings of a batch of each shape that the plan has."""
    laid = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))  # noqa: E731
    return [
        jax.tree.map(
            laid,
            empty_batch(
                table,
                plan,
                shape,
                micro_steps=micro_steps,
                shared=is_shared(config),
                with_weights=with_weights,
                response_length=response_length,
            ),
        )
        for shape in plan.shapes
    ]


# ---------------------------------------------------------------- models


def checkpoint_config(chosen: schema.Policy | schema.Reference, setting: str) -> dict[str, Any]:
    """config.json of policy.path or reference.path. UserError: what lies there is no model, or more than one."""
    directory = find_checkpoint(chosen.path)
    if chosen.adapter is None and (problem := inner_adapter_problem(directory, setting)) is not None:
        raise UserError(f"{setting}.path: {chosen.path}: {problem}")
    return read_config(directory, setting)


def policy_config(config: schema.Config, tokenizer: Any | None) -> dict[str, Any]:
    """The policy's config.json: the checkpoint's, or the inline one with the tokenizer's vocabulary and special tokens."""
    if config.policy.path is not None:
        found = checkpoint_config(config.policy, "policy")
        if config.policy.config is not None:
            _same_shape(
                read_spec(config.policy.config, "policy.config", None),
                read_spec(found, config.policy.path, None),
                config.policy.path,
            )
        return found
    found = dict(config.policy.config or {})
    if tokenizer is not None:
        found.setdefault("vocab_size", len(tokenizer))
        found.setdefault("bos_token_id", tokenizer.bos_token_id)
        found.setdefault("eos_token_id", tokenizer.eos_token_id)
    elif "vocab_size" not in found:
        raise UserError("policy.config.vocab_size: needed where there is no tokenizer to take it from")
    return found


def _same_shape(wanted: DecoderSpec, found: DecoderSpec, path: str) -> None:
    """UserError that names what differs. How fresh weights would be drawn is no part of a shape."""
    differing = [
        field.name
        for field in dataclasses.fields(DecoderSpec)
        if field.name != "init_std" and getattr(wanted, field.name) != getattr(found, field.name)
    ]
    if differing:
        said = ", ".join(
            f"{name} {getattr(found, name)} (policy.config: {getattr(wanted, name)})" for name in differing
        )
        raise UserError(
            f"policy.path: {path} has another shape than policy.config: {said}; mend policy.config, or leave it out"
        )


def read_generation(config: schema.Config) -> dict[str, Any] | None:
    """The policy's generation_config.json; None if there is none."""
    return None if config.policy.path is None else read_generation_config(find_checkpoint(config.policy.path))


def read_spec(hf_config: dict[str, Any], where: str, made: Any | None) -> DecoderSpec:
    """The decoder's spec; UserError if we cannot run it, or if a tokenizer that was made for it knows more tokens than it has rows."""
    try:
        spec = spec_from_hf(hf_config)
    except SpecError as error:
        raise UserError(f"{where}: {error}") from error
    if made is not None and len(made) > spec.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {len(made)} tokens, the model only {spec.vocab_size} rows; give it as many, "
            "or make a smaller tokenizer"
        )
    return spec


def compute_dtype(config: schema.Config, mesh: Mesh) -> jnp.dtype:
    return _dtype_on(config, platform_of(mesh))


def _dtype_on(config: schema.Config, platform: str) -> jnp.dtype:
    if config.compute.dtype == "auto":
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.compute.dtype)


def set_precision(config: schema.Config, platform: str) -> None:
    """Sets how JAX multiplies float32 arrays: GPUs and TPUs round them first unless they are told not to.

    Args:
        platform: cpu, gpu or tpu, for which programs will be compiled.
    """
    asked = config.compute.precision
    if asked == "auto" and _dtype_on(config, platform) == jnp.float32:
        asked = "float32"
    chosen = {"auto": None, "float32": "highest", "tf32": "tensorfloat32"}[asked]
    jax.config.update("jax_default_matmul_precision", chosen)


def describe_computing(config: schema.Config, mesh: Mesh) -> str:
    """The devices, the type of activations and how float32 arrays are multiplied, for a person."""
    machine = machine_facts(config, mesh)
    return f"{machine['devices']}, activations {machine['activations']}, products of float32 arrays: {machine['products']}"


def machine_facts(config: schema.Config, mesh: Mesh) -> dict[str, Any]:
    """What the run is computed on and how exactly, as the report's table has it."""
    platform, device = platform_of(mesh), mesh.devices.flat[0]
    name = "" if device.device_kind.lower() == platform else f" {device.device_kind}"
    products = {None: "as the device does (rounded)", "highest": "float32", "tensorfloat32": "TF32"}
    return {
        "devices": f"{mesh.devices.size} x {platform}{name}",
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "activations": str(compute_dtype(config, mesh)),
        "products": "float32" if platform == "cpu" else products[jax.config.jax_default_matmul_precision],
    }


@functools.cache
def decoder_graph(
    spec: DecoderSpec, dtype: jnp.dtype, *, remat: bool, lora: Lora | None = None
) -> nnx.GraphDef:
    return split_module(
        nnx.eval_shape(lambda: Decoder(spec, dtype=dtype, remat=remat, lora=lora, rngs=nnx.Rngs(0)))
    )[0]


def weight_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    abstract = split_module(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))))[1]
    return {path: leaf.shape for path, leaf in abstract.items()}


def add_adapter(weights: Weights, adapter: Adapter, mesh: Mesh) -> Weights:
    """The weights with an adapter merged into them, tensor by tensor. Takes their memory."""
    shardings = weight_shardings({path: x.shape for path, x in weights.items()}, mesh)
    for (path, layer, value), added in adapter.merge_parts():
        there = weights[path]
        if value.shape != (there.shape if layer is None else there.shape[1:]):
            raise UserError(
                f"{adapter.where}: {adapter.path}: a tensor of {path} has shape {list(value.shape)}, expected {list(there.shape)[layer is not None :]}"
            )
        if layer is not None:
            weights[path] = _put_into(shardings[path], added)(there, value, layer).block_until_ready()
        else:
            weights[path] = there + lay(value, shardings[path]) if added else lay(value, shardings[path])
    return weights


def adapter_weights(adapter: Adapter, mesh: Mesh) -> Weights:
    """An adapter as weights of its own, float32."""
    arrays = adapter.weights()
    shardings = weight_shardings({path: x.shape for path, x in arrays.items()}, mesh)
    return {path: lay(x, shardings[path]) for path, x in arrays.items()}


def with_adapter_settings(config: schema.Config) -> schema.Config:
    """The config with po.lora as policy.adapter has it, where po goes on training that."""
    if not trains_adapter_further(config):
        return config
    return settle_lora(
        config, read_spec(checkpoint_config(config.policy, "policy"), config.policy.path, None)
    )


def as_lora(shape: LoraShape) -> Lora:
    return Lora(shape.targets, shape.rank, shape.alpha, 0.0, shape.rslora)


def make_reference_lora(config: schema.Config, spec: DecoderSpec, lora: Lora | None) -> Lora | None:
    """The adapters that the reference keeps on the base that it shares with an adapted policy; None: it is the base alone, or shares nothing.

    lora: the policy's.
    """
    if lora is None:
        return None
    if config.reference.adapter is not None:
        return as_lora(Adapter(config.reference.adapter, spec, "reference.adapter").lora)
    return lora if trains_adapter_further(config) and config.reference.path is None else None


def make_lora(training: schema.TextTraining, name: str, spec: DecoderSpec) -> Lora | None:
    """The adapters of a stage, or None. UserError: a pattern that fits no projection."""
    chosen = training.lora
    if chosen is None:
        return None
    try:
        targets = choose_projections(tuple(chosen.targets), spec)
    except SpecError as error:
        raise UserError(f"{name}.lora.targets: {error}") from error
    return Lora(targets, chosen.rank, chosen.alpha, chosen.dropout, chosen.rslora)


def initial_adapters(spec: DecoderSpec, lora: Lora, seed: int, mesh: Mesh) -> Weights:
    """A drawn, B zero: the adapted policy is the base."""
    return _draw_adapters(spec, lora, mesh)(seed)


@functools.cache
def _draw_adapters(spec: DecoderSpec, lora: Lora, mesh: Mesh):
    return jax.jit(
        lambda seed: _adapters(spec, lora, seed),
        out_shardings=weight_shardings(adapter_shapes(spec, lora), mesh),
    )


def adapter_shapes(spec: DecoderSpec, lora: Lora) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in jax.eval_shape(lambda: _adapters(spec, lora, 0)).items()}


def _adapters(spec: DecoderSpec, lora: Lora, seed: int) -> Weights:
    _, weights = split_module(
        Decoder(spec, lora=lora, rngs=nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 2)))
    )
    return {path: x for path, x in weights.items() if ".lora." in path}


def load_weights(path: str, spec: DecoderSpec, mesh: Mesh) -> Weights:
    """The weights of a Hugging Face checkpoint, on the mesh: tensor by tensor, so that the host holds little but what lies on its devices."""
    shapes = weight_shapes(spec)
    shardings = weight_shardings(shapes, mesh)
    weights: Weights = {}
    for name, layer, value in stream_hf(spec, SafeTensors(find_checkpoint(path)), shapes, path):
        if layer is None:
            weights[name] = lay(value, shardings[name])
            continue
        if name not in weights:
            weights[name] = jnp.zeros(shapes[name], jnp.float32, device=shardings[name])
        # Waited for: else tensors that are read faster than they are stored pile up.
        weights[name] = _put_into(shardings[name], False)(weights[name], value, layer).block_until_ready()
        del value
    return weights


@functools.cache
def _put_into(sharding: NamedSharding, added: bool):
    """put(whole, part, layer): the part takes the layer's place, or is added to what is there."""

    def put(whole: jax.Array, part: jax.Array, layer: int) -> jax.Array:
        part = part + jax.lax.dynamic_index_in_dim(whole, layer, 0, keepdims=False) if added else part
        return jax.lax.dynamic_update_index_in_dim(whole, part, layer, 0)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def random_weights(spec: DecoderSpec, seed: int, mesh: Mesh) -> Weights:
    return _draw_weights(spec, mesh)(seed)


@functools.cache
def _draw_weights(spec: DecoderSpec, mesh: Mesh):
    make = lambda seed: split_module(Decoder(spec, rngs=nnx.Rngs(jax.random.key(seed))))[1]  # noqa: E731
    return jax.jit(make, out_shardings=weight_shardings(weight_shapes(spec), mesh))


def same_tokenizer(
    policy_path: str | None, reference_path: str, policy: DecoderSpec, reference: DecoderSpec
) -> None:
    """UserError unless both models speak the same vocabulary; tokenizers are compared where both checkpoints bring one, by the tokens that the models
    have rows for."""
    name = policy_path or "policy.config"
    if policy.vocab_size != reference.vocab_size:
        raise UserError(
            f"reference.path: {reference_path} has a vocabulary of {reference.vocab_size}, the policy ({name}) one of "
            f"{policy.vocab_size}; log-ratios need the same one"
        )
    directories = [find_checkpoint(path) for path in (policy_path, reference_path) if path is not None]
    if len(directories) == 2 and all(has_tokenizer(directory) for directory in directories):
        from sparsepo_jax.data.tokenizers import load_tokenizer

        ours, theirs = (
            _tokens_with_a_row(load_tokenizer(str(directory)), policy.vocab_size) for directory in directories
        )
        if ours != theirs:
            token = next(
                token for token in sorted(ours.keys() | theirs.keys()) if ours.get(token) != theirs.get(token)
            )
            raise UserError(
                f"reference.path: the tokenizers of {name} and {reference_path} differ (token {token!r} is "
                f"{ours.get(token)} and {theirs.get(token)}); log-ratios need the same one"
            )


def _tokens_with_a_row(tokenizer: Any, rows: int) -> dict[str, int]:
    return {token: number for token, number in tokenizer.get_vocab().items() if number < rows}


# ---------------------------------------------------------------- masks and objective

_LOSSES = {
    "sparsepo": token_weighted.sparsepo_loss,
    "mapo": token_weighted.sparsepo_loss,
    "dpo": token_weighted.dpo_loss,
    "tdpo1": token_weighted.tdpo1_loss,
    "tdpo2": token_weighted.tdpo2_loss,
    "d2po": token_weighted.d2po_loss,
    "sampo": token_weighted.sampo_loss,
    "ldpo": token_weighted.ldpo_loss,
    "cdpo": sequence.cdpo_loss,
    "robust": sequence.robust_loss,
    "ipo": sequence.ipo_loss,
    "hinge": sequence.hinge_loss,
    "simpo": sequence.simpo_loss,
    "orpo": sequence.orpo_loss,
    "cpo": sequence.cpo_loss,
    "dpop": sequence.dpop_loss,
    "rdpo": sequence.rdpo_loss,
    "confpo": sequence.confpo_loss,
    "caldpo": sequence.caldpo_loss,
}


def mask_config(config: schema.Config) -> Any | None:
    """The configured mask, or None for objectives without one."""
    return getattr(config.objective, "mask", None)


def make_mask_source(config: schema.Config, spec: DecoderSpec) -> MaskSource:
    """spec: the reference's, whose states the masks read."""
    mask = mask_config(config)
    if mask is None:
        return fixed_source("ones", on="both", normalised=False)
    placing = {"on": mask.on, "normalised": mask.normalise}
    if mask.kind == "learned":
        return learned_source(
            net=mask.net,
            sharing=mask.sharing,
            num_layers=spec.num_layers,
            width=spec.width,
            norm_eps=spec.norm_eps,
            init=mask.init,
            layer_activation=mask.layer_activation,
            mixer_activation=mask.mixer_activation,
            dropout=mask.dropout,
            **placing,
        )
    if mask.kind == "activation":
        if (
            "logits" in mask.groups and spec.logit_softcap is not None
        ):  # the mean of capped logits would need them all
            raise UserError(
                f"objective.mask.groups: logits is not supported for {spec.family}, whose logits are capped; leave it out"
            )
        try:
            points = choose_points(spec.family, tuple(mask.groups), mask.official)
        except ValueError as error:
            raise UserError(f"objective.mask.groups: {error}") from error
        return activation_source(points=points, mapping=mask.mapping, **placing)
    return fixed_source(
        mask.kind, decay=getattr(mask, "decay", 1.0), model=getattr(mask, "model", "reference"), **placing
    )


def make_objective(config: schema.Config, source: MaskSource):
    """objective(stats, masks, key_B) -> LossOutput, its settings bound: a pytree of them."""
    objective = config.objective
    settings = objective.model_dump(exclude={"kind", "mask", "nll_weight"})
    if objective.kind == "sparsepo":
        settings["shared"] = source.shared
    return sequence.with_nll(Partial(_LOSSES[objective.kind], **settings), objective.nll_weight)


def choose_attention(config: schema.Config, specs: tuple[DecoderSpec, ...], mesh: Mesh) -> AttentionKernel:
    """The kernel asked for, or the device's own. UserError if it cannot do what is asked of it."""
    asked, platform = config.compute.attention, platform_of(mesh)
    capped, narrow = (
        any(spec.attn_softcap is not None for spec in specs),
        compute_dtype(config, mesh) == jnp.bfloat16,
    )
    if asked == "auto":
        return {"cpu": "blocks", "tpu": "splash"}.get(platform, "xla")
    if asked == "cudnn" and (capped or not narrow):
        why = "caps its scores" if capped else "computes in float32"
        raise UserError(
            f"compute.attention: cudnn does not fit a model that {why}; take auto or xla"
            + ("" if capped else ", or compute.dtype=bfloat16")
        )
    if asked == "cudnn" and platform != "gpu":
        raise UserError(f"compute.attention: cudnn runs on GPU, and these devices are {platform}; take auto")
    if asked == "splash" and platform != "tpu":
        raise UserError(f"compute.attention: splash runs on TPU, and these devices are {platform}; take auto")
    return asked


def make_problem(
    config: schema.Config,
    policy: DecoderSpec,
    reference: DecoderSpec,
    mesh: Mesh,
    lora: Lora | None = None,
    reference_lora: Lora | None = None,
) -> Problem:
    dtype, source, head = (
        compute_dtype(config, mesh),
        make_mask_source(config, reference),
        config.compute.head,
    )
    return Problem(
        policy_graph=decoder_graph(policy, dtype, remat=config.compute.remat, lora=lora),
        reference_graph=decoder_graph(reference, dtype, remat=False, lora=reference_lora),
        mask_source=source,
        objective=make_objective(config, source),
        beta=getattr(config.objective, "beta", 1.0),
        seed=config.seed,
        attention=choose_attention(config, (policy, reference), mesh),
        constrain=make_constrain(mesh),
        spread=make_spread(mesh),
        head_blocks=HeadBlocks(
            head.tokens, head.vocabulary, mesh.shape["tensor"], head.keep_logits, *make_place_head(mesh)
        ),
        adapted=lora is not None,
    )


def mask_tensors(path: str | None) -> dict[str, Any]:
    """The mask nets stored with a checkpoint: in masks.safetensors (ours) or beside the model's tensors (the official code's); {} if none."""
    if path is None:
        return {}
    directory = find_checkpoint(path)
    own = directory / "masks.safetensors"
    if own.exists():
        from safetensors.numpy import load_file

        return load_file(own)
    tensors = SafeTensors(directory)
    return dict(tensors.read([name for name in tensors.shapes() if is_mask_tensor(name)]))


def policy_mask_tensors(config: schema.Config) -> dict[str, Any]:
    """Those that lie beside policy.adapter, else those of policy.path."""
    if config.policy.adapter is not None:
        beside = find_checkpoint(config.policy.adapter) / "masks.safetensors"
        if beside.exists():
            from safetensors.numpy import load_file

            return load_file(beside)
    return mask_tensors(config.policy.path)


def initial_masks(config: schema.Config, source: MaskSource, mesh: Mesh) -> Weights:
    """Mask weights from policy.adapter or policy.path if they have any, else as configured; {} for masks that are not trained."""
    fresh = source.init(nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), 1)))
    if fresh and (tensors := policy_mask_tensors(config)):
        fresh = _fitting(config, tensors, fresh)
    return {path: lay(value, replicated(mesh)) for path, value in fresh.items()}


def stored_masks(config: schema.Config, source: MaskSource, mesh: Mesh) -> Weights:
    """Mask weights from policy.path; UserError if there are none to be had."""
    shapes = source.init(nnx.Rngs(0))
    if not shapes:
        return {}
    tensors = policy_mask_tensors(config)
    if not tensors:
        raise UserError(
            f"policy.path: {config.policy.path} holds no mask nets (masks.safetensors, or common_mask.* / rw_mask.* / kl_mask.* beside "
            "the model's tensors); give a checkpoint that has them, run the stage po first, or choose another objective.mask.kind"
        )
    return {path: lay(value, replicated(mesh)) for path, value in _fitting(config, tensors, shapes).items()}


def _fitting(config: schema.Config, tensors: dict[str, Any], like: Weights) -> Weights:
    try:
        return masks_from_tensors(
            config.objective.mask.net, tensors, {path: value.shape for path, value in like.items()}
        )
    except ValueError as error:
        raise UserError(
            f"policy.path: the stored masks do not fit objective.mask (net {config.objective.mask.net}, "
            f"sharing {config.objective.mask.sharing}, on {config.objective.mask.on}): {error}"
        ) from error


# ---------------------------------------------------------------- training, sampling, scoring


def abstract(
    policy: dict[str, tuple[int, ...]],
    masks: MaskSource | None,
    mesh: Mesh,
    make: Callable[[Any], Any] = lambda weights: weights,
) -> Any:
    """Shapes and shardings of what `make` makes of {"policy", "masks"}."""

    def whole():
        return make(
            {
                "policy": {path: jnp.zeros(shape) for path, shape in policy.items()},
                "masks": {} if masks is None else masks.init(nnx.Rngs(0)),
            }
        )

    shapes = jax.eval_shape(whole)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state_shardings(shapes, mesh)
    )


def start_shapes(spec: DecoderSpec, lora: Lora | None) -> dict[str, tuple[int, ...]]:
    """Of the policy as po begins it. lora: the adapters that it begins with, None for none."""
    return weight_shapes(spec) | ({} if lora is None else adapter_shapes(spec, lora))


def trained_shapes(spec: DecoderSpec, lora: Lora | None) -> dict[str, tuple[int, ...]]:
    """Of the policy's weights that are trained: all, or the adapters'."""
    return weight_shapes(spec) if lora is None else adapter_shapes(spec, lora)


def check_sharding(
    config: schema.Config, stage: str, policy: DecoderSpec, reference: DecoderSpec, mesh: Mesh
) -> None:
    """UserError if the mesh leaves too much of policy or reference replicated."""
    lora = make_lora(getattr(config, stage), stage, policy)
    check_sharded(weight_shapes(policy) | trained_shapes(policy, lora), mesh)
    if reference != policy:
        check_sharded(weight_shapes(reference), mesh)


def held_base(policy: Weights, held: str, mesh: Mesh) -> Weights:
    """The policy as the base of adapters is kept in memory, cut over the mesh as it was. Adapters in it stay as they are."""
    base = hold_base(policy, held)
    return jax.device_put(base, state_shardings(base, mesh))


def abstract_frozen(
    config: schema.Config,
    stage: str,
    problem: Problem,
    policy: DecoderSpec,
    reference: DecoderSpec,
    mesh: Mesh,
) -> Any | None:
    """Shapes and shardings of what a stage's step reads beside the state: the reference, or the base of adapters; None: nothing."""
    lora = getattr(config, stage).lora
    if lora is not None:
        reference_lora = (
            make_reference_lora(config, policy, make_lora(getattr(config, stage), stage, policy))
            if stage == "po"
            else None
        )
        return abstract(
            start_shapes(policy, reference_lora),
            None,
            mesh,
            lambda weights: hold_base(weights["policy"], lora.base),
        )
    if stage == "sft" or problem.cached:
        return None
    return abstract(weight_shapes(reference), None, mesh, lambda weights: weights["policy"])


def brings_weights(config: schema.Config) -> bool:
    """Whether the training pairs come with token weights: those given with the data, or activation masks that were computed before."""
    mask = mask_config(config)
    return mask is not None and (
        mask.kind == "given" or (config.reference.cached and mask.kind == "activation")
    )


def ends_of(
    hf_config: dict[str, Any], generation: dict[str, Any] | None, tokenizer: Any | None
) -> tuple[int, ...]:
    """Ids of the tokens that end a response: the model's, and the tokenizer's EOS, which ends what it learns from."""
    return tuple(
        sorted({*end_tokens(hf_config, generation), getattr(tokenizer, "eos_token_id", None)} - {None})
    )


def make_sampling(config: schema.Config, ends: tuple[int, ...]) -> Sampling:
    """As config.generation says."""
    chosen = config.generation
    return Sampling(
        chosen.max_new_tokens,
        chosen.temperature,
        chosen.top_k,
        chosen.top_p,
        chosen.samples,
        config.seed,
        ends,
        tuple(chosen.stop),
    )


def exported_configs(
    hf_config: dict[str, Any],
    generation: dict[str, Any] | None,
    tokenizer: Any | None,
    spec: DecoderSpec,
    *,
    from_scratch: bool,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(config.json, generation_config.json or None for none) of the export: as they came, and the tokenizer's EOS ends answers, too. A model from
    scratch says in both which its special tokens are."""
    if from_scratch:
        generation = {
            name: hf_config[name]
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            if hf_config.get(name) is not None
        }
    eos = getattr(tokenizer, "eos_token_id", None)
    eos = None if eos is None or eos >= spec.vocab_size else eos
    return with_end_token(hf_config, eos), None if generation is None else with_end_token(generation, eos)


def checkpoint_dtype(path: str) -> str:
    """The type of the weights in a checkpoint: float32, float16 or bfloat16."""
    return SafeTensors(find_checkpoint(path)).dtype()


def make_scorer(config: schema.Config, say: Callable[[str], None]) -> Scorer:
    """As config.scorer says. A classifier is trained once and kept in output_dir/classifier."""
    from sparsepo_jax.scoring import classifier as classifiers
    from sparsepo_jax.scoring import scorers

    chosen = config.scorer
    if chosen.kind == "hf":
        return scorers.hf_scorer(
            chosen.path, label=chosen.label, batch_size=chosen.batch_size, device=chosen.device
        )
    if chosen.kind == "function":
        return scorers.function_scorer(chosen.function)
    if chosen.kind == "tests":
        return scorers.unit_test_scorer(
            time_s=chosen.time_s, memory_mb=chosen.memory_mb, workers=chosen.workers
        )
    kept = Path(chosen.path or Path(config.output_dir) / "classifier")
    if chosen.path is None and not kept.exists():
        from sparsepo_jax.data.labelled import read_labelled

        read = lambda sources: read_labelled(
            [_source(source, "labelled") for source in sources],
            chosen.positive,
            on_bad_row=config.data.on_bad_row,
        )  # noqa: E731
        rows, test = read(chosen.train), read(chosen.test) if chosen.test else None
        classifier = classifiers.train_classifier(rows, max_features=chosen.max_features, l2=chosen.l2)
        about = {
            "rows": len(rows.texts),
            "accuracy": classifier.accuracy(rows),
            "test_accuracy": None if test is None else classifier.accuracy(test),
        }
        classifiers.save_classifier(kept, classifier, about)
    classifier, about = classifiers.load_classifier(kept)
    on_test = (
        "" if about["test_accuracy"] is None else f", {100 * about['test_accuracy']:.1f} % on the test rows"
    )
    say(
        f"the classifier of {about['rows']} rows is right on {100 * about['accuracy']:.1f} % of them{on_test}"
    )
    return scorers.classifier_scorer(classifier)


def reference_key(
    config: schema.Config, spec: DecoderSpec, reference: Weights, table: TokenTable
) -> dict[str, Any]:
    """What the reference's numbers depend on: its weights and shape, the tokens, the truncation; the mask that is read off its activations."""
    mask, (max_length, max_prompt_length) = mask_config(config), length_limits(config, spec)
    reads = mask is not None and mask.kind == "activation"
    return {
        "reference": weights_digest(reference),
        "shape": repr(spec),
        "tokens": table.digest(),
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "mask": mask.model_dump(mode="json") if reads else None,
    }


def reference_cache_dir(config: schema.Config) -> Path:
    return Path(config.reference.cache_dir) if config.reference.cache_dir else cache_directory("reference")


def check_room(name: str, new_tokens: int, prompts: TokenTable, spec: DecoderSpec) -> None:
    """UserError if a response of so many tokens may run past the model's positions."""
    longest = int(prompts.prompt_lengths_N.max())
    if longest + new_tokens > spec.max_positions:
        raise UserError(
            f"{name}: {new_tokens} tokens after the longest prompt ({longest}) do not fit the model's {spec.max_positions} positions; "
            f"take {max(spec.max_positions - longest, 0)} or fewer, or a smaller data.max_prompt_length"
        )


def check_batch(name: str, batch_size: int, micro_steps: int, mesh: Mesh) -> None:
    """UserError unless a micro-step's pairs can be cut evenly over the mesh."""
    shards = pair_shards(mesh)
    if batch_size % (micro_steps * shards):
        raise UserError(
            f"{name}: {batch_size} rows in {micro_steps} micro-step(s) cannot be cut over {shards} shards (data x fsdp); "
            f"take a multiple of {micro_steps * shards}"
        )


def stage_facts(
    config: schema.Config, stage: str, table: TokenTable, spec: DecoderSpec, steps: int, mesh: Mesh
) -> dict[str, Any]:
    """What a training stage works on: for the doctor and the report."""
    lora, limits = make_lora(getattr(config, stage), stage, spec), length_limits(config, spec)
    count = lambda shapes: sum(math.prod(shape) for shape in shapes.values())  # noqa: E731
    return {
        "steps": steps,
        "data": table_facts(table),
        "limits": dict(zip(("max_length", "max_prompt_length"), limits, strict=True)),
        "parameters": count(weight_shapes(spec)),
        "trained_parameters": count(trained_shapes(spec, lora)),
        "machine": machine_facts(config, mesh),
    }


def put_on(mesh: Mesh):
    return lambda batch: put_batch(batch, mesh)


def start_jax(config: schema.Config) -> None:
    """Before any device is touched. Compiled programs are kept on disk, so that a second start is quick."""
    join_processes(config.compute.distributed)
    set_precision(config, jax.default_backend())
    # On CPU a program that is read back has lost the order of its collectives (jaxlib 0.10.2), and processes take one for another.
    jax.config.update(
        "jax_enable_compilation_cache", jax.process_count() == 1 or jax.default_backend() != "cpu"
    )
    jax.config.update(
        "jax_compilation_cache_dir", config.compute.compile_cache or str(cache_directory("xla"))
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
