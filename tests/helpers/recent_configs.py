"""config.json files of models of 2024 to 2026, as they were published, and what is known of them."""

# fmt: off
_COMMON = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
    "torch_dtype": "bfloat16", "use_cache": True}
_GRANITE = _COMMON | {"bos_token_id": 100257, "embedding_multiplier": 12, "eos_token_id": 100257,
    "max_position_embeddings": 131072, "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id":
    100256, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000000,
    "tie_word_embeddings": True}

CONFIGS = {
    "gemma-2b-it": _COMMON | {"architectures": ["GemmaForCausalLM"], "bos_token_id": 2, "eos_token_id": 1,
        "head_dim": 256, "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2048,
        "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 256000},
    "SmolLM3-3B": _COMMON | {"architectures": ["SmolLM3ForCausalLM"], "bos_token_id": None, "eos_token_id":
        128012, "hidden_size": 2048, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "transformers_version": "4.54.0.dev0", "use_sliding_window": False, "vocab_size": 128256},
    "Olmo-3-7B-Instruct": _COMMON | {"architectures": ["Olmo3ForCausalLM"], "eos_token_id": 100257,
        "hidden_size": 4096, "intermediate_size": 11008, "layer_types": [*["sliding_attention"] * 3,
        "full_attention"] * 8, "max_position_embeddings": 65536, "model_type": "olmo3", "num_attention_heads":
        32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-6,
        "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
        "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"}, "rope_theta": 500000,
        "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 100278},
    "phi-4": _COMMON | {"architectures": ["Phi3ForCausalLM"], "bos_token_id": 100257, "embd_pdrop": 0.0,
        "eos_token_id": 100265, "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings":
        16384, "model_type": "phi3", "num_attention_heads": 40, "num_hidden_layers": 40,
        "num_key_value_heads": 10, "original_max_position_embeddings": 16384, "pad_token_id": 100349,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 250000,
        "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 100352},
    "Phi-4-mini-instruct": _COMMON | {"architectures": ["Phi3ForCausalLM"], "auto_map": {"AutoConfig":
        "configuration_phi3.Phi3Config"}, "bos_token_id": 199999, "embd_pdrop": 0.0, "eos_token_id": 199999,
        "full_attn_mod": 1, "hidden_size": 3072, "intermediate_size": 8192, "interpolate_factor": 1,
        "lm_head_bias": False, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "phi3",
        "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "pad_token_id": 199999, "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-5, "rope_scaling": {"long_factor": [float(n) for n in
        range(1, 49)], "short_factor": [1.0] * 48, "type": "longrope"}, "rope_theta": 10000.0,
        "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064},
    "granite-3.3-8b-instruct": _GRANITE | {"architectures": ["GraniteForCausalLM"], "attention_multiplier":
        0.0078125, "hidden_size": 4096, "intermediate_size": 12800, "logits_scaling": 16.0, "mlp_bias": False,
        "model_type": "granite", "num_attention_heads": 32, "vocab_size": 49159},
    "granite-4.0-micro": _GRANITE | {"architectures": ["GraniteMoeHybridForCausalLM"], "attention_multiplier":
        0.015625, "hidden_size": 2560, "init_method": "mup", "intermediate_size": 8192, "layer_types":
        ["attention"] * 40, "logits_scaling": 10, "mamba_chunk_size": 256, "mamba_conv_bias": True,
        "mamba_d_conv": 4, "mamba_d_head": 32, "mamba_d_state": 256, "mamba_expand": 2, "mamba_n_groups": 1,
        "mamba_n_heads": 160, "mamba_proj_bias": False, "model_type": "granitemoehybrid",
        "normalization_function": "rmsnorm", "num_attention_heads": 40, "num_experts_per_tok": 0,
        "num_local_experts": 0, "output_router_logits": False, "position_embedding_type": "rope",
        "router_aux_loss_coef": 0.01, "shared_intermediate_size": 8192, "vocab_size": 100352},
    "Ministral-3-8B, its text model": _COMMON | {"head_dim": 128, "hidden_size": 4096, "intermediate_size":
        14336, "max_position_embeddings": 262144, "model_type": "ministral3", "num_attention_heads": 32,
        "num_hidden_layers": 34, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_parameters":
        {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
        "rope_type": "yarn", "type": "yarn"}, "sliding_window": None, "tie_word_embeddings": False,
        "vocab_size": 131072},
    "Seed-OSS-36B-Instruct": _COMMON | {"architectures": ["SeedOssForCausalLM"], "attention_bias": True,
        "attention_dropout": 0.1, "attention_out_bias": False, "bos_token_id": 0, "eos_token_id": 2,
        "head_dim": 128, "hidden_size": 5120, "intermediate_size": 27648, "max_position_embeddings": 524288,
        "mlp_bias": False, "model_type": "seed_oss", "num_attention_heads": 80, "num_hidden_layers": 64,
        "num_key_value_heads": 8, "pad_token_id": 1, "residual_dropout": 0.1, "rms_norm_eps": 1e-6,
        "rope_scaling": {"rope_type": "default"}, "rope_theta": 10000000.0, "tie_word_embeddings": False,
        "vocab_size": 155136},
    "c4ai-command-r7b-12-2024": _COMMON | {"architectures": ["Cohere2ForCausalLM"], "bos_token_id": 5,
        "cache_implementation": "hybrid", "eos_token_id": 255001, "head_dim": 128, "hidden_size": 4096,
        "intermediate_size": 14336, "layer_norm_eps": 1e-5, "layer_switch": 4, "logit_scale": 0.25,
        "max_position_embeddings": 132096, "model_type": "cohere2", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "order_of_interleaved_layers":
        "local_attn_first", "pad_token_id": 0, "position_embedding_type": "rope_gptj", "rope_scaling": None,
        "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4,
        "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
        "use_parallel_embedding": True, "vocab_size": 256000},
}
# fmt: on

# Parameters in billions, as their authors say.
BILLIONS = {
    "gemma-2b-it": 2.51,
    "SmolLM3-3B": 3.08,
    "Olmo-3-7B-Instruct": 7.30,
    "phi-4": 14.66,
    "Phi-4-mini-instruct": 3.84,
    "granite-3.3-8b-instruct": 8.17,
    "granite-4.0-micro": 3.40,
    "Ministral-3-8B, its text model": 8.49,
    "Seed-OSS-36B-Instruct": 36.15,
    "c4ai-command-r7b-12-2024": 8.03,
    "Qwen3-Next-80B-A3B-Instruct": 80.0,
}

# The fields of these that change nothing.
IGNORED = {
    "gemma-2b-it": {"hidden_activation"},
    "phi-4": {"attention_bias"},
    "Phi-4-mini-instruct": {
        "attention_bias",
        "auto_map",
        "full_attn_mod",
        "interpolate_factor",
        "lm_head_bias",
        "mlp_bias",
    },
    "granite-4.0-micro": {"init_method", "normalization_function"},
    "Ministral-3-8B, its text model": {"attention_bias"},
    "c4ai-command-r7b-12-2024": {
        "layer_switch",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "rotary_pct",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
    },
}
