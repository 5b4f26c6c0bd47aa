"""Reader of Qwen3.5's config.json: dense models, most of whose layers are gated delta nets. No JAX here."""

from dataclasses import replace

from sparsepo_jax.models.config_fields import SpecError, needed, shown
from sparsepo_jax.models.decoder_spec import BlockShape, DecoderSpec, LayerKind
from sparsepo_jax.models.delta_shape import DeltaShape
from sparsepo_jax.models.field_values import FamilyFields
from sparsepo_jax.models.llama_readers import layered, pattern, with_attention_bias

_FAMILY = "qwen3_5_text"
_DELTA, _ATTENTION = "linear_attention", "full_attention"


def read_qwen3_5(config: FamilyFields) -> DecoderSpec:
    """Qwen3.5's dense text model.

    Args:
        config: the fields that the family reads.

    Raises:
        SpecError: layers of other kinds, heads that do not fit, or another gate.
    """
    gate = config.get("output_gate_type")
    if gate not in (None, "swish", "silu"):
        raise SpecError(f"{_FAMILY}: output_gate_type: {shown(gate)} is not supported, only 'swish'")
    spec = with_attention_bias(config, _FAMILY)
    spec = replace(spec, norm_offset=1.0, qk_norm="head", gated_attention=True)
    delta = LayerKind(None, shape=BlockShape(delta=_delta_shape(config)))
    kinds = {_DELTA: delta, _ATTENTION: spec.kinds[0]}
    return layered(spec, [kinds[name] for name in _layer_types(config, spec)])


def _layer_types(config: FamilyFields, spec: DecoderSpec) -> list[str]:
    every = needed(config, _FAMILY, "full_attention_interval", 4)
    usual = [_DELTA if is_delta else _ATTENTION for is_delta in pattern(spec, every)]
    types = config.get("layer_types") or usual
    if len(types) != spec.num_layers or not set(types) <= {_DELTA, _ATTENTION}:
        raise SpecError(
            f"{_FAMILY}: layer_types: expected {_DELTA} or {_ATTENTION} for each of {spec.num_layers} layers"
        )
    return types


def _delta_shape(config: FamilyFields) -> DeltaShape:
    shape = DeltaShape(
        key_heads=needed(config, _FAMILY, "linear_num_key_heads", 16),
        value_heads=needed(config, _FAMILY, "linear_num_value_heads", 32),
        key_dim=needed(config, _FAMILY, "linear_key_head_dim", 128),
        value_dim=needed(config, _FAMILY, "linear_value_head_dim", 128),
        reach=needed(config, _FAMILY, "linear_conv_kernel_dim", 4),
    )
    if shape.value_heads % shape.key_heads:
        raise SpecError(
            f"{_FAMILY}: {shape.value_heads} value heads (linear_num_value_heads) are no multiple of the "
            f"{shape.key_heads} key heads"
        )
    return shape
