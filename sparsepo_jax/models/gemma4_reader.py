"""Reader of Gemma 4's config.json: the dense models, whose layers have two shapes. No JAX here."""

from dataclasses import replace
from typing import Any

from sparsepo_jax.models.config_fields import SpecError, needed, shown
from sparsepo_jax.models.decoder_spec import BlockShape, DecoderSpec, LayerKind
from sparsepo_jax.models.field_values import FamilyFields, flag
from sparsepo_jax.models.llama_readers import (
    layered,
    needed_window,
    pattern,
    softcap,
    windows_of,
    with_attention_bias,
)
from sparsepo_jax.models.rotary_fields import RopeDefaults, read_rope_of_kinds

_FAMILY = "gemma4_text"
_BASE, _LOCAL_BASE = 1e6, 10000.0
_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": _LOCAL_BASE},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": _BASE},
}


def read_gemma4(config: FamilyFields) -> DecoderSpec:
    """Gemma 4's dense text model.

    Args:
        config: the fields that the family reads.

    Raises:
        SpecError: embeddings for each layer, layers that share keys and values, experts, or attention in both
            directions.
    """
    _refuse_other_models(config)
    config = config | {"rope_parameters": config.get("rope_parameters") or _ROPE}
    for name in _ROPE:
        needed(config["rope_parameters"], f"{_FAMILY}: rope_parameters", name)
    spec = with_attention_bias(config, _FAMILY)
    spec = replace(
        spec,
        norms="both",
        qk_norm="head",
        value_norm=True,
        query_scale=1.0,
        embed_scale=float(spec.width) ** 0.5,
        scales_blocks=True,
        logit_softcap=softcap(config, "final_logit_softcapping", None),
    )
    usual = pattern(spec, 6)
    windows = windows_of(config, spec, needed_window(config, _FAMILY), usual)
    windows[-1] = None  # as transformers has it, whatever the config says
    kinds = [_kind(config, spec, layer, window) for layer, window in enumerate(windows)]
    return layered(spec, kinds)


def _refuse_other_models(config: FamilyFields) -> None:
    both_ways = config.get("use_bidirectional_attention")
    if both_ways not in (None, False, "vision"):
        raise SpecError(
            f"{_FAMILY}: use_bidirectional_attention: {shown(both_ways)} is not supported, only null or "
            "'vision', which concerns images alone"
        )
    if needed(config, _FAMILY, "hidden_size_per_layer_input", 256):
        raise SpecError(
            f"{_FAMILY}: hidden_size_per_layer_input: embeddings for each layer (E2B, E4B; the default) are "
            "not supported, only 0"
        )
    if config.get("num_kv_shared_layers"):
        shared = shown(config["num_kv_shared_layers"])
        raise SpecError(f"{_FAMILY}: num_kv_shared_layers: {shared} is not supported, only 0")
    if flag(config, "enable_moe_block"):
        raise SpecError(f"{_FAMILY}: enable_moe_block: True is not supported, only dense models are")


def _kind(config: FamilyFields, spec: DecoderSpec, layer: int, window: int | None) -> LayerKind:
    own = _own_fields(config, layer, is_local=window is not None)
    head_dim = needed(own, _FAMILY, "head_dim", spec.head_dim)
    kv_heads = needed(own, _FAMILY, "num_key_value_heads", spec.num_kv_heads)
    defaults = RopeDefaults(_FAMILY, spec.max_positions, head_dim, _BASE, proportional=True)
    everywhere, local = read_rope_of_kinds(config, defaults, _LOCAL_BASE)
    shape = BlockShape(
        num_kv_heads=None if kv_heads == spec.num_kv_heads else kv_heads,
        head_dim=None if head_dim == spec.head_dim else head_dim,
        key_is_value=True if window is None and flag(config, "attention_k_eq_v") else None,
    )
    return LayerKind(everywhere if window is None else local, window, shape)


def _own_fields(config: FamilyFields, layer: int, *, is_local: bool) -> dict[str, Any]:
    """The fields that a layer has for itself.

    Newer versions of transformers list them for each layer, older ones have them for all layers that see
    everything.
    """
    listed = config.get("per_layer_config")
    if listed is not None:
        return next((fields for number, fields in listed.items() if int(number) == layer), {})
    if is_local:
        return {}
    heads = config.get("num_global_key_value_heads") if flag(config, "attention_k_eq_v") else None
    return {
        "head_dim": needed(config, _FAMILY, "global_head_dim", 512),
        "num_key_value_heads": heads,
    }
