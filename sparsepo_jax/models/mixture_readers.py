"""Readers of config.json: mixtures of experts. No JAX here."""

from dataclasses import replace

from sparsepo_jax.models.config_fields import SpecError, first, needed, shown
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.field_values import FamilyFields, flag
from sparsepo_jax.models.llama_readers import (
    layered,
    llama_like,
    needed_window,
    pattern,
    windows_of,
    with_attention_bias,
    with_windows,
)
from sparsepo_jax.models.mixture import Mixture


def read_qwen3_moe(config: FamilyFields) -> DecoderSpec:
    """Qwen 3's mixtures of experts.

    Args:
        config: the fields that the family reads.
    """
    family = "qwen3_moe"
    spec = with_experts(
        config,
        replace(with_attention_bias(config, family), qk_norm="head"),
        experts=needed(config, family, "num_local_experts"),
        width=needed(config, family, "moe_intermediate_size"),
        normalised=flag(config, "norm_topk_prob"),
    )
    return without_some_experts(config, spec)


def without_some_experts(config: FamilyFields, spec: DecoderSpec) -> DecoderSpec:
    """The decoder with plain MLPs in the layers that the config names.

    Args:
        config: the fields that the family reads.
        spec: the decoder, with experts in all layers.
    """
    family = spec.family
    plain = first(config.get("mlp_only_layers"), [])
    every = needed(config, family, "decoder_sparse_step", 1)
    kinds = [spec.kinds[kind] for kind in spec.kind_of_layer or (0,) * spec.num_layers]
    has_experts = [number not in plain and (number + 1) % every == 0 for number in range(spec.num_layers)]
    return layered(
        spec,
        [
            kind if has else replace(kind, shape=replace(kind.shape, without_experts=True))
            for kind, has in zip(kinds, has_experts, strict=True)
        ],
    )


def read_mixtral(config: FamilyFields) -> DecoderSpec:
    """Mixtral.

    Args:
        config: the fields that the family reads.
    """
    spec = llama_like(config, "mixtral")
    spec = layered(spec, with_windows(spec, [config.get("sliding_window")] * spec.num_layers))
    experts = needed(config, spec.family, "num_local_experts")
    return with_experts(config, spec, experts=experts, width=spec.mlp_width, normalised=True)


def read_olmoe(config: FamilyFields) -> DecoderSpec:
    """OLMoE.

    Args:
        config: the fields that the family reads.
    """
    spec = replace(with_attention_bias(config, "olmoe"), qk_norm="all")
    if config.get("sliding_window") is not None:  # some of transformers' attention kernels would read it
        raise SpecError(
            f"olmoe: sliding_window: {shown(config['sliding_window'])} is not supported, only null"
        )
    return with_experts(
        config,
        spec,
        experts=needed(config, spec.family, "num_experts"),
        width=spec.mlp_width,
        normalised=flag(config, "norm_topk_prob"),
    )


# How gpt-oss rotates where its config does not say so.
_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def read_gpt_oss(config: FamilyFields) -> DecoderSpec:
    """gpt-oss: sinks, windows in every other layer, biases everywhere.

    Args:
        config: the fields that the family reads.
    """
    family = "gpt_oss"
    if not config.get("rope_parameters") and not config.get("rope_scaling"):
        config = config | {"rope_parameters": _YARN}
    bias = flag(config, "attention_bias", True)
    spec = replace(llama_like(config, family), qkv_bias=bias, out_bias=bias, sinks=True)
    windows = windows_of(config, spec, needed_window(config, family, 128), pattern(spec, 2))
    spec = layered(spec, with_windows(spec, windows))
    experts = needed(config, family, "num_local_experts")
    spec = with_experts(config, spec, experts=experts, width=spec.mlp_width, normalised=True)
    alpha = float(needed(config, family, "swiglu_alpha", 1.702))
    limit = float(needed(config, family, "swiglu_limit", 7.0))
    assert spec.mixture is not None
    return replace(spec, mixture=replace(spec.mixture, bias=True, swiglu=(alpha, limit)))


def with_experts(
    config: FamilyFields, spec: DecoderSpec, *, experts: int, width: int, normalised: bool
) -> DecoderSpec:
    """The decoder with mixtures of experts as its MLPs.

    Args:
        config: the fields that the family reads.
        spec: the decoder.
        experts: see mixture.Mixture.
        width: see mixture.Mixture.
        normalised: see mixture.Mixture.

    Raises:
        SpecError: a token would be sent to more experts than there are.
    """
    chosen = needed(config, spec.family, "num_experts_per_tok")
    if chosen > experts:
        raise SpecError(f"{spec.family}: num_experts_per_tok: {chosen} of {experts} experts")
    return replace(spec, mixture=Mixture(experts, chosen, width, normalised))
