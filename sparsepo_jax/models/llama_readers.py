"""Readers of config.json: Llama and its kin. No JAX here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from sparsepo_jax.models.config_fields import SpecError, first, needed
from sparsepo_jax.models.decoder_spec import DecoderSpec, LayerKind
from sparsepo_jax.models.field_values import FamilyFields, activation_of, flag, head_dim_of
from sparsepo_jax.models.rotary_fields import RopeDefaults, read_rope, read_rope_of_kinds


class _Usual(NamedTuple):
    """What a config of a family means where it lacks a field.

    Attributes:
        one_each: without `num_key_value_heads` each head has its own keys and values.
        own_head_dim: without `head_dim` it is not the width by the heads.
        null_head_dim: with `head_dim: null` it is.
        tied: the head is the token embedding.
        base: rotary base.
        local_base: rotary base of layers with a window, which have rotary fields of their own; None: all
            layers have the same.
        share: of a head's dims that are rotated; None: all are, in each model of the family.
        proportional: whether a rotation may leave the slower pairs of dims as they are.
        activation: field and value of the MLP's activation function.
        norm_eps: name of the field.
        eps: what it means where that field is absent; None: differs between versions.
        positions: what max_position_embeddings means where it is absent; None: differs between versions.
        mlp_width: name of the field.
        init_std: what initializer_range means where it is absent.
    """

    one_each: bool = False
    own_head_dim: bool = False
    null_head_dim: bool = False
    tied: bool = False
    base: float = 10000.0
    local_base: float | None = None
    share: float | None = None
    proportional: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    norm_eps: str = "rms_norm_eps"
    eps: float | None = None
    positions: int | None = None
    mlp_width: str = "intermediate_size"
    init_std: float = 0.02


_GEMMA = _Usual(own_head_dim=True, tied=True, activation=("hidden_activation", "gelu_pytorch_tanh"))
_USUAL = {
    "llama": _Usual(one_each=True, positions=2048),
    "qwen3": _Usual(own_head_dim=True),
    "olmo2": _Usual(one_each=True),
    "mixtral": _Usual(base=1e6),
    "olmoe": _Usual(one_each=True, eps=1e-5),
    "gpt_oss": _Usual(own_head_dim=True, base=150000.0),
    "gemma": _GEMMA._replace(activation=("hidden_act", "gelu_pytorch_tanh")),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA._replace(base=1e6, local_base=10000.0),
    "gemma4_text": _GEMMA._replace(base=1e6, local_base=10000.0, proportional=True),
    **dict.fromkeys(("qwen3_5_text", "qwen3_next"), _Usual(own_head_dim=True, share=0.25)),
    "qwen3_5_moe_text": _Usual(own_head_dim=True, share=0.25, mlp_width="moe_intermediate_size"),
    "smollm3": _Usual(tied=True, base=2e6),
    "olmo3": _Usual(one_each=True, base=5e5, local_base=5e5),
    "phi3": _Usual(one_each=True, share=1.0),
    "granite": _Usual(one_each=True),
    "granitemoehybrid": _Usual(one_each=True, mlp_width="shared_intermediate_size"),
    "ministral": _Usual(own_head_dim=True),
    "ministral3": _Usual(own_head_dim=True),
    "seed_oss": _Usual(own_head_dim=True, null_head_dim=True),
    "cohere": _Usual(one_each=True, tied=True, base=5e5, norm_eps="layer_norm_eps"),
    "cohere2": _Usual(one_each=True, tied=True, norm_eps="layer_norm_eps"),
    "arcee": _Usual(one_each=True, activation=("hidden_act", "relu2")),
    "helium": _Usual(own_head_dim=True, base=1e5),
    "ernie4_5": _Usual(own_head_dim=True, null_head_dim=True, tied=True, base=5e5),
    "glm4": _Usual(own_head_dim=True, share=0.5),
    "stablelm": _Usual(share=0.25, norm_eps="layer_norm_eps"),
    "starcoder2": _Usual(
        tied=True,
        activation=("hidden_act", "gelu_pytorch_tanh"),
        norm_eps="norm_epsilon",
        init_std=0.018042,
    ),
    "nemotron": _Usual(
        one_each=True,
        share=0.5,
        activation=("hidden_act", "relu2"),
        norm_eps="norm_eps",
        init_std=0.0134,
    ),
}


def llama_like(config: FamilyFields, family: str) -> DecoderSpec:
    """RMS norms, gated MLP, rotary positions, grouped queries; without biases.

    A field whose default differs between versions must be there: `check_fields` has put in what the installed
    transformers takes it to be.

    Args:
        config: the fields that the family reads.
        family: its `model_type`.
    """
    usual = _USUAL.get(family, _Usual())
    width = needed(config, family, "hidden_size")
    heads = needed(config, family, "num_attention_heads")
    positions = needed(config, family, "max_position_embeddings", usual.positions)
    may_be_null = usual.null_head_dim and "head_dim" in config
    if config.get("head_dim") is not None or (usual.own_head_dim and not may_be_null):
        head_dim = needed(config, family, "head_dim")
    else:
        head_dim = head_dim_of(family, width, heads)
    # null means as many as there are heads. Where the field is absent, the families' defaults differ.
    one_each = usual.one_each or ("num_key_value_heads" in config and not family.startswith("gemma"))
    defaults = RopeDefaults(family, positions, head_dim, usual.base, usual.share, usual.proportional)
    if usual.local_base is None:
        rotations = [read_rope(config, defaults)]
    else:
        local_base = float(first(config.get("rope_local_base_freq"), usual.local_base))
        rotations = [*read_rope_of_kinds(config, defaults, local_base)]
    return DecoderSpec(
        family=family,
        vocab_size=needed(config, family, "vocab_size"),
        max_positions=min(positions, *(rotation.longest(positions) for rotation in rotations)),
        num_layers=needed(config, family, "num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=needed(config, family, "num_key_value_heads", heads if one_each else None),
        head_dim=head_dim,
        mlp_width=needed(config, family, usual.mlp_width),
        activation=activation_of(config, family, *usual.activation),
        norm="rms",
        norm_eps=float(needed(config, family, usual.norm_eps, usual.eps)),
        gated_mlp=True,
        positions="rotary",
        kinds=tuple(map(LayerKind, rotations)),
        tied_head=flag(config, "tie_word_embeddings", usual.tied),
        init_std=float(needed(config, family, "initializer_range", usual.init_std)),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


def layered(spec: DecoderSpec, kinds: Sequence[LayerKind]) -> DecoderSpec:
    """The decoder with kinds of layers.

    Args:
        spec: the decoder.
        kinds: of each layer.
    """
    different = tuple(dict.fromkeys(kinds))
    kind_of_layer = tuple(map(different.index, kinds)) if len(different) > 1 else ()
    spec = replace(spec, kinds=different, kind_of_layer=kind_of_layer)
    return spec if kind_of_layer else spec.of_kind(0)


def windows_of(
    config: FamilyFields, spec: DecoderSpec, window: int | None, usual: Sequence[bool]
) -> list[int | None]:
    """The window of each layer; None: it sees everything.

    Args:
        config: the fields that the family reads.
        spec: the decoder.
        window: positions that a token sees back in layers that are `sliding_attention`; None: there is none.
        usual: for each layer whether it has the window, where `layer_types` does not say so.

    Raises:
        SpecError: `layer_types` does not fit.
    """
    names = {True: "sliding_attention", False: "full_attention"}
    types = config.get("layer_types") or [names[sliding and window is not None] for sliding in usual]
    if len(types) != spec.num_layers or not set(types) <= set(names.values()):
        raise SpecError(
            f"{spec.family}: layer_types: expected full_attention or sliding_attention for each of "
            f"{spec.num_layers} layers"
        )
    if window is None and names[True] in types:
        raise SpecError(
            f"{spec.family}: layer_types: sliding_attention needs a sliding_window that is in use"
        )
    return [window if kind == names[True] else None for kind in types]


def needed_window(config: FamilyFields, family: str, default: int | None = None) -> int:
    """How far layers with a window see back, in a family that always has such layers.

    Args:
        config: the fields that the family reads.
        family: its `model_type`.
        default: where the field is absent; None: it must be there.

    Raises:
        SpecError: it is null, with which transformers fails as well, or it is absent.
    """
    if "sliding_window" in config and config["sliding_window"] is None:
        raise SpecError(
            f"{family}: sliding_window: null is not supported, nor can transformers run it: write how "
            "many tokens the layers with a window see; max_position_embeddings means all"
        )
    return needed(config, family, "sliding_window", default)


def with_windows(spec: DecoderSpec, windows: Sequence[int | None]) -> list[LayerKind]:
    """The kind of each layer: as the spec's first kind, or with a window as its last one.

    Args:
        spec: the decoder.
        windows: of each layer.
    """
    everywhere, local = spec.kinds[0], spec.kinds[-1]
    return [everywhere if window is None else replace(local, window=window) for window in windows]


def pattern(spec: DecoderSpec, every: int) -> list[bool]:
    """For each layer whether it has a window: all but layers every, 2 every, ... do.

    Args:
        spec: the decoder.
        every: 1 or more.
    """
    return [(number + 1) % every != 0 for number in range(spec.num_layers)]


def with_attention_bias(config: FamilyFields, family: str) -> DecoderSpec:
    """As `llama_like`, with biases of attention if `attention_bias` says so.

    Args:
        config: the fields that the family reads.
        family: its `model_type`.
    """
    bias = flag(config, "attention_bias")
    return replace(llama_like(config, family), qkv_bias=bias, out_bias=bias)


def read_llama(config: FamilyFields) -> DecoderSpec:
    """Llama 2 and 3, and what is built like them.

    Args:
        config: the fields that the family reads.
    """
    return replace(with_attention_bias(config, "llama"), mlp_bias=flag(config, "mlp_bias"))


def read_mistral(config: FamilyFields) -> DecoderSpec:
    """Mistral.

    Args:
        config: the fields that the family reads.
    """
    spec = llama_like(config, "mistral")
    return replace(spec, kinds=(replace(spec.kinds[0], window=config.get("sliding_window", 4096)),))


def read_qwen2(config: FamilyFields) -> DecoderSpec:
    """Qwen 2 and 2.5.

    Args:
        config: the fields that the family reads.
    """
    return _with_upper_windows(config, replace(llama_like(config, "qwen2"), qkv_bias=True))


def read_qwen3(config: FamilyFields) -> DecoderSpec:
    """Qwen 3.

    Args:
        config: the fields that the family reads.
    """
    return _with_upper_windows(config, replace(with_attention_bias(config, "qwen3"), qk_norm="head"))


def _with_upper_windows(config: FamilyFields, spec: DecoderSpec) -> DecoderSpec:
    """Qwen's configs carry a window, which is off by default, for the layers from `max_window_layers` on."""
    window = config.get("sliding_window", 4096) if flag(config, "use_sliding_window") else None
    begin = needed(config, spec.family, "max_window_layers", 28)
    windows = windows_of(config, spec, window, [number >= begin for number in range(spec.num_layers)])
    return layered(spec, with_windows(spec, windows))


def read_olmo2(config: FamilyFields) -> DecoderSpec:
    """OLMo 2.

    Args:
        config: the fields that the family reads.
    """
    return replace(with_attention_bias(config, "olmo2"), norms="after", qk_norm="all")


def read_gemma(config: FamilyFields) -> DecoderSpec:
    """Gemma of 2024, CodeGemma.

    Args:
        config: the fields that the family reads.
    """
    spec = _with_gemma_scales(with_attention_bias(config, "gemma"))
    # The files of 2024 say gelu; the models were trained with its approximation, which transformers takes.
    return replace(spec, activation="gelu_tanh") if spec.activation == "gelu" else spec


def read_gemma2(config: FamilyFields) -> DecoderSpec:
    """Gemma 2.

    Args:
        config: the fields that the family reads.
    """
    spec = _gemma_like(config, "gemma2", full_every=2, logit_softcap=30.0)
    return replace(spec, attn_softcap=softcap(config, "attn_logit_softcapping", 50.0))


def read_gemma3(config: FamilyFields) -> DecoderSpec:
    """Gemma 3's text model.

    Args:
        config: the fields that the family reads.
    """
    spec = _gemma_like(config, "gemma3_text", full_every=6, logit_softcap=None)
    return replace(spec, qk_norm="head")


def _gemma_like(
    config: FamilyFields,
    family: str,
    *,
    full_every: int,
    logit_softcap: float | None,
) -> DecoderSpec:
    """Norms around attention and MLP, scaled embeddings, and a window in most layers.

    full_every: a config without a pattern means that layers full_every, 2 full_every, ... see everything.
    logit_softcap: what a config without this field means.
    """
    spec = with_attention_bias(config, family)
    every = needed(config, family, "sliding_window_pattern", full_every)
    windows = windows_of(config, spec, needed_window(config, family), pattern(spec, every))
    return replace(
        _with_gemma_scales(layered(spec, with_windows(spec, windows))),
        norms="both",
        query_scale=needed(config, family, "query_pre_attn_scalar") ** -0.5,
        logit_softcap=softcap(config, "final_logit_softcapping", logit_softcap),
    )


def _with_gemma_scales(spec: DecoderSpec) -> DecoderSpec:
    """Embeddings that are scaled, and weights of norms that are stored less 1."""
    return replace(spec, norm_offset=1.0, embed_scale=float(spec.width) ** 0.5)


def softcap(config: FamilyFields, key: str, default: float | None) -> float | None:
    """The cap that a field names; None: there is none.

    Args:
        config: the fields that the family reads.
        key: the field.
        default: its value where it is absent.
    """
    value = config.get(key, default)
    return None if value is None else float(value)
