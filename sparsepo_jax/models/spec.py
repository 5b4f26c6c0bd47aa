"""What a decoder looks like: a Hugging Face `config.json` read into the few facts our one decoder needs. No JAX here.

Every field of a config that changes the forward pass is read or refused by name; the others are listed as known to be harmless. A field that
nobody has looked at is refused: silence would mean wrong numbers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Literal, NamedTuple

from sparsepo_jax.core.errors import escaped


class SpecError(ValueError):
    """A config that we cannot run as it is meant; the message says why in one line."""

    def __init__(self, message: str):
        super().__init__(escaped(message))


Family = Literal["gpt2", "gpt_bigcode", "gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3: wavelengths longer than original_positions / low are stretched by factor, shorter than original_positions / high kept, those
    between blended. Linear: all are stretched (low, high and original_positions are None)."""

    factor: float
    low: float | None = None
    high: float | None = None
    original_positions: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A transformer decoder. Sizes in units; `rotary_dim` of each head's dims are rotated.

    norms: before attention and MLP, after them, or both; shared_norm: one before both (parallel residual). qk_norm: over each head's dims, or over all heads together. window: positions that a
    token sees back, itself included (None: all), in every layer or in `local_layers` only; these may have a rotary base of their own.
    norm_offset: what the stored weights of norms lack to the factor that they are (1 in Gemma). query_scale None: 1 / sqrt(head_dim).
    softcap c: x becomes c tanh(x / c), for attention scores and logits.
    """

    family: Family
    vocab_size: int
    max_positions: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"]
    norm_eps: float
    positions: Literal["learned", "rotary"]
    rotary_dim: int
    rotary_base: float
    tied_head: bool
    init_std: float
    num_kv_heads: int
    head_dim: int
    norm: Literal["layer", "rms"] = "layer"
    gated_mlp: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    head_bias: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    norms: Literal["before", "after", "both"] = "before"
    norm_offset: float = 0.0
    qk_norm: Literal["head", "all"] | None = None
    query_scale: float | None = None
    embed_scale: float = 1.0
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] | None = None
    local_rotary_base: float | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None

    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each matrix of a block, by name."""
        D, F, queries, keys = self.width, self.mlp_width, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = {"query": (D, queries), "key": (D, keys), "value": (D, keys), "out": (queries, D)}
        mlp = {"up": (D, F)} | ({"gate": (D, F)} if self.gated_mlp else {}) | {"down": (F, D)}
        return {f"attention.{name}": size for name, size in attention.items()} | mlp

    def adapter_parameter_count(self, targets: tuple[str, ...], rank: int) -> int:
        """Weights of LoRA adapters of these projections."""
        return self.num_layers * rank * sum(sum(self.projections()[name]) for name in targets)

    def parameter_count(self) -> int:
        """Weights of the whole decoder, tied ones once."""
        D, F, L = self.width, self.mlp_width, self.num_layers
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = sum(inside * outside for inside, outside in self.projections().values())
        block += self.qkv_bias * (queries + 2 * keys) + self.out_bias * D + self.mlp_bias * ((2 if self.gated_mlp else 1) * F + D)
        block += {None: 0, "head": 2 * self.head_dim, "all": queries + keys}[self.qk_norm]
        norm = (2 if self.norm == "layer" else 1) * D
        embedding = self.vocab_size * D + (self.max_positions * D if self.positions == "learned" else 0)
        head = (0 if self.tied_head else self.vocab_size * D) + self.head_bias * self.vocab_size
        norms = 4 if self.norms == "both" else 1 if self.shared_norm else 2
        return embedding + L * (block + norms * norm) + norm + head


def choose_projections(patterns: tuple[str, ...], spec: DecoderSpec) -> tuple[str, ...]:
    """The projections that a pattern (a regular expression) is found in. SpecError: a pattern that fits none."""
    names = tuple(spec.projections())
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise SpecError(f"{pattern!r} fits no projection; there are {', '.join(names)}")
    return tuple(name for name in names if any(re.search(pattern, name) for pattern in patterns))


_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}

# Fields that do not change the forward pass of a dense decoder: names, token ids, training and generation settings, dropouts (we train
# without dropout, as every official recipe does), summary heads of other tasks.
_HARMLESS = set(
    """model_type architectures transformers_version torch_dtype dtype use_cache bos_token_id eos_token_id pad_token_id sep_token_id
    cls_token_id mask_token_id decoder_start_token_id initializer_range _name_or_path name_or_path task_specific_params gradient_checkpointing
    attn_pdrop embd_pdrop resid_pdrop attention_dropout hidden_dropout classifier_dropout summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj reorder_and_upcast_attn n_ctx output_attentions output_hidden_states return_dict
    tie_word_embeddings is_decoder id2label label2id num_labels problem_type chunk_size_feed_forward finetuning_task prefix pruned_heads
    output_past torchscript use_bfloat16 bad_words_ids do_sample early_stopping length_penalty max_length min_length num_beams
    num_beam_groups num_return_sequences no_repeat_ngram_size encoder_no_repeat_ngram_size repetition_penalty temperature top_k top_p typical_p
    diversity_penalty exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens return_dict_in_generate output_scores is_encoder_decoder cross_attention_hidden_size tokenizer_class
    tf_legacy_loss partial_rotary_factor _attn_implementation attn_implementation""".split()
)


class _Kind(NamedTuple):
    """What a field may hold: in words, and as a test."""

    expected: str
    fits: Callable[[Any], bool]


def _integer(most: int) -> _Kind:
    return _Kind(f"a positive integer up to {most:,}", lambda x: x is None or (isinstance(x, int) and not isinstance(x, bool) and 0 < x <= most))


def _number(most: float) -> _Kind:
    """The upper bound keeps out infinity, NaN (no comparison holds) and integers that are no float."""
    return _Kind(f"a number above 0 and up to {most:g}", lambda x: x is None or (isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x <= most))


_FLAG = _Kind("true or false", lambda x: isinstance(x, bool))  # null would mean false to one reader and the default to another
_TEXT = _Kind("a text", lambda x: x is None or isinstance(x, str))
_TEXTS = _Kind("a list of texts", lambda x: x is None or (isinstance(x, list) and all(isinstance(one, str) for one in x)))
_SIZE, _COUNT, _BASE = _integer(2**24), _integer(2**14), _number(1e15)  # far beyond any model, far from what would hang or overflow us

_ROTARY = {"rope_type": _TEXT, "type": _TEXT, "rope_theta": _BASE, "factor": _number(1e6), "low_freq_factor": _number(1e6), "high_freq_factor": _number(1e6),
           "original_max_position_embeddings": _integer(2**31 - 1), "partial_rotary_factor": _number(1)}
_ROTARY_OF_KINDS = _ROTARY | {"full_attention": _ROTARY, "sliding_attention": _ROTARY}  # families with local layers have a set for each

# What the fields hold that any family reads; a mapping within has kinds of its own. null stands for absent.
_KINDS: dict[str, _Kind | dict] = {
    **dict.fromkeys("vocab_size n_embd hidden_size n_inner intermediate_size head_dim rotary_dim".split(), _SIZE),
    **dict.fromkeys("n_layer num_hidden_layers n_head num_attention_heads num_key_value_heads sliding_window_pattern".split(), _COUNT),
    **dict.fromkeys("n_positions max_position_embeddings sliding_window".split(), _integer(2**31 - 1)),
    **dict.fromkeys("layer_norm_epsilon layer_norm_eps rms_norm_eps rotary_pct".split(), _number(1)),
    **dict.fromkeys("rotary_emb_base rope_theta rope_local_base_freq".split(), _BASE),
    **dict.fromkeys("initializer_range query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping".split(), _number(1e6)),
    **dict.fromkeys("""tie_word_embeddings attention_bias mlp_bias use_parallel_residual multi_query scale_attn_weights
        scale_attn_by_inverse_layer_idx add_cross_attention use_sliding_window""".split(), _FLAG),
    "use_bidirectional_attention": _Kind("true, false or null", lambda x: x is None or isinstance(x, bool)),
    "activation_function": _TEXT, "hidden_act": _TEXT, "hidden_activation": _TEXT, "layer_types": _TEXTS,
    "rope_scaling": _ROTARY, "rope_parameters": _ROTARY_OF_KINDS,
}


def _shown(value: Any) -> str:
    """A value in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or lists within lists
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Any) -> str:
    found = sorted(name if isinstance(name, str) else _shown(name) for name in names)
    return ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, _Kind | dict], where: str) -> None:
    for name in kinds.keys() & values.keys():
        kind, value = kinds[name], values[name]
        if isinstance(kind, dict):
            if value is not None and not isinstance(value, dict):
                raise SpecError(f"{where}{name}: expected an object or null, got {_shown(value)}")
            _check_kinds(value or {}, kind, f"{where}{name}.")
        elif not kind.fits(value):
            raise SpecError(f"{where}{name}: expected {kind.expected}, got {_shown(value)}")


def _refuse_unless(config: dict[str, Any], family: str, **needed: Any) -> None:
    for key, value in needed.items():
        if config.get(key, value) != value:
            raise SpecError(f"{family}: {key}: {_shown(config[key])} is not supported, only {value!r}")


def _refuse_unknown(config: dict[str, Any], family: str, read: set[str]) -> None:
    unknown = set(config) - _HARMLESS - read
    if unknown:
        raise SpecError(f"{family}: unknown config fields {_listed(unknown)}: they may change the forward pass, so they are not ignored")


def _first(*values: Any) -> Any:
    """The first that is there."""
    return next(value for value in values if value is not None)


def _needed(config: dict[str, Any], family: str, key: str, default: Any = None) -> Any:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise SpecError(f"{family}: {key}: missing; it has no default that all checkpoints share")
    return value


def _activation(config: dict[str, Any], family: str, key: str, default: str) -> Any:
    name = config.get(key, default)
    if name not in _ACTIVATIONS:
        raise SpecError(f"{family}: {key}: unknown activation {_shown(name)}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _head_dim(config: dict[str, Any], family: str, width: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return _needed(config, family, "head_dim")
    if width % heads:
        raise SpecError(f"{family}: the width {width} is no multiple of the {heads} heads")
    return width // heads


def _checked(spec: DecoderSpec) -> DecoderSpec:
    if spec.num_heads % spec.num_kv_heads:
        raise SpecError(f"{spec.family}: {spec.num_heads} query heads are no multiple of the {spec.num_kv_heads} key/value heads")
    if spec.positions == "rotary" and (spec.rotary_dim < 2 or spec.rotary_dim % 2 or spec.rotary_dim > spec.head_dim):
        raise SpecError(f"{spec.family}: {spec.rotary_dim} rotated dims do not fit heads of {spec.head_dim} (an even number is needed)")
    return spec


def _gpt2_like(family: Family, activation: str, read: str = "", *, multi_query: bool = False) -> Callable[[dict[str, Any]], DecoderSpec]:
    """GPT-2, and GPTBigCode (StarCoderBase), which is GPT-2 with one key/value head unless its config says otherwise."""
    known = set(f"""vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon scale_attn_weights
        add_cross_attention {read}""".split())

    def make(c: dict[str, Any]) -> DecoderSpec:
        _refuse_unknown(c, family, known)
        _refuse_unless(c, family, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
        width, heads = _needed(c, family, "n_embd", 768), _needed(c, family, "n_head", 12)
        return DecoderSpec(
            family=family, vocab_size=_needed(c, family, "vocab_size", 50257), max_positions=_needed(c, family, "n_positions", 1024),
            num_layers=_needed(c, family, "n_layer", 12), width=width, num_heads=heads,
            num_kv_heads=1 if c.get("multi_query", multi_query) else heads, head_dim=_head_dim({}, family, width, heads),
            mlp_width=_needed(c, family, "n_inner", 4 * width),
            activation=_activation(c, family, "activation_function", activation), norm_eps=float(_needed(c, family, "layer_norm_epsilon", 1e-5)),
            positions="learned", rotary_dim=0, rotary_base=0.0,
            tied_head=bool(c.get("tie_word_embeddings", True)), init_std=float(_needed(c, family, "initializer_range", 0.02)),
        )

    return make


def _gptj(c: dict[str, Any]) -> DecoderSpec:
    _refuse_unknown(c, "gptj", set("vocab_size n_positions n_embd n_layer n_head rotary_dim n_inner activation_function layer_norm_epsilon".split()))
    width, heads = _needed(c, "gptj", "n_embd"), _needed(c, "gptj", "n_head")
    return DecoderSpec(
        family="gptj", vocab_size=_needed(c, "gptj", "vocab_size"), max_positions=_needed(c, "gptj", "n_positions"),
        num_layers=_needed(c, "gptj", "n_layer"), width=width, num_heads=heads, num_kv_heads=heads, head_dim=_head_dim({}, "gptj", width, heads),
        mlp_width=_needed(c, "gptj", "n_inner", 4 * width), activation=_activation(c, "gptj", "activation_function", "gelu_new"),
        norm_eps=float(_needed(c, "gptj", "layer_norm_epsilon", 1e-5)), positions="rotary", rotary_dim=_needed(c, "gptj", "rotary_dim"),
        rotary_base=10000.0, parallel_residual=True, shared_norm=True, qkv_bias=False, out_bias=False, head_bias=True,
        tied_head=bool(c.get("tie_word_embeddings", False)), init_std=float(_needed(c, "gptj", "initializer_range", 0.02)),
    )


def _gpt_neox(c: dict[str, Any]) -> DecoderSpec:
    read = {"vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "layer_norm_eps", "rotary_pct", "rotary_emb_base", "rope_theta", "rope_scaling", "rope_parameters", "use_parallel_residual", "attention_bias"}
    _refuse_unknown(c, "gpt_neox", read)
    _refuse_unless(c, "gpt_neox", rope_scaling=None)
    rope = c.get("rope_parameters") or {}  # how transformers 5 writes it
    if _rope_kind(rope) != "default":
        raise SpecError(f"gpt_neox: rope_parameters.rope_type: {_shown(_rope_kind(rope))} is not supported, only 'default'")
    width, heads = _needed(c, "gpt_neox", "hidden_size", 6144), _needed(c, "gpt_neox", "num_attention_heads", 64)
    share, head_dim = _first(rope.get("partial_rotary_factor"), c.get("rotary_pct"), 0.25), _head_dim({}, "gpt_neox", width, heads)
    bias = bool(c.get("attention_bias", True))
    base = _first(rope.get("rope_theta"), c.get("rotary_emb_base"), c.get("rope_theta"), 10000)
    return DecoderSpec(
        family="gpt_neox", vocab_size=_needed(c, "gpt_neox", "vocab_size", 50432),
        max_positions=_needed(c, "gpt_neox", "max_position_embeddings", 2048), num_layers=_needed(c, "gpt_neox", "num_hidden_layers", 44),
        width=width, num_heads=heads, num_kv_heads=heads, head_dim=head_dim, mlp_width=_needed(c, "gpt_neox", "intermediate_size", 24576),
        activation=_activation(c, "gpt_neox", "hidden_act", "gelu"), norm_eps=float(_needed(c, "gpt_neox", "layer_norm_eps", 1e-5)),
        positions="rotary", rotary_dim=int(head_dim * float(share)), rotary_base=float(base),
        parallel_residual=bool(c.get("use_parallel_residual", True)), qkv_bias=bias, out_bias=bias,
        tied_head=bool(c.get("tie_word_embeddings", False)), init_std=float(_needed(c, "gpt_neox", "initializer_range", 0.02)),
    )


def _rope_kind(rope: Mapping[str, Any]) -> str:
    return _first(rope.get("rope_type"), rope.get("type"), "default")


def _rope(c: dict[str, Any], family: str, positions: int) -> tuple[float, RopeScaling | None]:
    """(base, scaling), from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = c.get("rope_parameters") or {}
    rope = rope.get("full_attention") or rope  # families with local layers have a set for each
    scaling = rope if _rope_kind(rope) != "default" else c.get("rope_scaling") or {}
    base, kind = float(_first(rope.get("rope_theta"), c.get("rope_theta"), 10000.0)), _rope_kind(scaling)
    if unknown := set(scaling) - set(_ROTARY):
        raise SpecError(f"{family}: rope_parameters: unknown fields {_listed(unknown)}: they may change the forward pass, so they are not ignored")
    for fields in (c, rope, scaling):
        if _first(fields.get("partial_rotary_factor"), 1.0) != 1.0:
            raise SpecError(f"{family}: partial_rotary_factor: {_shown(fields['partial_rotary_factor'])} is not supported, only 1.0")
    number = lambda name: float(_needed(scaling, f"{family}: rope_parameters", name))  # noqa: E731
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling(number("factor"))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise SpecError(f"{family}: rope_parameters: expected low_freq_factor below high_freq_factor, got {low} and {high}")
        return base, RopeScaling(number("factor"), low, high, _first(scaling.get("original_max_position_embeddings"), positions))
    raise SpecError(f"{family}: rope_parameters.rope_type: {_shown(kind)} is not supported, only default, linear and llama3")


def _llama_like(family: Family, read: str = "", **fixed: Any) -> Callable[[dict[str, Any]], DecoderSpec]:
    """Llama and its kin: RMS norms, gated MLP, rotary positions, grouped queries. `read`: further fields that the family has, `fixed`: of the
    spec, or a function of the config. Fields whose defaults differ between families and versions must be there.
    """
    known = set(f"""vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act
        max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters pretraining_tp {read}""".split())
    tied = family in ("gemma2", "gemma3_text")

    def make(c: dict[str, Any]) -> DecoderSpec:
        _refuse_unknown(c, family, known)
        width, heads = _needed(c, family, "hidden_size"), _needed(c, family, "num_attention_heads")
        positions = _needed(c, family, "max_position_embeddings")
        head_dim = _needed(c, family, "head_dim") if family in ("qwen3", "gemma2", "gemma3_text") else _head_dim(c, family, width, heads)
        kv_heads = _needed(c, family, "num_key_value_heads", heads if family in ("llama", "olmo2") else None)
        base, scaling = _rope(c, family, positions)
        activation = ("hidden_activation", "gelu_pytorch_tanh") if "hidden_activation" in known else ("hidden_act", "silu")
        return DecoderSpec(
            family=family, vocab_size=_needed(c, family, "vocab_size"), max_positions=positions, num_layers=_needed(c, family, "num_hidden_layers"),
            width=width, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, mlp_width=_needed(c, family, "intermediate_size"),
            activation=_activation(c, family, *activation), norm="rms", norm_eps=float(_needed(c, family, "rms_norm_eps")),
            gated_mlp=True, positions="rotary", rotary_dim=head_dim, rotary_base=base, rope_scaling=scaling,
            tied_head=bool(c.get("tie_word_embeddings", tied)), init_std=float(_needed(c, family, "initializer_range", 0.02)),
            **{name: value(c) if callable(value) else value for name, value in fixed.items()},
        )

    return make


def _flag(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda c: bool(c.get(name, False))


def _no_window(family: str) -> Callable[[dict[str, Any]], None]:
    """Qwen's configs carry a window that is off; alternating layers of it are not supported."""

    def check(c: dict[str, Any]) -> None:
        _refuse_unless(c, family, use_sliding_window=False)
        if set(c.get("layer_types") or ["full_attention"]) != {"full_attention"}:
            raise SpecError(f"{family}: layer_types: only 'full_attention' is supported")

    return check


def _gemma(family: Family, read: str = "", *, full_every: int, **fixed: Any) -> Callable[[dict[str, Any]], DecoderSpec]:
    """Gemma 2 and 3: norms around attention and MLP, scaled embeddings, local layers but for every full_every-th."""

    def local_layers(c: dict[str, Any]) -> tuple[bool, ...]:
        if c.get("use_bidirectional_attention"):
            raise SpecError(f"{family}: use_bidirectional_attention: True is not supported")
        layers, every = _needed(c, family, "num_hidden_layers"), _needed(c, family, "sliding_window_pattern", full_every)
        kinds = c.get("layer_types") or ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)]
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise SpecError(f"{family}: layer_types: expected full_attention or sliding_attention for each of {layers} layers")
        return tuple(kind == "sliding_attention" for kind in kinds)

    def softcap(name: str) -> Callable[[dict[str, Any]], float | None]:
        return lambda c: None if c.get(name) is None else float(c[name])

    return _llama_like(
        family, f"""attention_bias hidden_activation query_pre_attn_scalar sliding_window layer_types final_logit_softcapping
        attn_logit_softcapping use_bidirectional_attention cache_implementation {read}""",
        qkv_bias=_flag("attention_bias"), out_bias=_flag("attention_bias"), mlp_bias=False, norms="both", norm_offset=1.0,
        query_scale=lambda c: _needed(c, family, "query_pre_attn_scalar") ** -0.5, embed_scale=lambda c: float(c["hidden_size"]) ** 0.5,
        window=lambda c: _needed(c, family, "sliding_window"), local_layers=local_layers, attn_softcap=softcap("attn_logit_softcapping"),
        logit_softcap=softcap("final_logit_softcapping"), **fixed,
    )


def _gemma3_local_base(c: dict[str, Any]) -> float:
    local = (c.get("rope_parameters") or {}).get("sliding_attention") or {}
    if _rope_kind(local) != "default":
        raise SpecError(f"gemma3_text: rope_parameters.sliding_attention.rope_type: {_shown(_rope_kind(local))} is not supported, only 'default'")
    return float(_first(local.get("rope_theta"), c.get("rope_local_base_freq"), 10000.0))


_QWEN = "use_sliding_window sliding_window max_window_layers layer_types"
_READERS: dict[str, Callable[[dict[str, Any]], DecoderSpec]] = {
    "gpt2": _gpt2_like("gpt2", "gelu_new", "scale_attn_by_inverse_layer_idx"),
    "gpt_bigcode": _gpt2_like("gpt_bigcode", "gelu_pytorch_tanh", """multi_query num_key_value_heads attention_softmax_in_fp32
        scale_attention_softmax_in_fp32 inference_runner pre_allocate_kv_cache max_sequence_length max_batch_size pad_key_length
        validate_runner_input""", multi_query=True),
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "llama": _llama_like("llama", "attention_bias mlp_bias", qkv_bias=_flag("attention_bias"), out_bias=_flag("attention_bias"), mlp_bias=_flag("mlp_bias")),
    "mistral": _llama_like("mistral", "sliding_window", qkv_bias=False, out_bias=False, mlp_bias=False, window=lambda c: c.get("sliding_window", 4096)),
    "qwen2": _llama_like("qwen2", _QWEN, qkv_bias=True, out_bias=False, mlp_bias=False, window=_no_window("qwen2")),
    "qwen3": _llama_like("qwen3", f"{_QWEN} attention_bias", qkv_bias=_flag("attention_bias"), out_bias=_flag("attention_bias"), mlp_bias=False,
                         qk_norm="head", window=_no_window("qwen3")),
    "olmo2": _llama_like("olmo2", "attention_bias", qkv_bias=_flag("attention_bias"), out_bias=_flag("attention_bias"), mlp_bias=False,
                         norms="after", qk_norm="all"),
    "gemma2": _gemma("gemma2", full_every=2),
    "gemma3_text": _gemma("gemma3_text", "rope_local_base_freq _sliding_window_pattern sliding_window_pattern", full_every=6, qk_norm="head",
                          local_rotary_base=_gemma3_local_base),
}


def spec_from_hf(config: dict[str, Any]) -> DecoderSpec:
    """The spec of a Hugging Face config (the content of a config.json). Raises SpecError, one line, for what we cannot run faithfully."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _READERS:
        raise SpecError(f"model_type: unknown architecture {_shown(family)}; known: {', '.join(_READERS)}")
    _check_kinds(config, _KINDS, f"{family}: ")
    return _checked(_READERS[family](config))
