"""Weight rules of Llama and its kin; see weight_rules."""

import functools
from collections.abc import Callable, Mapping

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.delta_shape import DeltaShape
from sparsepo_jax.models.mixture_rules import expert_rules, gpt_oss_expert_rules
from sparsepo_jax.models.weight_rules import (
    Rule,
    by_groups,
    filters_of_channels,
    head,
    interleaved,
    interleaved_norms,
    linear,
    queries_and_gates,
    same,
    side_by_side,
    with_offset,
)

_LAYER = "model.layers.{i}"
# Their layer norms -> ours, by where a family norms.
_LLAMA_NORMS = {
    "before": {"input": "attn_norm", "post_attention": "mlp_norm"},
    "after": {"post_attention": "attn_post_norm", "post_feedforward": "mlp_post_norm"},
    "both": {
        "input": "attn_norm",
        "post_attention": "attn_post_norm",
        "pre_feedforward": "mlp_norm",
        "post_feedforward": "mlp_post_norm",
    },
}


_GLM_NORMS = {
    "input": "attn_norm",
    "post_self_attn": "attn_post_norm",
    "post_attention": "mlp_norm",
    "post_mlp": "mlp_post_norm",
}


def llama_rules(spec: DecoderSpec) -> list[Rule]:
    """Llama and its kin: Mistral, Qwen, OLMo, Gemma and others.

    Args:
        spec: the decoder.
    """
    norms = [*_norms(spec, _llama_norms(spec)), *_scale(spec)]
    return [*_ends(spec), *norms, *_attention(spec, linear), *_mlp(spec)]


def gpt_oss_rules(spec: DecoderSpec) -> list[Rule]:
    """gpt-oss: a sink for each head, and experts in stacks.

    Args:
        spec: the decoder.
    """
    sinks = same(f"{_LAYER}.self_attn.sinks", "blocks.attention.sinks")
    norms = _norms(spec, _LLAMA_NORMS[spec.norms])
    return [*_ends(spec), *norms, *_attention(spec, linear), sinks, *gpt_oss_expert_rules()]


def neighbours_rules(spec: DecoderSpec) -> list[Rule]:
    """Families that are stored as Llama and rotate neighbouring dims: Cohere, Helium, ERNIE 4.5.

    Args:
        spec: the decoder.
    """
    attention = _attention(spec, functools.partial(interleaved, spec))
    return [*_ends(spec), *_norms(spec, _llama_norms(spec)), *attention, *_mlp(spec)]


def phi3_rules(spec: DecoderSpec) -> list[Rule]:
    """Phi 3 and 4: queries, keys and values in one module, gate and up in another.

    Args:
        spec: the decoder.
    """
    names = ("attention.query", "attention.key", "attention.value")
    return [
        *_ends(spec),
        *_norms(spec, _llama_norms(spec)),
        side_by_side(spec, f"{_LAYER}.self_attn.qkv_proj", names),
        *linear(f"{_LAYER}.self_attn.o_proj", "blocks.attention.out", bias=spec.out_bias),
        *_gate_and_up(spec, "mlp.gate_up_proj", "mlp.down_proj"),
    ]


def glm4_rules(spec: DecoderSpec) -> list[Rule]:
    """GLM 4: norms before and after, gate and up in one module; neighbouring dims are rotated.

    Args:
        spec: the decoder.
    """
    attention = _attention(spec, functools.partial(interleaved, spec))
    mlp = _gate_and_up(spec, "mlp.gate_up_proj", "mlp.down_proj")
    return [*_ends(spec), *_norms(spec, _GLM_NORMS), *attention, *mlp]


def granite_hybrid_rules(spec: DecoderSpec) -> list[Rule]:
    """Granite 4 without experts: its only MLP is the one that experts would share.

    Args:
        spec: the decoder.
    """
    mlp = _gate_and_up(spec, "shared_mlp.input_linear", "shared_mlp.output_linear")
    return [*_ends(spec), *_norms(spec, _llama_norms(spec)), *_attention(spec, linear), *mlp]


def qwen3_5_rules(spec: DecoderSpec) -> list[Rule]:
    """Qwen3.5: gated delta nets, and attention whose queries and gates are one module.

    Args:
        spec: the decoder.
    """
    mixer = _gated_attention(spec) if spec.delta is None else _delta(spec, spec.delta)
    return [*_ends(spec), *_norms(spec, _llama_norms(spec)), *mixer, *_mlp(spec)]


def qwen3_next_rules(spec: DecoderSpec) -> list[Rule]:
    """Qwen3-Next: as Qwen3.5, but that the inputs of a delta net are two modules, key head after key head.

    Args:
        spec: the decoder.
    """
    others = [rule for rule in qwen3_5_rules(spec) if ".in_proj_" not in rule.theirs]
    if spec.delta is None:
        return others
    theirs, shape = f"{_LAYER}.linear_attn", spec.delta
    values = shape.values // shape.key_heads
    sizes = {"query": shape.key_dim, "key": shape.key_dim, "value": values, "gate": values}
    ratio = shape.value_heads // shape.key_heads
    return [
        *others,
        by_groups(f"{theirs}.in_proj_qkvz", _of_delta(sizes), shape.key_heads),
        by_groups(f"{theirs}.in_proj_ba", _of_delta({"rate": ratio, "decay": ratio}), shape.key_heads),
    ]


def _of_delta(sizes: Mapping[str, int]) -> dict[str, int]:
    return {f"blocks.delta.{name}.kernel": size for name, size in sizes.items()}


def starcoder2_rules(spec: DecoderSpec) -> list[Rule]:
    """StarCoder 2: the projections of its MLP are named as GPT-2's.

    Args:
        spec: the decoder.
    """
    return [
        *_ends(spec),
        *_norms(spec, _llama_norms(spec)),
        *_attention(spec, linear),
        *linear(f"{_LAYER}.mlp.c_fc", "blocks.up", bias=spec.mlp_bias),
        *linear(f"{_LAYER}.mlp.c_proj", "blocks.down", bias=spec.mlp_bias),
    ]


# ---------------------------------------------------------------- parts of a decoder


def _llama_norms(spec: DecoderSpec) -> dict[str, str]:
    """Their layer norms -> ours. Where attention and MLP share one, it is that of the attention."""
    return {"input": "attn_norm"} if spec.shared_norm else _LLAMA_NORMS[spec.norms]


def _ends(spec: DecoderSpec) -> list[Rule]:
    """Embedding, last norm and head."""
    return [
        same("model.embed_tokens.weight", "embed.embedding"),
        *_norm(spec, "model.norm", "final_norm"),
        *head(spec, "lm_head.weight"),
    ]


def _norms(spec: DecoderSpec, names: Mapping[str, str]) -> list[Rule]:
    """Norms of layers; names: theirs, without the end, -> ours."""
    return [
        rule
        for theirs, ours in names.items()
        for rule in _norm(spec, f"{_LAYER}.{theirs}_layernorm", f"blocks.{ours}")
    ]


def _scale(spec: DecoderSpec) -> list[Rule]:
    """The factor of a layer's output, if there is one."""
    return [same(f"{_LAYER}.layer_scalar", "blocks.output.scale")] if spec.scales_blocks else []


def _norm(spec: DecoderSpec, theirs: str, ours: str) -> list[Rule]:
    scale = with_offset(f"{theirs}.weight", f"{ours}.scale", spec.norm_offset)
    has_bias = spec.norm == "layer" and spec.norm_bias
    return [scale, same(f"{theirs}.bias", f"{ours}.bias")] if has_bias else [scale]


def _attention(spec: DecoderSpec, rotated: Callable[..., list[Rule]]) -> list[Rule]:
    """The attention's projections and norms.

    Args:
        spec: the decoder.
        rotated: makes the rules of a projection to queries or keys.
    """
    theirs, ours = f"{_LAYER}.self_attn", "blocks.attention"
    norms = []
    if spec.qk_norm == "own":
        norms = [
            interleaved_norms(spec, f"{theirs}.q_norm.weight", f"{ours}.query_norm.scale"),
            interleaved_norms(spec, f"{theirs}.k_norm.weight", f"{ours}.key_norm.scale"),
        ]
    elif spec.qk_norm is not None:
        norms = [
            with_offset(f"{theirs}.q_norm.weight", f"{ours}.query_norm.scale", spec.norm_offset),
            with_offset(f"{theirs}.k_norm.weight", f"{ours}.key_norm.scale", spec.norm_offset),
        ]
    value = [] if spec.key_is_value else linear(f"{theirs}.v_proj", f"{ours}.value", bias=spec.qkv_bias)
    return [
        *norms,
        *rotated(f"{theirs}.q_proj", f"{ours}.query", bias=spec.qkv_bias),
        *rotated(f"{theirs}.k_proj", f"{ours}.key", bias=spec.qkv_bias),
        *value,
        *linear(f"{theirs}.o_proj", f"{ours}.out", bias=spec.out_bias),
    ]


def _gated_attention(spec: DecoderSpec) -> list[Rule]:
    others = [rule for rule in _attention(spec, linear) if ".query." not in rule.ours[0]]
    query = "blocks.attention.query", "blocks.attention.gate"
    return [*others, *queries_and_gates(spec, f"{_LAYER}.self_attn.q_proj", query)]


def _delta(spec: DecoderSpec, shape: DeltaShape) -> list[Rule]:
    theirs, ours = f"{_LAYER}.linear_attn", "blocks.delta"
    names = ("query", "key", "value")
    filters = tuple(f"{ours}.{name}_filter" for name in names)
    sizes = (shape.keys, shape.keys, shape.values)
    return [
        side_by_side(spec, f"{theirs}.in_proj_qkv", tuple(f"delta.{name}" for name in names)),
        *linear(f"{theirs}.in_proj_z", f"{ours}.gate", bias=False),
        *linear(f"{theirs}.in_proj_b", f"{ours}.rate", bias=False),
        *linear(f"{theirs}.in_proj_a", f"{ours}.decay", bias=False),
        filters_of_channels(f"{theirs}.conv1d.weight", filters, sizes),
        same(f"{theirs}.A_log", f"{ours}.log_speed"),
        same(f"{theirs}.dt_bias", f"{ours}.decay_bias"),
        same(f"{theirs}.norm.weight", f"{ours}.norm.scale"),
        *linear(f"{theirs}.out_proj", f"{ours}.out", bias=False),
    ]


def _mlp(spec: DecoderSpec) -> list[Rule]:
    if spec.mixture is not None:
        return expert_rules(spec)
    gate = linear(f"{_LAYER}.mlp.gate_proj", "blocks.gate", bias=spec.mlp_bias) if spec.gated_mlp else []
    return [
        *gate,
        *linear(f"{_LAYER}.mlp.up_proj", "blocks.up", bias=spec.mlp_bias),
        *linear(f"{_LAYER}.mlp.down_proj", "blocks.down", bias=spec.mlp_bias),
    ]


def _gate_and_up(spec: DecoderSpec, both: str, down: str) -> list[Rule]:
    """An MLP without biases whose gate and up are one module.

    Args:
        spec: the decoder.
        both: name of that module within a layer.
        down: name of the last one.
    """
    return [
        side_by_side(spec, f"{_LAYER}.{both}", ("gate", "up")),
        *linear(f"{_LAYER}.{down}", "blocks.down", bias=False),
    ]
