"""Tables of the fields of a Hugging Face `config.json`: read, harmless, or allowed one value only.

They hold an opinion on every field that transformers' config classes know; a test compares them with the
installed transformers. `config_fields` applies them.
"""

from typing import NamedTuple

from sparsepo_jax.models.field_kinds import MULTIPLIERS

# ---------------------------------------------------------------- what is read

_GPT2 = """vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon
    initializer_range tie_word_embeddings"""
_LLAMA = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters
    partial_rotary_factor original_max_position_embeddings initializer_range tie_word_embeddings"""
_QWEN = f"{_LLAMA} hidden_act use_sliding_window sliding_window max_window_layers layer_types"
_GEMMA = f"""{_LLAMA} hidden_activation attention_bias query_pre_attn_scalar sliding_window layer_types
    final_logit_softcapping use_bidirectional_attention"""
_QWEN3_5 = f"""{_LLAMA} hidden_act attention_bias layer_types full_attention_interval output_gate_type
    linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads
    linear_num_value_heads"""
_SHARED = "num_experts num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size"
_EXPERTS = f"{_LLAMA} hidden_act num_experts_per_tok"
_READ = {
    "gpt2": f"{_GPT2} scale_attn_weights scale_attn_by_inverse_layer_idx add_cross_attention",
    "gpt_bigcode": f"{_GPT2} scale_attn_weights add_cross_attention multi_query num_key_value_heads",
    "gptj": f"{_GPT2} rotary_dim",
    "gpt_neox": """vocab_size max_position_embeddings hidden_size num_hidden_layers num_attention_heads
        intermediate_size hidden_act layer_norm_eps rotary_pct rotary_emb_base rope_theta rope_scaling
        rope_parameters use_parallel_residual attention_bias head_dim initializer_range
        tie_word_embeddings""",
    "llama": f"{_LLAMA} hidden_act attention_bias mlp_bias",
    "mistral": f"{_LLAMA} hidden_act sliding_window",
    "qwen2": _QWEN,
    "qwen3": f"{_QWEN} attention_bias",
    "olmo2": f"{_LLAMA} hidden_act attention_bias",
    "qwen3_moe": f"""{_EXPERTS} attention_bias use_sliding_window num_experts num_local_experts
        moe_intermediate_size norm_topk_prob mlp_only_layers decoder_sparse_step""",
    "mixtral": f"{_EXPERTS} sliding_window num_local_experts",
    "olmoe": f"{_EXPERTS} attention_bias sliding_window num_experts norm_topk_prob",
    "gpt_oss": f"""{_LLAMA} attention_bias sliding_window layer_types num_local_experts num_experts_per_tok
        swiglu_alpha swiglu_limit""",
    "gemma": f"{_LLAMA} hidden_act attention_bias use_bidirectional_attention",
    "gemma2": f"{_GEMMA} attn_logit_softcapping",
    "gemma3_text": f"{_GEMMA} rope_local_base_freq sliding_window_pattern",
    "gemma4_text": """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_parameters initializer_range
        tie_word_embeddings hidden_activation attention_bias sliding_window layer_types
        final_logit_softcapping use_bidirectional_attention hidden_size_per_layer_input attention_k_eq_v
        num_kv_shared_layers enable_moe_block global_head_dim num_global_key_value_heads
        per_layer_config""",
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe_text": f"{_QWEN3_5} {_SHARED}",
    "qwen3_next": f"{_QWEN3_5} {_SHARED} norm_topk_prob mlp_only_layers decoder_sparse_step",
    "smollm3": f"""{_LLAMA} hidden_act use_sliding_window sliding_window layer_types attention_bias mlp_bias
        no_rope_layers no_rope_layer_interval""",
    "olmo3": f"{_LLAMA} hidden_act attention_bias sliding_window layer_types",
    "phi3": f"{_LLAMA} hidden_act sliding_window",
    "granite": f"{_LLAMA} hidden_act attention_bias mlp_bias {MULTIPLIERS}",
    "granitemoehybrid": f"""{_LLAMA} hidden_act attention_bias {MULTIPLIERS} num_local_experts layer_types
        shared_intermediate_size position_embedding_type""",
    "ministral": f"{_LLAMA} hidden_act sliding_window layer_types",
    "ministral3": f"{_LLAMA} hidden_act sliding_window",
    "seed_oss": f"{_LLAMA} hidden_act attention_bias attention_out_bias mlp_bias",
    "cohere": f"{_LLAMA} hidden_act attention_bias logit_scale layer_norm_eps use_qk_norm",
    "cohere2": f"""{_LLAMA} hidden_act attention_bias logit_scale layer_norm_eps sliding_window
        sliding_window_pattern layer_types""",
    "arcee": f"{_LLAMA} hidden_act attention_bias mlp_bias",
    "exaone4": f"{_LLAMA} hidden_act sliding_window layer_types",
    "helium": f"{_LLAMA} hidden_act attention_bias mlp_bias",
    "ernie4_5": f"{_LLAMA} hidden_act use_bias",
    "glm4": f"{_LLAMA} hidden_act attention_bias",
    "stablelm": f"""{_LLAMA} hidden_act layer_norm_eps use_qkv_bias use_parallel_residual""",
    "starcoder2": f"{_LLAMA} hidden_act norm_epsilon use_bias sliding_window",
    "nemotron": f"{_LLAMA} hidden_act attention_bias mlp_bias norm_eps",
}
READ: dict[str, frozenset[str]] = {family: frozenset(names.split()) for family, names in _READ.items()}


# Other names that transformers takes for a field of the family (its `attribute_map`).
_GPT_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
OTHER_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gptj"), _GPT_NAMES),
    "granitemoehybrid": {"layers_block_type": "layer_types"},
    "qwen3_moe": {"num_experts": "num_local_experts"},
    "mixtral": {"num_experts": "num_local_experts"},
    "olmoe": {"num_local_experts": "num_experts"},
    "gpt_oss": {"num_experts": "num_local_experts"},
}

# ---------------------------------------------------------------- what changes nothing

# Fields that transformers knows, or knew, and that do not change the forward pass of a decoder.
_HARMLESS_BY_SUBJECT = {
    "names, and how the file was written": """
        model_type architectures transformers_version _name_or_path name_or_path _commit_hash
        tokenizer_class torch_dtype dtype use_bfloat16 torchscript transformers_weights
    """,
    "token ids": """
        bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id
        decoder_start_token_id
    """,
    "dropout: we train without, as every official recipe does": """
        attn_pdrop embd_pdrop resid_pdrop attention_dropout hidden_dropout classifier_dropout
    """,
    "heads of other tasks": """
        summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels
        summary_type summary_use_proj id2label label2id num_labels problem_type finetuning_task
        task_specific_params
    """,
    "precision of the softmax: ours is float32": """
        reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32
    """,
    "how the same numbers are computed": """
        use_cache pretraining_tp chunk_size_feed_forward gradient_checkpointing
        _attn_implementation attn_implementation _experts_implementation experts_implementation
        fusion_config distributed_config
    """,
    "windows that other fields give": "_sliding_window_pattern",
    "the routers' auxiliary loss: off unless our own settings ask for it": """
        router_aux_loss_coef output_router_logits
    """,
    "what a call returns": """
        output_attentions output_hidden_states return_dict use_return_dict output_past
        tf_legacy_loss is_decoder prefix tie_last_hidden_states
    """,
    "generation": """
        cache_implementation bad_words_ids do_sample early_stopping length_penalty max_length
        min_length max_new_tokens min_new_tokens num_beams num_beam_groups num_return_sequences
        no_repeat_ngram_size encoder_no_repeat_ngram_size repetition_penalty
        encoder_repetition_penalty temperature top_k top_p min_p typical_p epsilon_cutoff
        eta_cutoff diversity_penalty exponential_decay_length_penalty forced_bos_token_id
        forced_eos_token_id remove_invalid_values suppress_tokens begin_suppress_tokens
        return_dict_in_generate output_scores output_logits renormalize_logits
        num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
        assistant_lookbehind target_lookbehind is_assistant
    """,
}
HARMLESS = frozenset(name for names in _HARMLESS_BY_SUBJECT.values() for name in names.split())
_EXPERTS_AND_MAMBA = """num_experts_per_tok output_router_logits router_aux_loss_coef time_step_limit
    mamba_n_heads mamba_n_groups mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size
    mamba_conv_bias mamba_proj_bias"""
HARMLESS_IN_FAMILY: dict[str, set[str]] = {
    # Of embeddings for each layer, of experts, and of layers that share keys and values: it has none.
    "gemma4_text": {
        "vocab_size_per_layer_input",
        "num_experts",
        "top_k_experts",
        "moe_intermediate_size",
        "use_double_wide_mlp",
    },
    # Of heads that predict later tokens, of experts, and how the same memories are computed.
    "qwen3_5_text": {
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
        "mlp_only_layers",
        "mamba_ssm_dtype",
    },
    "qwen3_5_moe_text": {
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
        "mlp_only_layers",
        "mamba_ssm_dtype",
        "intermediate_size",
    },
    "gemma3_text": {"attn_logit_softcapping"},  # transformers' attention leaves it out
    "smollm3": {"max_window_layers"},
    "seed_oss": {"residual_dropout"},  # we train without, as everywhere
    "starcoder2": {"residual_dropout", "embedding_dropout"},
    "granitemoehybrid": {*_EXPERTS_AND_MAMBA.split(), "intermediate_size"},  # of which it has none
    "exaone4": {"sliding_window_pattern"},  # layer_types must be there
    # Its gate is always the same; the others say what num_experts_per_tok and the rotation say.
    "gpt_oss": {"hidden_act", "experts_per_token", "initial_context_length"},
    "qwen3_moe": {"sliding_window", "max_window_layers"},  # off: use_sliding_window is refused there
}

# ---------------------------------------------------------------- what has one value only


class Switch(NamedTuple):
    """A field that makes another model unless it is absent, null or at one value.

    Attributes:
        off: that value, true or false; None: every empty value switches it off.
        remedy: what to do otherwise, for the message.
    """

    off: bool | None
    remedy: str = ""


TAKE_UNQUANTISED = "take the unquantised checkpoint that it was made from"
_UNQUANTISED = f"since quantised weights are no plain numbers: {TAKE_UNQUANTISED}"
_NO_DECODER = "only decoders that read nothing but their own tokens"
# It is plain what the authors of a checkpoint meant by these, whether transformers' class knows them or not.
SWITCHES = {
    "quantization_config": Switch(None, _UNQUANTISED),
    "quantization": Switch(None, _UNQUANTISED),
    "compression_config": Switch(None, _UNQUANTISED),
    "rope_interleaved": Switch(False),
    "use_mrope": Switch(False),
    "alibi": Switch(False),
    "scale_attn_weights": Switch(True),
    "scale_attn_by_inverse_layer_idx": Switch(False),
    "use_sliding_window": Switch(False),
    "use_bidirectional_attention": Switch(False),
    "use_qk_norm": Switch(False),
    "qk_layernorm": Switch(False),
    "is_causal": Switch(True),
    "clip_qkv": Switch(None),
    "router_jitter_noise": Switch(None, "noise on the routers' inputs would make training depend on it"),
    "add_cross_attention": Switch(False, _NO_DECODER),
    "cross_attention_hidden_size": Switch(None, _NO_DECODER),
    "is_encoder_decoder": Switch(False, _NO_DECODER),
    "tie_encoder_decoder": Switch(False, _NO_DECODER),
    "pruned_heads": Switch(None, "all layers must have the same heads"),
    "per_layer_config": Switch(None, "all layers must have the same shape"),
}
# The kind of quantisation whose numbers we read, see mxfp4.
QUANTISED = {"gpt_oss": "mxfp4"}
# Families whose queries and keys are always normed, as some of their files say (Qwen3-Coder's).
ALWAYS_QK_NORM = {"qwen3", "qwen3_moe"}
# Families whose attention is always gated, as some of their files say.
ALWAYS_GATED = {"qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"}
# Families that read a switch of these, so that it may have either value.
SWITCHES_READ = {
    "use_sliding_window": {"qwen2", "qwen3", "smollm3"},
    "use_bidirectional_attention": {"gemma4_text"},
    "per_layer_config": {"gemma4_text"},
    "use_qk_norm": {"cohere"},
}


# ---------------------------------------------------------------- what a field may hold

_PLAIN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_STRETCHED = {*_PLAIN_ROPE, "factor", "original_max_position_embeddings"}
ROPE_READ = {
    "default": _PLAIN_ROPE,
    "linear": _PLAIN_ROPE | {"factor"},
    "llama3": _STRETCHED | {"low_freq_factor", "high_freq_factor"},
    "proportional": _PLAIN_ROPE | {"factor"},
    "yarn": _STRETCHED
    | {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": _STRETCHED | {"attention_factor", "short_factor", "long_factor"},
}
# Read whatever the kind of rotation.
ROPE_READ_IN_FAMILY = {
    "ministral3": {"llama_4_scaling_beta", "original_max_position_embeddings"},
    # Of text all three kinds of positions are the same.
    "qwen3_5_text": {"mrope_section", "mrope_interleaved"},
    "qwen3_5_moe_text": {"mrope_section", "mrope_interleaved"},
}
