"""Readers of Qwen3-Next's and Qwen3.5's config.json: most layers are gated delta nets. No JAX here."""

from dataclasses import replace

from sparsepo_jax.models.config_fields import SpecError, needed, shown
from sparsepo_jax.models.decoder_spec import BlockShape, DecoderSpec, LayerKind
from sparsepo_jax.models.delta_shape import DeltaShape
from sparsepo_jax.models.field_values import FamilyFields, flag
from sparsepo_jax.models.llama_readers import layered, pattern, with_attention_bias
from sparsepo_jax.models.mixture_readers import with_experts, without_some_experts

_DELTA, _ATTENTION = "linear_attention", "full_attention"


def read_qwen3_5(config: FamilyFields) -> DecoderSpec:
    """Qwen3.5's dense text model.

    Args:
        config: the fields that the family reads.

    Raises:
        SpecError: layers of other kinds, heads that do not fit, or another gate.
    """
    return _with_deltas(config, "qwen3_5_text")


def read_qwen3_5_moe(config: FamilyFields) -> DecoderSpec:
    """The text model of Qwen3.5's mixtures of experts.

    Args:
        config: the fields that the family reads.

    Raises:
        SpecError: as `read_qwen3_5`, or more experts for a token than there are.
    """
    return _with_experts(config, "qwen3_5_moe_text", normalised=True)


def read_qwen3_next(config: FamilyFields) -> DecoderSpec:
    """Qwen3-Next.

    Args:
        config: the fields that the family reads.

    Raises:
        SpecError: as `read_qwen3_5_moe`.
    """
    spec = _with_experts(config, "qwen3_next", normalised=flag(config, "norm_topk_prob", True))
    return without_some_experts(config, spec)


def _with_experts(config: FamilyFields, family: str, *, normalised: bool) -> DecoderSpec:
    spec = with_experts(
        config,
        _with_deltas(config, family),
        experts=needed(config, family, "num_experts"),
        width=needed(config, family, "moe_intermediate_size"),
        normalised=normalised,
    )
    assert spec.mixture is not None
    shared = needed(config, family, "shared_expert_intermediate_size")
    return replace(spec, mixture=replace(spec.mixture, shared=shared))


def _with_deltas(config: FamilyFields, family: str) -> DecoderSpec:
    gate = config.get("output_gate_type")
    if gate not in (None, "swish", "silu"):
        raise SpecError(f"{family}: output_gate_type: {shown(gate)} is not supported, only 'swish'")
    spec = with_attention_bias(config, family)
    spec = replace(spec, norm_offset=1.0, qk_norm="head", gated_attention=True)
    delta = LayerKind(None, shape=BlockShape(delta=_delta_shape(config, family)))
    kinds = {_DELTA: delta, _ATTENTION: spec.kinds[0]}
    return layered(spec, [kinds[name] for name in _layer_types(config, spec)])


def _layer_types(config: FamilyFields, spec: DecoderSpec) -> list[str]:
    every = needed(config, spec.family, "full_attention_interval", 4)
    usual = [_DELTA if is_delta else _ATTENTION for is_delta in pattern(spec, every)]
    types = config.get("layer_types") or usual
    if len(types) != spec.num_layers or not set(types) <= {_DELTA, _ATTENTION}:
        raise SpecError(
            f"{spec.family}: layer_types: expected {_DELTA} or {_ATTENTION} for each of {spec.num_layers} "
            "layers"
        )
    return types


def _delta_shape(config: FamilyFields, family: str) -> DeltaShape:
    shape = DeltaShape(
        key_heads=needed(config, family, "linear_num_key_heads", 16),
        value_heads=needed(config, family, "linear_num_value_heads", 32),
        key_dim=needed(config, family, "linear_key_head_dim", 128),
        value_dim=needed(config, family, "linear_value_head_dim", 128),
        reach=needed(config, family, "linear_conv_kernel_dim", 4),
    )
    if shape.value_heads % shape.key_heads:
        raise SpecError(
            f"{family}: {shape.value_heads} value heads (linear_num_value_heads) are no multiple of the "
            f"{shape.key_heads} key heads"
        )
    return shape
