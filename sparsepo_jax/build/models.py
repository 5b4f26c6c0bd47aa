"""The policy's and the reference's configurations, and their decoders' shapes."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from sparsepo_jax.config.schema.models import Policy, Reference
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.directory import (
    check_end_tokens,
    inner_adapter_problem,
    read_config,
    read_generation_config,
    with_end_token,
)
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors, find_checkpoint
from sparsepo_jax.models.weights import check_tensors
from sparsepo_jax.models.wrappers import from_scratch_problem
from sparsepo_jax.ops.remat import Remat


def checkpoint_config(chosen: Policy | Reference, setting: str) -> dict[str, Any]:
    """config.json of policy.path or reference.path. UserError: there is no model, or more than one."""
    directory = find_checkpoint(chosen.path)
    if chosen.adapter is None and (problem := inner_adapter_problem(directory, setting)) is not None:
        raise UserError(f"{setting}.path: {chosen.path}: {problem}")
    return read_config(directory, setting)


def policy_config(config: Config, tokenizer: Any | None) -> dict[str, Any]:
    """The policy's config.json.

    It is the checkpoint's, else policy.config with the vocabulary and special tokens of the tokenizer.
    """
    if config.policy.path is not None:
        hf_config = checkpoint_config(config.policy, "policy")
        check_end_tokens(find_checkpoint(config.policy.path))
        if config.policy.config is not None:
            wanted = read_spec(config.policy.config, "policy.config", None)
            _check_same_shape(wanted, read_spec(hf_config, config.policy.path, None), config.policy.path)
        return hf_config
    hf_config = dict(config.policy.config or {})
    if (problem := from_scratch_problem(hf_config)) is not None:
        raise UserError(f"policy.config: {problem}")
    if tokenizer is not None:
        hf_config.setdefault("vocab_size", len(tokenizer))
        hf_config.setdefault("bos_token_id", tokenizer.bos_token_id)
        hf_config.setdefault("eos_token_id", tokenizer.eos_token_id)
    elif "vocab_size" not in hf_config:
        raise UserError("policy.config.vocab_size: needed where there is no tokenizer to take it from")
    return hf_config


def _check_same_shape(wanted: DecoderSpec, actual: DecoderSpec, path: str) -> None:
    """UserError that names what differs. How new weights would be drawn, and what is around, is no shape."""
    names = [field.name for field in dataclasses.fields(DecoderSpec)]
    differences = [
        f"{name} {getattr(actual, name)} (policy.config: {getattr(wanted, name)})"
        for name in names
        if name not in ("init_std", "wrapping") and getattr(wanted, name) != getattr(actual, name)
    ]
    if differences:
        raise UserError(
            f"policy.path: {path} has another shape than policy.config: {', '.join(differences)}; "
            "mend policy.config, or leave it out"
        )


def read_generation(config: Config) -> dict[str, Any] | None:
    """The policy's generation_config.json; None if there is none."""
    return None if config.policy.path is None else read_generation_config(find_checkpoint(config.policy.path))


def read_spec(hf_config: dict[str, Any], where: str, made: Any | None) -> DecoderSpec:
    """A model's decoder.

    Args:
        hf_config: the model's config.json.
        where: what to name in an error.
        made: a tokenizer that was made for the model, see build.tokenizer.made_tokenizer.

    Raises:
        UserError: we cannot run it, or the tokenizer has more tokens than the model rows.
    """
    try:
        spec = spec_from_hf(hf_config)
    except SpecError as error:
        raise UserError(f"{where}: {error}") from error
    if made is not None and len(made) > spec.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {len(made)} tokens, the model only {spec.vocab_size} rows; give "
            "it as "
            "many, or make a smaller tokenizer"
        )
    return spec


def exported_configs(
    hf_config: dict[str, Any],
    generation: dict[str, Any] | None,
    tokenizer: Any | None,
    spec: DecoderSpec,
    *,
    from_scratch: bool,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(config.json, generation_config.json or None) of an export.

    They are as they came, with the tokenizer's EOS among the tokens that end answers. A model from scratch
    names its special tokens in both.
    """
    if from_scratch:
        generation = {
            name: hf_config[name]
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            if hf_config.get(name) is not None
        }
    eos = getattr(tokenizer, "eos_token_id", None)
    eos = None if eos is None or eos >= spec.vocab_size else eos
    return with_end_token(hf_config, eos), None if generation is None else with_end_token(generation, eos)


def check_weights(path: str, spec: DecoderSpec) -> str | None:
    """A line on tensors of a checkpoint that are left out; None: there are none.

    UserError if its weights cannot be read, or are those of another decoder.
    """
    return check_tensors(spec, SafeTensors(find_checkpoint(path)), path)


def checkpoint_dtype(path: str) -> str:
    """The type of the weights in a checkpoint: float32, float16 or bfloat16."""
    return SafeTensors(find_checkpoint(path)).dtype()


@functools.cache
def decoder_graph(
    spec: DecoderSpec,
    dtype: jnp.dtype,
    *,
    remat: Remat = "nothing",
    lora: Lora | None = None,
) -> nnx.GraphDef:
    def make() -> Decoder:
        return Decoder(spec, dtype=dtype, remat=remat, lora=lora, rngs=nnx.Rngs(0))

    return split_module(nnx.eval_shape(make))[0]


@functools.cache  # a run asks several times, and each time takes a trace of the whole model
def weight_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    abstract = split_module(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))))[1]
    return {path: leaf.shape for path, leaf in abstract.items()}
