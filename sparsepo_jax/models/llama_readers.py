"""Readers of config.json: Llama and its kin. No JAX here."""

from dataclasses import replace

from sparsepo_jax.models.config_fields import READ, SpecError, needed
from sparsepo_jax.models.decoder_spec import DecoderSpec, LayerKind
from sparsepo_jax.models.field_values import Config, activation_of, flag, head_dim_of
from sparsepo_jax.models.rotary_fields import gemma3_local_rope, read_rope


def _llama_like(config: Config, family: str) -> DecoderSpec:
    """RMS norms, gated MLP, rotary positions, grouped queries; without biases.

    A field must be there if its default differs between families and versions.
    """
    gemma = family in ("gemma2", "gemma3_text")
    width = needed(config, family, "hidden_size")
    heads = needed(config, family, "num_attention_heads")
    positions = needed(config, family, "max_position_embeddings")
    if family == "qwen3" or gemma or config.get("head_dim") is not None:
        head_dim = needed(config, family, "head_dim")
    else:
        head_dim = head_dim_of(family, width, heads)
    # null means as many as there are heads. Where the field is absent, the families' defaults differ.
    one_each = family in ("llama", "olmo2") or ("num_key_value_heads" in config and not gemma)
    kv_heads = needed(config, family, "num_key_value_heads", heads if one_each else None)
    if "hidden_activation" in READ[family]:
        activation = activation_of(config, family, "hidden_activation", "gelu_pytorch_tanh")
    else:
        activation = activation_of(config, family, "hidden_act", "silu")
    return DecoderSpec(
        family=family,
        vocab_size=needed(config, family, "vocab_size"),
        max_positions=positions,
        num_layers=needed(config, family, "num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=needed(config, family, "intermediate_size"),
        activation=activation,
        norm="rms",
        norm_eps=float(needed(config, family, "rms_norm_eps")),
        gated_mlp=True,
        positions="rotary",
        kinds=(LayerKind(read_rope(config, family, positions, head_dim)),),
        tied_head=flag(config, "tie_word_embeddings", gemma),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


def _with_attention_bias(config: Config, family: str) -> DecoderSpec:
    """As `_llama_like`, with biases of attention if `attention_bias` says so."""
    bias = flag(config, "attention_bias")
    return replace(_llama_like(config, family), qkv_bias=bias, out_bias=bias)


def read_llama(config: Config) -> DecoderSpec:
    """Llama 2 and 3, and what is built like them.

    Args:
        config: the fields that the family reads.
    """
    return replace(_with_attention_bias(config, "llama"), mlp_bias=flag(config, "mlp_bias"))


def read_mistral(config: Config) -> DecoderSpec:
    """Mistral.

    Args:
        config: the fields that the family reads.
    """
    spec = _llama_like(config, "mistral")
    return replace(spec, kinds=(replace(spec.kinds[0], window=config.get("sliding_window", 4096)),))


def read_qwen2(config: Config) -> DecoderSpec:
    """Qwen 2 and 2.5.

    Args:
        config: the fields that the family reads.
    """
    spec = replace(_llama_like(config, "qwen2"), qkv_bias=True)
    _refuse_windows(config, spec)
    return spec


def read_qwen3(config: Config) -> DecoderSpec:
    """Qwen 3.

    Args:
        config: the fields that the family reads.
    """
    spec = replace(_with_attention_bias(config, "qwen3"), qk_norm="head")
    _refuse_windows(config, spec)
    return spec


def _refuse_windows(config: Config, spec: DecoderSpec) -> None:
    """Qwen's configs carry a window that is switched off; layers that alternate with it are not supported."""
    kinds = config.get("layer_types")
    if kinds is not None and (len(kinds) != spec.num_layers or set(kinds) != {"full_attention"}):
        raise SpecError(
            f"{spec.family}: layer_types: only 'full_attention' for each of {spec.num_layers} layers "
            "is supported"
        )


def read_olmo2(config: Config) -> DecoderSpec:
    """OLMo 2.

    Args:
        config: the fields that the family reads.
    """
    return replace(_with_attention_bias(config, "olmo2"), norms="after", qk_norm="all")


def read_gemma2(config: Config) -> DecoderSpec:
    """Gemma 2.

    Args:
        config: the fields that the family reads.
    """
    return _gemma_like(config, "gemma2", full_every=2, attn_softcap=50.0, logit_softcap=30.0)


def read_gemma3(config: Config) -> DecoderSpec:
    """Gemma 3's text model.

    Args:
        config: the fields that the family reads.
    """
    spec = _gemma_like(config, "gemma3_text", full_every=6, attn_softcap=None, logit_softcap=None)
    everywhere, local = spec.kinds
    rotation = gemma3_local_rope(config, spec.head_dim)
    return replace(spec, qk_norm="head", kinds=(everywhere, replace(local, rotation=rotation)))


def _gemma_like(
    config: Config,
    family: str,
    *,
    full_every: int,
    attn_softcap: float | None,
    logit_softcap: float | None,
) -> DecoderSpec:
    """Norms around attention and MLP, scaled embeddings, and a window in most layers.

    full_every: a config without a pattern means that layers full_every, 2 full_every, ... see everything.
    attn_softcap, logit_softcap: what a config without these fields means.
    """
    spec = _with_attention_bias(config, family)
    return replace(
        spec,
        norms="both",
        norm_offset=1.0,
        query_scale=needed(config, family, "query_pre_attn_scalar") ** -0.5,
        embed_scale=float(spec.width) ** 0.5,
        kinds=(spec.kinds[0], replace(spec.kinds[0], window=needed(config, family, "sliding_window"))),
        kind_of_layer=_local_layers(config, spec, full_every),
        attn_softcap=_softcap(config, "attn_logit_softcapping", attn_softcap),
        logit_softcap=_softcap(config, "final_logit_softcapping", logit_softcap),
    )


def _local_layers(config: Config, spec: DecoderSpec, full_every: int) -> tuple[int, ...]:
    """For each layer 0 if it sees everything, 1 if it sees a window."""
    layers = spec.num_layers
    every = needed(config, spec.family, "sliding_window_pattern", full_every)
    kinds = config.get("layer_types") or [
        "sliding_attention" if (number + 1) % every else "full_attention" for number in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise SpecError(
            f"{spec.family}: layer_types: expected full_attention or sliding_attention for each of "
            f"{layers} layers"
        )
    return tuple(int(kind == "sliding_attention") for kind in kinds)


def _softcap(config: Config, key: str, default: float | None) -> float | None:
    value = config.get(key, default)
    return None if value is None else float(value)
