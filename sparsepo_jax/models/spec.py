"""A Hugging Face `config.json` read into a DecoderSpec: one reader for each family.

No JAX here. Which fields there may be, and what happens to those that are not read, is decided in
`config_fields`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sparsepo_jax.models.config_fields import (
    READ,
    Fields,
    SpecError,
    check_fields,
    needed,
    note_of_ignored,
    shown,
)
from sparsepo_jax.models.decoder_spec import Activation, DecoderSpec, Family
from sparsepo_jax.models.rotary_fields import gemma3_local_base, gpt_neox_rope, read_rope

Config = dict[str, Any]  # the fields that a family reads, under the family's names


def spec_from_hf(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Hugging Face config.

    Args:
        config: the content of a config.json.

    Raises:
        SpecError: in one line, what we cannot run faithfully.
    """
    family, fields = _fields(config)
    return _checked(_READERS[family](fields.config))


def ignored_note(config: Mapping[str, Any], where: str) -> str | None:
    """One line that lists the fields of a config which change nothing; None if there are none.

    Args:
        config: the content of a config.json.
        where: the setting or directory that it came from, for the line's beginning.

    Raises:
        SpecError: as `spec_from_hf`.
    """
    family, fields = _fields(config)
    return note_of_ignored(fields.ignored, config, family, where)


def _fields(config: Mapping[Any, Any]) -> tuple[str, Fields]:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _READERS:
        raise SpecError(f"model_type: unknown architecture {shown(family)}; known: {', '.join(_READERS)}")
    return family, check_fields(config, family)


def _checked(spec: DecoderSpec) -> DecoderSpec:
    if spec.num_heads % spec.num_kv_heads:
        raise SpecError(
            f"{spec.family}: {spec.num_heads} query heads are no multiple of the "
            f"{spec.num_kv_heads} key/value heads"
        )
    fits = 2 <= spec.rotary_dim <= spec.head_dim and spec.rotary_dim % 2 == 0
    if spec.positions == "rotary" and not fits:
        raise SpecError(
            f"{spec.family}: {spec.rotary_dim} rotated dims do not fit heads of {spec.head_dim} "
            "(an even number is needed)"
        )
    return spec


# ---------------------------------------------------------------- what several families share

# Several names for one function: they differ in how it is computed.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def _activation(config: Config, family: Family, key: str, default: str) -> Activation:
    name = config.get(key, default)
    if name not in _ACTIVATIONS:
        raise SpecError(
            f"{family}: {key}: unknown activation {shown(name)}; known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _refuse_unless(config: Config, family: Family, key: str, only: int) -> None:
    """SpecError if a field is there and holds anything but what follows from the others."""
    if config.get(key) is not None and config[key] != only:
        raise SpecError(f"{family}: {key}: {shown(config[key])} is not supported, only {only!r}")


def _head_dim(family: Family, width: int, heads: int) -> int:
    if width % heads:
        raise SpecError(f"{family}: the width {width} is no multiple of the {heads} heads")
    return width // heads


def _flag(config: Config, key: str, default: bool = False) -> bool:
    return bool(config.get(key, default))


# ---------------------------------------------------------------- GPT-2, GPTBigCode, GPT-J, GPT-NeoX


def _gpt2(config: Config) -> DecoderSpec:
    return _gpt2_like(config, "gpt2", activation="gelu_new", multi_query=False)


def _gpt_bigcode(config: Config) -> DecoderSpec:
    """StarCoderBase and others: GPT-2 with one key/value head unless the config says otherwise."""
    return _gpt2_like(config, "gpt_bigcode", activation="gelu_pytorch_tanh", multi_query=True)


def _gpt2_like(config: Config, family: Family, *, activation: str, multi_query: bool) -> DecoderSpec:
    """activation, multi_query: what a config without these fields means."""
    width = needed(config, family, "n_embd", 768)
    heads = needed(config, family, "n_head", 12)
    kv_heads = 1 if config.get("multi_query", multi_query) else heads
    _refuse_unless(config, family, "num_key_value_heads", kv_heads)
    return DecoderSpec(
        family=family,
        vocab_size=needed(config, family, "vocab_size", 50257),
        max_positions=needed(config, family, "n_positions", 1024),
        num_layers=needed(config, family, "n_layer", 12),
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(family, width, heads),
        mlp_width=needed(config, family, "n_inner", 4 * width),
        activation=_activation(config, family, "activation_function", activation),
        norm_eps=float(needed(config, family, "layer_norm_epsilon", 1e-5)),
        positions="learned",
        rotary_dim=0,
        rotary_base=0.0,
        tied_head=_flag(config, "tie_word_embeddings", True),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
    )


def _gptj(config: Config) -> DecoderSpec:
    family: Family = "gptj"
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
        head_dim=_head_dim(family, width, heads),
        mlp_width=needed(config, family, "n_inner", 4 * width),
        activation=_activation(config, family, "activation_function", "gelu_new"),
        norm_eps=float(needed(config, family, "layer_norm_epsilon", 1e-5)),
        positions="rotary",
        rotary_dim=needed(config, family, "rotary_dim"),
        rotary_base=10000.0,
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=False,
        out_bias=False,
        head_bias=True,
        tied_head=_flag(config, "tie_word_embeddings"),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
    )


def _gpt_neox(config: Config) -> DecoderSpec:
    family: Family = "gpt_neox"
    width = needed(config, family, "hidden_size", 6144)
    heads = needed(config, family, "num_attention_heads", 64)
    head_dim = _head_dim(family, width, heads)
    _refuse_unless(config, family, "head_dim", head_dim)
    base, share = gpt_neox_rope(config)
    bias = _flag(config, "attention_bias", True)
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
        activation=_activation(config, family, "hidden_act", "gelu"),
        norm_eps=float(needed(config, family, "layer_norm_eps", 1e-5)),
        positions="rotary",
        rotary_dim=int(head_dim * share),
        rotary_base=base,
        parallel_residual=_flag(config, "use_parallel_residual", True),
        qkv_bias=bias,
        out_bias=bias,
        tied_head=_flag(config, "tie_word_embeddings"),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
    )


# ---------------------------------------------------------------- Llama and its kin


def _llama_like(config: Config, family: Family) -> DecoderSpec:
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
        head_dim = _head_dim(family, width, heads)
    # null means as many as there are heads. Where the field is absent, the families' defaults differ.
    one_each = family in ("llama", "olmo2") or ("num_key_value_heads" in config and not gemma)
    kv_heads = needed(config, family, "num_key_value_heads", heads if one_each else None)
    base, scaling = read_rope(config, family, positions)
    if "hidden_activation" in READ[family]:
        activation = _activation(config, family, "hidden_activation", "gelu_pytorch_tanh")
    else:
        activation = _activation(config, family, "hidden_act", "silu")
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
        rotary_dim=head_dim,
        rotary_base=base,
        rope_scaling=scaling,
        tied_head=_flag(config, "tie_word_embeddings", gemma),
        init_std=float(needed(config, family, "initializer_range", 0.02)),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


def _with_attention_bias(config: Config, family: Family) -> DecoderSpec:
    """As `_llama_like`, with biases of attention if `attention_bias` says so."""
    bias = _flag(config, "attention_bias")
    return replace(_llama_like(config, family), qkv_bias=bias, out_bias=bias)


def _llama(config: Config) -> DecoderSpec:
    return replace(_with_attention_bias(config, "llama"), mlp_bias=_flag(config, "mlp_bias"))


def _mistral(config: Config) -> DecoderSpec:
    return replace(_llama_like(config, "mistral"), window=config.get("sliding_window", 4096))


def _qwen2(config: Config) -> DecoderSpec:
    spec = replace(_llama_like(config, "qwen2"), qkv_bias=True)
    _refuse_windows(config, spec)
    return spec


def _qwen3(config: Config) -> DecoderSpec:
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


def _olmo2(config: Config) -> DecoderSpec:
    return replace(_with_attention_bias(config, "olmo2"), norms="after", qk_norm="all")


def _gemma2(config: Config) -> DecoderSpec:
    return _gemma_like(config, "gemma2", full_every=2, attn_softcap=50.0, logit_softcap=30.0)


def _gemma3(config: Config) -> DecoderSpec:
    spec = _gemma_like(config, "gemma3_text", full_every=6, attn_softcap=None, logit_softcap=None)
    return replace(spec, qk_norm="head", local_rotary_base=gemma3_local_base(config))


def _gemma_like(
    config: Config,
    family: Family,
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
        window=needed(config, family, "sliding_window"),
        local_layers=_local_layers(config, spec, full_every),
        attn_softcap=_softcap(config, "attn_logit_softcapping", attn_softcap),
        logit_softcap=_softcap(config, "final_logit_softcapping", logit_softcap),
    )


def _local_layers(config: Config, spec: DecoderSpec, full_every: int) -> tuple[bool, ...]:
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
    return tuple(kind == "sliding_attention" for kind in kinds)


def _softcap(config: Config, key: str, default: float | None) -> float | None:
    value = config.get(key, default)
    return None if value is None else float(value)


_READERS: dict[str, Callable[[Config], DecoderSpec]] = {
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "olmo2": _olmo2,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
