"""Readers of config.json: the kin of Llama since 2024. No JAX here."""

from dataclasses import replace

from sparsepo_jax.models.config_fields import SpecError, first, needed
from sparsepo_jax.models.decoder_spec import DecoderSpec, LayerKind, QueryGrowth
from sparsepo_jax.models.field_values import FamilyFields, flag, head_dim_of, refuse_unless
from sparsepo_jax.models.llama_readers import (
    layered,
    llama_like,
    needed_window,
    pattern,
    windows_of,
    with_attention_bias,
    with_windows,
)


def _with_biases(config: FamilyFields, family: str) -> DecoderSpec:
    """Biases of attention and of the MLP where the config says so."""
    return replace(with_attention_bias(config, family), mlp_bias=flag(config, "mlp_bias"))


def _with_one_window(spec: DecoderSpec, window: int | None) -> DecoderSpec:
    return replace(spec, kinds=(replace(spec.kinds[0], window=window),))


def read_smollm3(config: FamilyFields) -> DecoderSpec:
    """SmolLM 3: every fourth layer has no positions.

    Args:
        config: the fields that the family reads.
    """
    spec = _with_biases(config, "smollm3")
    every = needed(config, "smollm3", "no_rope_layer_interval", 4)
    rotates = first(config.get("no_rope_layers"), [int(number) for number in pattern(spec, every)])
    if len(rotates) != spec.num_layers:
        raise SpecError(
            f"smollm3: no_rope_layers: expected a 0 or 1 for each of {spec.num_layers} layers, "
            f"got {len(rotates)}"
        )
    window = config.get("sliding_window") if flag(config, "use_sliding_window") else None
    windows = windows_of(config, spec, window, [not rotated for rotated in rotates])
    rotation = spec.kinds[0].rotation
    kinds = [
        LayerKind(rotation if rotated else None, window)
        for rotated, window in zip(rotates, windows, strict=True)
    ]
    return layered(spec, kinds)


def read_olmo3(config: FamilyFields) -> DecoderSpec:
    """OLMo 3: windows in three of four layers, whose positions are not stretched.

    Args:
        config: the fields that the family reads.
    """
    spec = replace(with_attention_bias(config, "olmo3"), norms="after", qk_norm="all")
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if config.get("rope_theta") not in (None, 5e5) and local.get("rope_theta") is None:
        raise SpecError(
            f"olmo3: rope_theta: {config['rope_theta']:g} is not read by transformers for layers with a "
            "window, only 500000 is; write rope_parameters.sliding_attention.rope_theta"
        )
    windows = windows_of(config, spec, config.get("sliding_window", 4096), pattern(spec, 4))
    return layered(spec, with_windows(spec, windows))


def read_phi3(config: FamilyFields) -> DecoderSpec:
    """Phi 3 and 4, and their mini models.

    Args:
        config: the fields that the family reads.
    """
    # transformers' class has this value, and takes it before one within rope_scaling.
    config = {"original_max_position_embeddings": 4096} | config
    return _with_one_window(llama_like(config, "phi3"), config.get("sliding_window"))


def read_granite(config: FamilyFields) -> DecoderSpec:
    """Granite 3.

    Args:
        config: the fields that the family reads.
    """
    return _with_multipliers(config, _with_biases(config, "granite"))


def _with_multipliers(config: FamilyFields, spec: DecoderSpec) -> DecoderSpec:
    """Granite's factors of embeddings, scores, residuals and logits; the last one divides."""
    return replace(
        spec,
        embed_scale=float(needed(config, spec.family, "embedding_multiplier", 1.0)),
        query_scale=float(needed(config, spec.family, "attention_multiplier", 1.0)),
        residual_scale=float(needed(config, spec.family, "residual_multiplier", 1.0)),
        logit_scale=1.0 / needed(config, spec.family, "logits_scaling", 1.0),
    )


def read_granitemoehybrid(config: FamilyFields) -> DecoderSpec:
    """Granite 4 where it has attention in every layer and no experts.

    Args:
        config: the fields that the family reads.
    """
    family = "granitemoehybrid"
    if (experts := needed(config, family, "num_local_experts", 8)) != 0:
        raise SpecError(f"{family}: num_local_experts: {experts} is not supported, only 0 (a dense model)")
    spec = with_attention_bias(config, family)
    types = needed(config, family, "layer_types")
    if len(types) != spec.num_layers or not set(types) <= {"attention", "full_attention"}:
        raise SpecError(
            f"{family}: layer_types: only 'attention' for each of {spec.num_layers} layers is supported, "
            "no Mamba"
        )
    if config.get("position_embedding_type") != "rope":
        spec = replace(spec, kinds=(LayerKind(None),))
    return _with_multipliers(config, spec)


def read_ministral(config: FamilyFields) -> DecoderSpec:
    """Ministral 8B of 2024.

    Args:
        config: the fields that the family reads.
    """
    spec = llama_like(config, "ministral")
    windows = windows_of(config, spec, config.get("sliding_window", 4096), [True] * spec.num_layers)
    return layered(spec, with_windows(spec, windows))


def read_ministral3(config: FamilyFields) -> DecoderSpec:
    """The text model of Ministral 3: its queries grow with the position.

    Args:
        config: the fields that the family reads.
    """
    family = "ministral3"
    spec = _with_one_window(llama_like(config, family), config.get("sliding_window"))
    rope = first(config.get("rope_scaling"), config.get("rope_parameters"), {})
    beta = float(needed(rope, f"{family}: rope_parameters", "llama_4_scaling_beta"))
    rotation = spec.kinds[0].rotation
    scaling = None if rotation is None else rotation.scaling
    positions = getattr(scaling, "original_positions", None) or needed(
        rope, f"{family}: rope_parameters", "original_max_position_embeddings"
    )
    return replace(spec, query_growth=QueryGrowth(beta, positions) if beta else None)


def read_seed_oss(config: FamilyFields) -> DecoderSpec:
    """Seed-OSS.

    Args:
        config: the fields that the family reads.
    """
    return replace(
        llama_like(config, "seed_oss"),
        qkv_bias=flag(config, "attention_bias", True),
        out_bias=flag(config, "attention_out_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )


def read_cohere(config: FamilyFields) -> DecoderSpec:
    """Command R, and R+, which norms queries and keys.

    Args:
        config: the fields that the family reads.
    """
    spec = _cohere_like(config, "cohere")
    return replace(spec, qk_norm="own") if flag(config, "use_qk_norm") else spec


def read_cohere2(config: FamilyFields) -> DecoderSpec:
    """Command R7B and A: layers with a window rotate, the others have no positions.

    Args:
        config: the fields that the family reads.
    """
    spec = _cohere_like(config, "cohere2")
    window = needed_window(config, "cohere2", 4096)
    every = needed(config, "cohere2", "sliding_window_pattern", 4)
    windows = windows_of(config, spec, window, pattern(spec, every))
    rotation = spec.kinds[0].rotation
    return layered(spec, [LayerKind(rotation if window else None, window) for window in windows])


def _cohere_like(config: FamilyFields, family: str) -> DecoderSpec:
    """Layer norms without biases; attention and MLP in parallel, after one norm; scaled logits."""
    return replace(
        with_attention_bias(config, family),
        norm="layer",
        norm_bias=False,
        parallel_residual=True,
        shared_norm=True,
        logit_scale=float(needed(config, family, "logit_scale", 0.0625)),
    )


def read_arcee(config: FamilyFields) -> DecoderSpec:
    """Arcee's foundation models: no gate, squared ReLU.

    Args:
        config: the fields that the family reads.
    """
    return replace(_with_biases(config, "arcee"), gated_mlp=False)


def read_exaone4(config: FamilyFields) -> DecoderSpec:
    """EXAONE 4: where some layers have a window, the others have no positions.

    Args:
        config: the fields that the family reads.
    """
    spec = replace(llama_like(config, "exaone4"), norms="after", qk_norm="head")
    window = config.get("sliding_window", 4096)
    if window is not None and config.get("layer_types") is None:
        raise SpecError("exaone4: layer_types: missing, though there is a sliding_window")
    windows = windows_of(config, spec, window, [False] * spec.num_layers)
    rotation = spec.kinds[0].rotation
    return layered(spec, [LayerKind(rotation if own or window is None else None, own) for own in windows])


def read_helium(config: FamilyFields) -> DecoderSpec:
    """Helium.

    Args:
        config: the fields that the family reads.
    """
    spec = llama_like(config, "helium")
    if spec.num_heads * spec.head_dim != spec.width:
        raise SpecError(f"helium: {spec.num_heads} heads of {spec.head_dim} are not the width {spec.width}")
    return replace(spec, qkv_bias=flag(config, "attention_bias"), mlp_bias=flag(config, "mlp_bias"))


def read_ernie4_5(config: FamilyFields) -> DecoderSpec:
    """ERNIE 4.5, dense.

    Args:
        config: the fields that the family reads.
    """
    bias = flag(config, "use_bias")
    return replace(llama_like(config, "ernie4_5"), qkv_bias=bias, out_bias=bias, mlp_bias=bias)


def read_glm4(config: FamilyFields) -> DecoderSpec:
    """GLM 4 of 2025 (0414).

    Args:
        config: the fields that the family reads.
    """
    bias = flag(config, "attention_bias", True)
    return replace(llama_like(config, "glm4"), norms="both", qkv_bias=bias)


def read_nemotron(config: FamilyFields) -> DecoderSpec:
    """Nemotron 4 and Minitron: layer norms, no gate, squared ReLU, half of the dims rotated.

    Args:
        config: the fields that the family reads.
    """
    return replace(_with_biases(config, "nemotron"), norm="layer", norm_offset=1.0, gated_mlp=False)


def read_stablelm(config: FamilyFields) -> DecoderSpec:
    """StableLM: layer norms, a quarter of the dims rotated, attention and MLP in parallel in some models.

    Args:
        config: the fields that the family reads.
    """
    parallel = flag(config, "use_parallel_residual")
    spec = llama_like(config, "stablelm")
    refuse_unless(config, "stablelm", "head_dim", head_dim_of("stablelm", spec.width, spec.num_heads))
    return replace(
        spec,
        norm="layer",
        parallel_residual=parallel,
        shared_norm=parallel,
        qkv_bias=flag(config, "use_qkv_bias"),
    )


def read_starcoder2(config: FamilyFields) -> DecoderSpec:
    """StarCoder 2: layer norms, no gate.

    Args:
        config: the fields that the family reads.
    """
    bias = flag(config, "use_bias", True)
    spec = _with_one_window(llama_like(config, "starcoder2"), config.get("sliding_window"))
    return replace(spec, norm="layer", gated_mlp=False, qkv_bias=bias, out_bias=bias, mlp_bias=bias)
