"""Shapes of published models, as the fields of their config.json that count; weights are drawn at random."""

from typing import Any

Shape = dict[str, Any]


def gpt2(vocab: int, positions: int, *, width: int = 384, layers: int = 6) -> Shape:
    """The GPT-2 shape, without dropout; heads of 64."""
    return {
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": layers,
        "n_head": width // 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def pythia(width: int, layers: int, heads: int) -> Shape:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "rotary_pct": 0.25,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    }


MODELS: dict[str, Shape] = {
    "pythia-410m": pythia(1024, 24, 16),
    "pythia-1.4b": pythia(2048, 24, 16),
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
}


def tiny(shape: Shape) -> Shape:
    """The same family, small enough for any machine."""
    small = {
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
    }
    return shape | {name: value for name, value in small.items() if name in shape}
