"""Which values the fields of transformers' model configs may have.

A value that is none of them is refused by name before anything is built of it; see `config_fields`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MULTIPLIERS = "embedding_multiplier attention_multiplier residual_multiplier logits_scaling"


class FieldKind(NamedTuple):
    """What a field may hold: in words, and as a test."""

    expected: str
    fits: Callable[[Any], bool]


FieldKinds = Mapping[str, "FieldKind | FieldKinds"]  # a mapping within the config has kinds of its own


def _integer(most: int, least: int = 1) -> FieldKind:
    def fits(value: Any) -> bool:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return value is None or (is_integer and least <= value <= most)

    return FieldKind(
        f"a {'positive ' if least else ''}integer {'' if least else 'from 0 '}up to {most:,}", fits
    )


def _number(most: float) -> FieldKind:
    """The upper bound keeps out infinity, NaN (no comparison holds) and integers too large for a float."""

    def fits(value: Any) -> bool:
        if value is None:
            return True
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most

    return FieldKind(f"a number above 0 and up to {most:g}", fits)


def is_texts(value: Any) -> bool:
    """Whether a value is null or a list of texts.

    Args:
        value: of a field.
    """
    return value is None or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


def _is_numbers(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(type(entry) is int for entry in value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_flag_or_null_or_text(value: Any) -> bool:
    return value is None or isinstance(value, bool) or value in ("vision", "all")


def _is_by_layer(value: Any) -> bool:
    if value is None:
        return True
    kinds = {"head_dim": _SIZE, "num_key_value_heads": _COUNT}
    return isinstance(value, dict) and all(
        isinstance(number, str)
        and number.isascii()
        and number.isdecimal()
        and len(number) < 6
        and isinstance(fields, dict)
        and all(name in kinds and kinds[name].fits(entry) for name, entry in fields.items())
        for number, fields in value.items()
    )


def _is_weight(value: Any) -> bool:
    return _FACTOR.fits(value) or (value == 0 and not isinstance(value, bool))


def _are_factors(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(entry is not None and _FACTOR.fits(entry) for entry in value)
    )


def _are_zeros_and_ones(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(entry in (0, 1) for entry in value))


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


# Far beyond any model, and far from what would hang or overflow us.
_SIZE = _integer(2**24)
_COUNT = _integer(2**14)
_POSITIONS = _integer(2**31 - 1)
_SHARE = _number(1)
_FACTOR = _number(1e6)
# null is none: a null attention_multiplier would be 1 / sqrt(head dim) to transformers, and the others fail.
_MULTIPLIER = FieldKind(_FACTOR.expected, lambda value: value is not None and _FACTOR.fits(value))
_BASE = _number(1e15)
_FLAG = FieldKind("true or false", _is_flag)  # null would mean false to one reader and the default to another
_TEXT = FieldKind("a text", _is_text)
_TEXTS = FieldKind("a list of texts", is_texts)
_WEIGHT = FieldKind("a number from 0 to 1e+06", _is_weight)
_FACTORS = FieldKind("a list of numbers above 0 and up to 1e+06", _are_factors)

ROTARY_KINDS: dict[str, FieldKind] = {
    "rope_type": _TEXT,
    "type": _TEXT,
    "rope_theta": _BASE,
    "factor": _FACTOR,
    "low_freq_factor": _FACTOR,
    "high_freq_factor": _FACTOR,
    "original_max_position_embeddings": _POSITIONS,
    "partial_rotary_factor": _SHARE,
    "attention_factor": _FACTOR,
    "beta_fast": _FACTOR,
    "beta_slow": _FACTOR,
    "mscale": _WEIGHT,
    "mscale_all_dim": _WEIGHT,
    "truncate": _FLAG,
    "short_factor": _FACTORS,
    "long_factor": _FACTORS,
    "llama_4_scaling_beta": _WEIGHT,
}
# Some families have a set of rotary fields for each kind of layer.
LAYER_KINDS: dict[str, FieldKinds] = {"full_attention": ROTARY_KINDS, "sliding_attention": ROTARY_KINDS}


def _all_of(kind: FieldKind, names: str) -> dict[str, FieldKind]:
    return dict.fromkeys(names.split(), kind)


# The kind of every field that some family reads. null stands for absent.
KINDS: dict[str, FieldKind | FieldKinds] = {
    **_all_of(_SIZE, "vocab_size n_embd hidden_size n_inner intermediate_size head_dim rotary_dim"),
    **_all_of(_COUNT, "n_layer num_hidden_layers n_head num_attention_heads num_key_value_heads"),
    **_all_of(_COUNT, "num_experts num_experts_per_tok decoder_sparse_step"),
    **_all_of(_SIZE, "moe_intermediate_size shared_expert_intermediate_size"),
    "mlp_only_layers": FieldKind("a list of integers", _is_numbers),
    "norm_topk_prob": _FLAG,
    "sliding_window_pattern": _COUNT,
    "max_window_layers": _integer(2**14, least=0),
    "num_local_experts": _integer(2**14, least=0),
    "no_rope_layer_interval": _COUNT,
    "no_rope_layers": FieldKind("a list of 0 and 1", _are_zeros_and_ones),
    "shared_intermediate_size": _SIZE,
    **_all_of(_MULTIPLIER, MULTIPLIERS),
    **_all_of(_FACTOR, "swiglu_alpha swiglu_limit"),
    "logit_scale": _FACTOR,
    **_all_of(_SHARE, "norm_eps norm_epsilon"),
    **_all_of(_FLAG, "attention_out_bias use_bias use_qk_norm use_qkv_bias"),
    "position_embedding_type": _TEXT,
    "full_attention_interval": _COUNT,
    "output_gate_type": _TEXT,
    **_all_of(_COUNT, "linear_num_key_heads linear_num_value_heads linear_conv_kernel_dim"),
    **_all_of(_SIZE, "linear_key_head_dim linear_value_head_dim"),
    **_all_of(_POSITIONS, "n_positions max_position_embeddings original_max_position_embeddings"),
    "sliding_window": _POSITIONS,
    **_all_of(_SHARE, "layer_norm_epsilon layer_norm_eps rms_norm_eps rotary_pct partial_rotary_factor"),
    **_all_of(_BASE, "rotary_emb_base rope_theta rope_local_base_freq"),
    **_all_of(_FACTOR, "initializer_range query_pre_attn_scalar"),
    **_all_of(_FACTOR, "attn_logit_softcapping final_logit_softcapping"),
    **_all_of(_FLAG, "tie_word_embeddings attention_bias mlp_bias use_parallel_residual multi_query"),
    **_all_of(_FLAG, "scale_attn_weights scale_attn_by_inverse_layer_idx add_cross_attention"),
    "use_sliding_window": _FLAG,
    "use_bidirectional_attention": FieldKind(
        "true, false, null, 'vision' or 'all'", _is_flag_or_null_or_text
    ),
    "global_head_dim": _SIZE,
    "num_global_key_value_heads": _COUNT,
    **_all_of(_FLAG, "attention_k_eq_v enable_moe_block"),
    "hidden_size_per_layer_input": _integer(2**24, least=0),
    "num_kv_shared_layers": _integer(2**14, least=0),
    "per_layer_config": FieldKind(
        "head_dim and num_key_value_heads of some layers, by their numbers", _is_by_layer
    ),
    **_all_of(_TEXT, "activation_function hidden_act hidden_activation"),
    "layer_types": _TEXTS,
    "rope_scaling": ROTARY_KINDS,
    "rope_parameters": {**ROTARY_KINDS, **LAYER_KINDS},
}

# The fields that each kind of rotation reads.
