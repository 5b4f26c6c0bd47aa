"""What the config.json files of well-known checkpoints hold: sizes and switches as they are published."""

# fmt: off
_SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True}
_GPT2 = {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 1024, "n_positions": 1024, "resid_pdrop": 0.1,
    "vocab_size": 50257, **_SUMMARY, "task_specific_params": {"text-generation": {"do_sample": True,
    "max_length": 50}}}
_NEOX = {"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "initializer_range": 0.02, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "model_type":
    "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype":
    "float16", "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True}
_LLAMA = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-5,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    "vocab_size": 32000}
_LLAMA3 = _LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "max_position_embeddings": 131072, "mlp_bias": False, "num_key_value_heads": 8, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16", "vocab_size": 128256, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}
_LLAMA3_8B = _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32}
_MISTRAL = {"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act":
    "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers":
    32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "initializer_range": 0.02, "model_type": "qwen2",
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "transformers_version":
    "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False}
_QWEN_7B = _QWEN2 | {"hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
    "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064}
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 40960, "model_type": "qwen3", "num_key_value_heads":
    8, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936}
_GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation":
    "gelu_pytorch_tanh", "initializer_range": 0.02, "max_position_embeddings": 8192, "model_type": "gemma2",
    "pad_token_id": 0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096, "use_cache": True,
    "vocab_size": 256000}
_BIGCODE = {"activation_function": "gelu_pytorch_tanh", "architectures": ["GPTBigCodeForCausalLM"],
    "attention_softmax_in_fp32": True, "attn_pdrop": 0.1, "bos_token_id": 0, "embd_pdrop": 0.1,
    "eos_token_id": 0, "inference_runner": 0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5,
    "max_batch_size": None, "max_sequence_length": None, "model_type": "gpt_bigcode", "multi_query": True,
    "n_positions": 8192, "pad_key_length": True, "pre_allocate_kv_cache": False, "resid_pdrop": 0.1,
    "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, "torch_dtype": "float32",
    "use_cache": True, "validate_runner_input": True, "vocab_size": 49152, **_SUMMARY}
_GPT_OSS = {"architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
    "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
    "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880, "layer_types":
    ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072, "model_type": "gpt_oss",
    "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
    "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999, "quantization_config":
    {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
    "lm_head"], "quant_method": "mxfp4"}, "rms_norm_eps": 1e-5, "rope_scaling": {"beta_fast": 32.0,
    "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn",
    "truncate": False}, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
    "swiglu_limit": 7.0, "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0", "use_cache":
    True, "vocab_size": 201088}

# Families and makers that differ in what they write.
CONFIGS = {
    "SmolLM2-135M-Instruct": _LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pad_token_id": 2, "rope_interleaved": False, "rope_theta": 100000,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 49152, "transformers.js_config":
        {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}},
    "gpt2-large": _GPT2 | {"n_embd": 1280, "n_head": 20, "n_layer": 36, "n_special": 0,
        "predict_special_tokens": True},
    "gpt-j-6b": _GPT2 | {"architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "embd_pdrop": 0.0,
        "gradient_checkpointing": False, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None,
        "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64,
        "scale_attn_weights": True, "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
        "transformers_version": "4.18.0.dev0", "use_cache": True, "vocab_size": 50400},
    "unsloth/Llama-3.2-1B-Instruct": _LLAMA3 | {"eos_token_id": 128009, "head_dim": 64, "hidden_size": 2048,
        "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 16, "pad_token_id": 128004,
        "rope_scaling": _LLAMA3["rope_scaling"] | {"factor": 32.0}, "tie_word_embeddings": True,
        "unsloth_fixed": True},
    "pythia-410m": _NEOX | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "vocab_size": 50304},
    "Qwen3-0.6B": _QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "tie_word_embeddings": True},
    "Qwen3-1.7B": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "tie_word_embeddings": True},
    "gemma-2-2b": _GEMMA2 | {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 256},
    "starcoderbase-1b": _BIGCODE | {"_name_or_path": "/fsx/bigcode/experiments/pretraining/1B", "n_embd":
        2048, "n_head": 16, "n_inner": 8192, "n_layer": 24},
    "gpt2": _GPT2 | {"n_embd": 768, "n_head": 12, "n_layer": 12},
    "distilgpt2": _GPT2 | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "n_embd": 768, "n_head": 12, "n_layer": 6},
    "pythia-2.8b-deduped": _NEOX | {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads":
        32, "num_hidden_layers": 32, "vocab_size": 50304},
    "gpt-neox-20b": _NEOX | {"attention_probs_dropout_prob": 0, "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0, "hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64,
        "num_hidden_layers": 44, "rotary_pct": 0.25, "vocab_size": 50432},
    "Llama-2-7b-hf": _LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings":
        4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "_name_or_path":
        "meta-llama/Llama-2-7b-hf"},
    "TinyLlama-1.1B-Chat": _LLAMA | {"attention_bias": False, "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22,
        "num_key_value_heads": 4, "rope_theta": 10000.0},
    "Llama-3.1-8B-Instruct": _LLAMA3_8B | {"eos_token_id": [128001, 128008, 128009]},
    "DeepSeek-R1-Distill-Llama-8B": _LLAMA3_8B | {"eos_token_id": 128001, "transformers_version":
        "4.43.0.dev0"},
    "a llama of GGUF": _LLAMA3_8B | {"_model_name_or_path": "/models/x", "unk_token_id": 0, "eos_token_id":
        128001, "_attn_implementation_autoset": True},
    "a llama fine-tuned with TRL": _LLAMA3_8B | {"_name_or_path": "/tmp/sft", "neftune_noise_alpha": 5,
        "eos_token_id": 128001, "auto_map": None, "quantization_config": None, "architectures": None},
    "Mistral-7B-v0.1": _MISTRAL | {"transformers_version": "4.34.0.dev0"},
    "Mistral-7B-v0.3": _MISTRAL | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None,
        "vocab_size": 32768},
    "zephyr-7b-beta": _MISTRAL | {"_name_or_path": "data/zephyr-7b", "pad_token_id": 2},
    "OpenHermes": _MISTRAL | {"eos_token_id": 32000, "vocab_size": 32002, "rope_scaling": None},
    "Qwen2.5-0.5B": _QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 151936},
    "Qwen2.5-7B": _QWEN_7B,
    "DeepSeek-R1-Distill-Qwen-7B": _QWEN_7B | {"bos_token_id": 151646, "rope_theta": 10000, "sliding_window":
        4096, "transformers_version": "4.44.0"},
    "Qwen3-8B": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36,
        "num_attention_heads": 32, "num_hidden_layers": 36, "tie_word_embeddings": False},
    "OLMo-2-1124-7B": {"architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout":
        0.0, "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False,
        "torch_dtype": "float32", "use_cache": False, "vocab_size": 100352},
    "gemma-2-9b-it": _GEMMA2 | {"eos_token_id": [1, 107], "hidden_size": 3584, "intermediate_size": 14336,
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "query_pre_attn_scalar":
        256, "sliding_window_size": 4096},
    "gemma-3-1b-it": {"architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout":
        0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256, "hidden_activation":
        "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 262144},
    "gpt-oss-20b": _GPT_OSS,
    "gpt-oss-120b": _GPT_OSS | {"layer_types": ["sliding_attention", "full_attention"] * 18,
        "num_hidden_layers": 36, "num_local_experts": 128},
    "starcoderbase-7b": _BIGCODE | {"n_embd": 4096, "n_head": 32, "n_inner": 16384, "n_layer": 42},
    "Qwen3-30B-A3B": _QWEN3 | {"architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1,
        "hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [],
        "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False},
    "Qwen3-Next-80B-A3B-Instruct": {"architectures": ["Qwen3NextForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645,
        "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 5120, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_value_head_dim": 128, "max_position_embeddings": 262144, "mlp_only_layers": [], "model_type":
        "qwen3_next", "moe_intermediate_size": 512, "norm_topk_prob": True, "num_attention_heads": 16,
        "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2,
        "output_router_logits": False, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-6, "rope_scaling":
        None, "rope_theta": 10000000, "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window":
        False, "vocab_size": 151936},
    "Qwen3-Coder-30B-A3B-Instruct": {"architectures": ["Qwen3MoeForCausalLM"], "attention_dropout": 0.0,
        "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5472, "max_position_embeddings":
        262144, "max_window_layers": 28, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits":
        False, "qkv_bias": False, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000000,
        "router_aux_loss_coef": 0.0, "shared_expert_intermediate_size": 0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_qk_norm": True,
        "use_sliding_window": False, "vocab_size": 151936},
    "Mixtral-8x7B-Instruct-v0.1": _MISTRAL | {"architectures": ["MixtralForCausalLM"], "attention_dropout":
        0.0, "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8,
        "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None},
    "OLMoE-1B-7B-0924": {"architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout":
        0.0, "clip_qkv": None, "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type":
        "olmoe", "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok":
        8, "num_hidden_layers": 16, "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id":
        1, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 50304},
}
_STARCODER = {"inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length",
    "pre_allocate_kv_cache", "validate_runner_input"}

# The fields of these that change nothing.
IGNORED = {
    "SmolLM2-135M-Instruct": {"is_llama_config", "transformers.js_config"},
    "gpt2-large": {"n_ctx", "n_special", "predict_special_tokens"},
    "gpt-j-6b": {"n_ctx"},
    "unsloth/Llama-3.2-1B-Instruct": {"unsloth_fixed"},
    "gemma-2-2b": {"hidden_act"},
    "starcoderbase-1b": _STARCODER,
    "gpt2": {"n_ctx"},
    "distilgpt2": {"n_ctx", "_num_labels"},
    "gpt-neox-20b": {"attention_probs_dropout_prob", "hidden_dropout_prob"},
    "a llama of GGUF": {"_model_name_or_path", "unk_token_id", "_attn_implementation_autoset"},
    "a llama fine-tuned with TRL": {"neftune_noise_alpha"},
    "gemma-2-9b-it": {"hidden_act", "sliding_window_size"},
    "starcoderbase-7b": _STARCODER,
    "Qwen3-Coder-30B-A3B-Instruct": {"qkv_bias", "shared_expert_intermediate_size"},
}
EIGHT = list(CONFIGS)[:8]
_GEMMA3_VISION = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type":
    "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    "vision_use_head": False}
_GEMMA3 = {"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index":
    256000, "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02,
    "mm_tokens_per_image": 256, "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config":
    _GEMMA3_VISION}
_GEMMA3_TEXT = {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024}
_QWEN_VL = {"bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "initializer_range": 0.02,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_cache": True}
_QWEN_VL_TOKENS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653}

# Models around a text model, and the parameters of the text model in billions, its head included.
_QWEN35 = {"attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
    "eos_token_id": 248044, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
    "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144,
    "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False,
    "rms_norm_eps": 1e-6, "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10],
    "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default"}, "use_cache": True,
    "vocab_size": 248320}
_QWEN35_TOKENS = {"image_token_id": 248056, "video_token_id": 248057, "vision_start_token_id": 248053,
    "vision_end_token_id": 248054, "vision_config": {"depth": 12, "model_type": "qwen3_5"}}
WRAPPED = {
    "gemma-3-4b-it": (_GEMMA3 | {"text_config": _GEMMA3_TEXT | {"hidden_size": 2560, "intermediate_size":
        10240, "num_hidden_layers": 34}}, 3.88),
    "gemma-3-12b-it": (_GEMMA3 | {"text_config": _GEMMA3_TEXT | {"hidden_size": 3840, "intermediate_size":
        15360, "num_attention_heads": 16, "num_hidden_layers": 48, "num_key_value_heads": 8}}, 11.77),
    "gemma-3-27b-it": (_GEMMA3 | {"text_config": _GEMMA3_TEXT | {"head_dim": 128, "hidden_size": 5376,
        "intermediate_size": 21504, "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads":
        16, "query_pre_attn_scalar": 168}}, 27.01),
    "Mistral-Small-3.1-24B-Instruct-2503": ({"architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "text_config": {"attention_dropout": 0.0,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
        "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000000.0, "sliding_window": None, "use_cache": True, "vocab_size": 131072},
        "torch_dtype": "bfloat16", "vision_config": {"attention_dropout": 0.0, "head_dim": 64, "hidden_act":
        "gelu", "hidden_size": 1024, "image_size": 1540, "initializer_range": 0.02, "intermediate_size": 4096,
        "model_type": "pixtral", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
        "patch_size": 14, "rope_theta": 10000.0}, "vision_feature_layer": -1}, 23.57),
    "Qwen2.5-VL-7B-Instruct": (_QWEN_VL | {"architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0, "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings":
        128000, "max_window_layers": 28, "model_type": "qwen2_5_vl", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 32768, "tie_word_embeddings":
        False, "torch_dtype": "bfloat16", "use_sliding_window": False, "vision_config": {"depth": 32,
        "hidden_size": 1280, "model_type": "qwen2_5_vl"}, "vision_token_id": 151654, "rope_scaling": {"type":
        "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064, **_QWEN_VL_TOKENS}, 7.62),
    "Qwen3-VL-4B-Instruct": ({"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "text_config": {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype":
        "bfloat16", "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
        "initializer_range": 0.02, "intermediate_size": 9728, "max_position_embeddings": 262144, "model_type":
        "qwen3_vl_text", "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6, "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
        "rope_type": "default"}, "rope_theta": 5000000, "tie_word_embeddings": True, "use_cache": True,
        "vocab_size": 151936}, "tie_word_embeddings": True, "vision_config": {"depth": 24, "hidden_size":
        1024, "model_type": "qwen3_vl"}, **_QWEN_VL_TOKENS}, 4.02),
    "Qwen3.5-27B": ({"architectures": ["Qwen3_5ForConditionalGeneration"], "language_model_only": False,
        "model_type": "qwen3_5", "text_config": _QWEN35 | {"hidden_size": 5120, "intermediate_size": 17408,
        "linear_num_value_heads": 48, "num_attention_heads": 24, "num_hidden_layers": 64,
        "num_key_value_heads": 4, "output_gate_type": "swish", "pad_token_id": None, "partial_rotary_factor":
        0.25, "tie_word_embeddings": False}, "tie_word_embeddings": False, **_QWEN35_TOKENS}, 26.9),
    "Qwen3.5-0.8B": ({"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "text_config": _QWEN35 | {"hidden_size": 1024, "intermediate_size": 3584, "layer_types":
        (["linear_attention"] * 3 + ["full_attention"]) * 6, "linear_num_value_heads": 16, "mlp_only_layers":
        [], "num_attention_heads": 8, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "tie_word_embeddings": True}, "tie_word_embeddings": True, **_QWEN35_TOKENS}, 0.75),
    "Qwen3.5-35B-A3B": ({"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
        "text_config": _QWEN35 | {"hidden_size": 2048, "linear_num_value_heads": 32, "model_type":
        "qwen3_5_moe_text", "moe_intermediate_size": 512, "num_attention_heads": 16, "num_experts": 256,
        "num_experts_per_tok": 8, "num_hidden_layers": 40, "num_key_value_heads": 2, "output_router_logits":
        False, "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512, "tie_word_embeddings":
        False}, "tie_word_embeddings": False, **_QWEN35_TOKENS}, 34.66),
    "Qwen3-VL-30B-A3B-Instruct": ({"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type":
        "qwen3_vl_moe", "text_config": {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id":
        151643, "decoder_sparse_step": 1, "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 262144, "mlp_only_layers": [], "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936}, "tie_word_embeddings": False,
        "vision_config": {"depth": 27, "hidden_size": 1152, "model_type": "qwen3_vl_moe"}, **_QWEN_VL_TOKENS},
        30.53),
    "llava-1.5-7b-hf": ({"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
        "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act":
        "gelu", "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures":
        ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5,
        "torch_dtype": "float16", "vocab_size": 32064}, "tie_word_embeddings": False, "torch_dtype":
        "float16", "vision_config": {"hidden_size": 1024, "model_type": "clip_vision_model"},
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}, 6.74),
}
# fmt: on


def shrunk(config: dict) -> dict:
    """The config with small sizes and every switch; windows and stretched positions come near."""
    heads = 2 if config["model_type"].startswith(("gpt", "olmo")) else 4
    sizes = {
        "vocab_size": 31,
        "n_positions": 64,
        "max_position_embeddings": 64,
        "n_embd": 8 * heads,
        "hidden_size": 8 * heads,
        "n_layer": 2,
        "num_hidden_layers": 2,
        "n_head": heads,
        "num_attention_heads": heads,
        "rotary_dim": 4,
        "head_dim": 8,
        "intermediate_size": 24,
        "n_inner": 24,
        "max_window_layers": 1,
        "sliding_window": 4,
        "n_ctx": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 0.7,
        "sliding_window_pattern": 2,
        "moe_intermediate_size": 12,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "original_max_position_embeddings": 48,
        "shared_intermediate_size": 24,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
    }
    small = config | {name: size for name, size in sizes.items() if config.get(name)}
    if config.get("num_key_value_heads") is not None:
        small["num_key_value_heads"] = max(
            1, heads * config["num_key_value_heads"] // config["num_attention_heads"]
        )
    for name in ("layer_types", "no_rope_layers"):
        if config.get(name):
            small[name] = [config[name][0], config[name][-1]]
    for name in ("rope_scaling", "rope_parameters"):
        if config.get(name):
            small[name] = config[name] | {"original_max_position_embeddings": 16}
            for factors in {"short_factor", "long_factor"} & config[name].keys():
                pairs = int(8 * config.get("partial_rotary_factor", 1.0)) // 2
                small[name][factors] = [1.0 + 0.5 * pair for pair in range(pairs)]
    return small
