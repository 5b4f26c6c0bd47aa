"""Weight rules of Llama and its kin; see weight_rules."""

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.weight_rules import Rule, head, linear, same, with_offset

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


def llama_rules(spec: DecoderSpec) -> list[Rule]:
    """Llama and its kin: Mistral, Qwen, OLMo 2, Gemma.

    Args:
        spec: the decoder.
    """
    layer = "model.layers.{i}"
    scales = {
        f"{layer}.{theirs}_layernorm.weight": f"blocks.{ours}.scale"
        for theirs, ours in _LLAMA_NORMS[spec.norms].items()
    }
    scales["model.norm.weight"] = "final_norm.scale"
    if spec.qk_norm is not None:
        scales[f"{layer}.self_attn.q_norm.weight"] = "blocks.attention.query_norm.scale"
        scales[f"{layer}.self_attn.k_norm.weight"] = "blocks.attention.key_norm.scale"
    return [
        *(with_offset(theirs, ours, spec.norm_offset) for theirs, ours in scales.items()),
        same("model.embed_tokens.weight", "embed.embedding"),
        *linear(f"{layer}.self_attn.q_proj", "blocks.attention.query", bias=spec.qkv_bias),
        *linear(f"{layer}.self_attn.k_proj", "blocks.attention.key", bias=spec.qkv_bias),
        *linear(f"{layer}.self_attn.v_proj", "blocks.attention.value", bias=spec.qkv_bias),
        *linear(f"{layer}.self_attn.o_proj", "blocks.attention.out", bias=spec.out_bias),
        *linear(f"{layer}.mlp.gate_proj", "blocks.gate", bias=spec.mlp_bias),
        *linear(f"{layer}.mlp.up_proj", "blocks.up", bias=spec.mlp_bias),
        *linear(f"{layer}.mlp.down_proj", "blocks.down", bias=spec.mlp_bias),
        *head(spec, "lm_head.weight"),
    ]
