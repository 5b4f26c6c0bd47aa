"""Tiny models around a text model, as transformers makes them: config.json content by name."""

from helpers.tiny import CONFIGS, GEMMA4, LLAMA, QWEN3_5, QWEN3_5_MOE

_TEXT = {name: value for name, value in LLAMA.items() if name not in ("model_type", "rms_norm_eps")}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_SIGLIP = _VISION | {"model_type": "siglip_vision_model"}
_CLIP = _VISION | {"model_type": "clip_vision_model", "projection_dim": 8}
_QWEN_VISION = {"depth": 1, "num_heads": 2, "patch_size": 2}
_QWEN25_VISION = _QWEN_VISION | {
    "hidden_size": 8,
    "intermediate_size": 12,
    "out_hidden_size": 16,
    "fullatt_block_indexes": [0],
}
_QWEN3_VISION = _QWEN_VISION | {
    "hidden_size": 8,
    "intermediate_size": 12,
    "out_hidden_size": 16,
    "num_position_embeddings": 4,
}
_PIXTRAL = _VISION | {"model_type": "pixtral", "head_dim": 4}
_COHERE2 = _TEXT | {"model_type": "cohere2", "sliding_window": 5, "sliding_window_pattern": 2}
_MROPE = {"rope_type": "default", "rope_theta": 50.0}
_MROPE_OF_3 = _MROPE | {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
_IMAGE = {"image_token_id": 290, "video_token_id": 291}

WRAPPED = {
    "gemma3 around gemma3_text": {
        "model_type": "gemma3",
        "text_config": _TEXT
        | {
            "model_type": "gemma3_text",
            "num_hidden_layers": 3,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": _SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": 290,
    },
    "gemma4 around gemma4_text": {
        "model_type": "gemma4",
        "text_config": {name: value for name, value in GEMMA4.items() if name != "rms_norm_eps"},
        "vision_config": {
            **{name: value for name, value in _VISION.items() if name != "image_size"},
            "num_key_value_heads": 2,
            "head_dim": 4,
            "position_embedding_size": 8,
        },
        "image_token_id": 290,
        "video_token_id": 291,
        "audio_token_id": 292,
    },
    "mistral3 around mistral": {
        "model_type": "mistral3",
        "text_config": _TEXT | {"model_type": "mistral", "head_dim": 8, "sliding_window": None},
        "vision_config": _PIXTRAL,
        "tie_word_embeddings": False,
        "image_token_index": 290,
    },
    "mistral3, tied": {
        "model_type": "mistral3",
        "text_config": _TEXT | {"model_type": "mistral", "head_dim": 8, "sliding_window": 5},
        "vision_config": _PIXTRAL,
        "tie_word_embeddings": True,
        "image_token_index": 290,
    },
    "mistral3 around ministral3": {
        "model_type": "mistral3",
        "text_config": _TEXT
        | {
            "model_type": "ministral3",
            "head_dim": 8,
            "rope_parameters": CONFIGS["ministral3, queries that grow"]["rope_parameters"],
        },
        "vision_config": _PIXTRAL,
        "tie_word_embeddings": False,
        "image_token_index": 290,
    },
    "aya_vision around cohere2": {
        "model_type": "aya_vision",
        "text_config": _COHERE2,
        "vision_config": _SIGLIP,
        "image_token_index": 290,
    },
    "cohere2_vision": {
        "model_type": "cohere2_vision",
        "text_config": _COHERE2,
        "vision_config": _SIGLIP,
        "alignment_intermediate_size": 12,
        "image_token_id": 290,
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "text_config": _TEXT
        | {
            "head_dim": 8,
            "rope_parameters": _MROPE_OF_3,
        },
        "vision_config": _QWEN3_VISION | {"deepstack_visual_indexes": [0]},
        **_IMAGE,
    },
    "qwen3_5": {
        "model_type": "qwen3_5",
        "text_config": {name: value for name, value in QWEN3_5.items() if name != "rms_norm_eps"},
        "vision_config": _QWEN3_VISION,
        **_IMAGE,
    },
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe",
        "text_config": {name: value for name, value in QWEN3_5_MOE.items() if name != "rms_norm_eps"}
        | {"moe_intermediate_size": 24},
        "vision_config": _QWEN_VISION
        | {"hidden_size": 8, "intermediate_size": 12, "out_hidden_size": 16, "num_position_embeddings": 4},
        **_IMAGE,
    },
    "qwen3_vl_moe": {
        "model_type": "qwen3_vl_moe",
        "text_config": _TEXT
        | {
            "head_dim": 8,
            "moe_intermediate_size": 24,  # no square: it would read both ways
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "rope_parameters": _MROPE_OF_3,
        },
        "vision_config": _QWEN3_VISION | {"deepstack_visual_indexes": [0]},
        **_IMAGE,
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "text_config": _TEXT | {"rope_parameters": _MROPE | {"mrope_section": [1, 1, 0]}},
        "vision_config": _QWEN25_VISION,
        **_IMAGE,
    },
    "qwen2_vl, tied": {
        "model_type": "qwen2_vl",
        "text_config": _TEXT | {"rope_parameters": _MROPE | {"mrope_section": [1, 1, 0]}},
        "vision_config": _QWEN_VISION | {"embed_dim": 8, "hidden_size": 16},
        "tie_word_embeddings": True,
        **_IMAGE,
    },
    "llava around llama": {
        "model_type": "llava",
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": _CLIP,
        "image_token_index": 290,
    },
    "llava_next around mistral": {
        "model_type": "llava_next",
        "text_config": _TEXT | {"model_type": "mistral", "sliding_window": 5},
        "vision_config": _CLIP,
        "image_token_index": 290,
    },
    "llava_onevision around qwen2, tied": {
        "model_type": "llava_onevision",
        "text_config": _TEXT | {"model_type": "qwen2", "tie_word_embeddings": True},
        "vision_config": _SIGLIP,
        "image_token_index": 290,
        "video_token_index": 291,
    },
    "idefics3 around llama": {
        "model_type": "idefics3",
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": _SIGLIP | {"model_type": "idefics3_vision"},
        "image_token_id": 290,
    },
    "smolvlm around llama, tied": {
        "model_type": "smolvlm",
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": _SIGLIP | {"model_type": "smolvlm_vision"},
        "tie_word_embeddings": True,
        "image_token_id": 290,
    },
    "internvl around qwen2": {
        "model_type": "internvl",
        "text_config": _TEXT | {"model_type": "qwen2"},
        "vision_config": _VISION
        | {"model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [4, 4]},
        "tie_word_embeddings": False,
        "image_token_id": 290,
    },
}
