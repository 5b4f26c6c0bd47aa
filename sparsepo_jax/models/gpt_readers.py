"""Readers of config.json: GPT-2, GPTBigCode, GPT-J and GPT-NeoX. No JAX here."""

from sparsepo_jax.models.config_fields import needed
from sparsepo_jax.models.decoder_spec import DecoderSpec, LayerKind
from sparsepo_jax.models.field_values import FamilyFields, activation_of, flag, head_dim_of, refuse_unless
from sparsepo_jax.models.rotary_fields import Rotation, gpt_neox_rope


def read_gpt2(config: FamilyFields) -> DecoderSpec:
    """GPT-2.

    Args:
        config: the fields that the family reads.
    """
    return _gpt2_like(config, "gpt2", activation="gelu_new", multi_query=False)


def read_gpt_bigcode(config: FamilyFields) -> DecoderSpec:
    """StarCoderBase and others: GPT-2 with one key/value head unless the config says otherwise.

    Args:
        config: the fields that the family reads.
    """
    return _gpt2_like(config, "gpt_bigcode", activation="gelu_pytorch_tanh", multi_query=True)


def _gpt2_like(config: FamilyFields, family: str, *, activation: str, multi_query: bool) -> DecoderSpec:
    """activation, multi_query: what a config without these fields means."""
    width = needed(config, family, "n_embd", 768)
    heads = needed(config, family, "n_head", 12)
    kv_heads = 1 if config.get("multi_query", multi_query) else heads
    refuse_unless(config, family, "num_key_value_heads", kv_heads)
    return DecoderSpec(
        family=family,
        vocab_size=needed(config, family, "vocab_size", 50257),
        max_positions=needed(config, family, "n_positions", 1024),
        num_layers=needed(config, family, "n_layer", 12),
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim_of(family, width, heads),
        mlp_width=needed(config, family, "n_inner", 4 * width),
        activation=activation_of(config, family, "activation_function", activation),
        norm_eps=float(needed(config, family, "layer_norm_epsilon", 1e-5)),
        positions="learned",
        kinds=(LayerKind(None),),
        tied_head=flag(config, "tie_word_embeddings", True),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
    )


def read_gptj(config: FamilyFields) -> DecoderSpec:
    """GPT-J.

    Args:
        config: the fields that the family reads.
    """
    family = "gptj"
    width = needed(config, family, "n_embd")
    heads = needed(config, family, "n_head")
    return DecoderSpec(
        family=family,
        vocab_size=needed(config, family, "vocab_size"),
        max_positions=needed(config, family, "n_positions"),
        num_layers=needed(config, family, "n_layer"),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim_of(family, width, heads),
        mlp_width=needed(config, family, "n_inner", 4 * width),
        activation=activation_of(config, family, "activation_function", "gelu_new"),
        norm_eps=float(needed(config, family, "layer_norm_epsilon", 1e-5)),
        positions="rotary",
        kinds=(LayerKind(Rotation(needed(config, family, "rotary_dim"), 10000.0)),),
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=False,
        out_bias=False,
        head_bias=True,
        tied_head=flag(config, "tie_word_embeddings"),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
    )


def read_gpt_neox(config: FamilyFields) -> DecoderSpec:
    """GPT-NeoX, as of Pythia.

    Args:
        config: the fields that the family reads.
    """
    family = "gpt_neox"
    width = needed(config, family, "hidden_size", 6144)
    heads = needed(config, family, "num_attention_heads", 64)
    head_dim = head_dim_of(family, width, heads)
    refuse_unless(config, family, "head_dim", head_dim)
    bias = flag(config, "attention_bias", True)
    return DecoderSpec(
        family=family,
        vocab_size=needed(config, family, "vocab_size", 50432),
        max_positions=needed(config, family, "max_position_embeddings", 2048),
        num_layers=needed(config, family, "num_hidden_layers", 44),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_width=needed(config, family, "intermediate_size", 24576),
        activation=activation_of(config, family, "hidden_act", "gelu"),
        norm_eps=float(needed(config, family, "layer_norm_eps", 1e-5)),
        positions="rotary",
        kinds=(LayerKind(gpt_neox_rope(config, head_dim)),),
        parallel_residual=flag(config, "use_parallel_residual", True),
        qkv_bias=bias,
        out_bias=bias,
        tied_head=flag(config, "tie_word_embeddings"),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
    )
