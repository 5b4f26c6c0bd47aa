"""Weight rules of GPT-2, GPTBigCode, GPT-J and GPT-NeoX; see weight_rules."""

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.weight_rules import (
    Rule,
    by_head,
    conv,
    fused,
    head,
    interleaved,
    linear,
    norm,
    one_after_another,
    same,
)


def gpt2_rules(spec: DecoderSpec) -> list[Rule]:
    """GPT-2 stores projections as [in, out], GPTBigCode as [out, in].

    Args:
        spec: the decoder.
    """
    layer = "transformer.h.{i}"
    by_input = spec.family == "gpt2"
    projection = conv if by_input else linear
    if by_input or spec.num_kv_heads == 1:
        sizes = tuple(n * spec.head_dim for n in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads))
        split, join = one_after_another(sizes, -1 if by_input else 0, transposed=not by_input)
    else:
        split, join = by_head(spec)
    return [
        same("transformer.wte.weight", "embed.embedding"),
        same("transformer.wpe.weight", "embed_positions.embedding"),
        *norm(f"{layer}.ln_1", "blocks.attn_norm"),
        *norm(f"{layer}.ln_2", "blocks.mlp_norm"),
        *fused(f"{layer}.attn.c_attn", split, join),
        *norm("transformer.ln_f", "final_norm"),
        *projection(f"{layer}.attn.c_proj", "blocks.attention.out"),
        *projection(f"{layer}.mlp.c_fc", "blocks.up"),
        *projection(f"{layer}.mlp.c_proj", "blocks.down"),
        *head(spec, "lm_head.weight"),
    ]


def gptj_rules(spec: DecoderSpec) -> list[Rule]:
    """GPT-J.

    Args:
        spec: the decoder.
    """
    layer = "transformer.h.{i}"
    return [
        same("transformer.wte.weight", "embed.embedding"),
        *norm(f"{layer}.ln_1", "blocks.attn_norm"),
        *interleaved(spec, f"{layer}.attn.q_proj", "blocks.attention.query"),
        *interleaved(spec, f"{layer}.attn.k_proj", "blocks.attention.key"),
        *linear(f"{layer}.attn.v_proj", "blocks.attention.value", bias=False),
        *linear(f"{layer}.attn.out_proj", "blocks.attention.out", bias=False),
        *norm("transformer.ln_f", "final_norm"),
        same("lm_head.bias", "head_bias"),
        *linear(f"{layer}.mlp.fc_in", "blocks.up"),
        *linear(f"{layer}.mlp.fc_out", "blocks.down"),
        *head(spec, "lm_head.weight"),
    ]


def gpt_neox_rules(spec: DecoderSpec) -> list[Rule]:
    """GPT-NeoX.

    Args:
        spec: the decoder.
    """
    layer = "gpt_neox.layers.{i}"
    split, join = by_head(spec)
    return [
        same("gpt_neox.embed_in.weight", "embed.embedding"),
        *norm(f"{layer}.input_layernorm", "blocks.attn_norm"),
        *norm(f"{layer}.post_attention_layernorm", "blocks.mlp_norm"),
        *fused(f"{layer}.attention.query_key_value", split, join, bias=spec.qkv_bias),
        *linear(f"{layer}.attention.dense", "blocks.attention.out", bias=spec.out_bias),
        *norm("gpt_neox.final_layer_norm", "final_norm"),
        *linear(f"{layer}.mlp.dense_h_to_4h", "blocks.up"),
        *linear(f"{layer}.mlp.dense_4h_to_h", "blocks.down"),
        *head(spec, "embed_out.weight"),
    ]
