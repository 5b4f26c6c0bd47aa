"""What a decoder looks like: a Hugging Face `config.json` read into the few facts our one decoder needs.

No JAX here. Which fields there may be, and what happens to those that are not read, stands in `config_fields`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparsepo_jax.models.config_fields import (
    READ,
    Fields,
    SpecError,
    check_fields,
    needed,
    note_of_ignored,
    shown,
)
from sparsepo_jax.models.rotary_fields import RopeScaling, gemma3_local_base, gpt_neox_rope, read_rope

Family = Literal[
    "gpt2",
    "gpt_bigcode",
    "gptj",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "olmo2",
    "gemma2",
    "gemma3_text",
]


@dataclass(frozen=True)
class DecoderSpec:
    """A transformer decoder. Sizes in units; `rotary_dim` of each head's dims are rotated.

    norms: before attention and MLP, after them, or both; shared_norm: one before both (parallel residual).
    qk_norm: over each head's dims, or over all heads together. window: positions that a token sees back, itself
    included (None: all), in every layer or in `local_layers` only; these may have a rotary base of their own.
    norm_offset: what the stored weights of norms lack to the factor that they are (1 in Gemma).
    query_scale None: 1 / sqrt(head_dim). softcap c: x becomes c tanh(x / c), for attention scores and logits.
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
        D, F, queries, keys = (
            self.width,
            self.mlp_width,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
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
        block += (
            self.qkv_bias * (queries + 2 * keys)
            + self.out_bias * D
            + self.mlp_bias * ((2 if self.gated_mlp else 1) * F + D)
        )
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


# Several names for one function: they differ in how it is computed.
_ACTIVATIONS = {
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


def _refuse_unless(config: dict[str, Any], family: str, **needed: Any) -> None:
    for key, value in needed.items():
        if config.get(key, value) != value:
            raise SpecError(f"{family}: {key}: {shown(config[key])} is not supported, only {value!r}")


def _activation(config: dict[str, Any], family: str, key: str, default: str) -> Any:
    name = config.get(key, default)
    if name not in _ACTIVATIONS:
        raise SpecError(
            f"{family}: {key}: unknown activation {shown(name)}; known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _head_dim(config: dict[str, Any], family: str, width: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return needed(config, family, "head_dim")
    if width % heads:
        raise SpecError(f"{family}: the width {width} is no multiple of the {heads} heads")
    return width // heads


def _checked(spec: DecoderSpec) -> DecoderSpec:
    if spec.num_heads % spec.num_kv_heads:
        raise SpecError(
            f"{spec.family}: {spec.num_heads} query heads are no multiple of the "
            f"{spec.num_kv_heads} key/value heads"
        )
    if spec.positions == "rotary" and (
        spec.rotary_dim < 2 or spec.rotary_dim % 2 or spec.rotary_dim > spec.head_dim
    ):
        raise SpecError(
            f"{spec.family}: {spec.rotary_dim} rotated dims do not fit heads of {spec.head_dim} "
            "(an even number is needed)"
        )
    return spec


def _gpt2_like(
    family: Family, activation: str, *, multi_query: bool = False
) -> Callable[[dict[str, Any]], DecoderSpec]:
    """GPT-2, and GPTBigCode (StarCoderBase): GPT-2 with one key/value head unless its config says otherwise."""

    def make(c: dict[str, Any]) -> DecoderSpec:
        width, heads = needed(c, family, "n_embd", 768), needed(c, family, "n_head", 12)
        kv_heads = 1 if c.get("multi_query", multi_query) else heads
        if c.get("num_key_value_heads") is not None:  # follows from multi_query
            _refuse_unless(c, family, num_key_value_heads=kv_heads)
        return DecoderSpec(
            family=family,
            vocab_size=needed(c, family, "vocab_size", 50257),
            max_positions=needed(c, family, "n_positions", 1024),
            num_layers=needed(c, family, "n_layer", 12),
            width=width,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=_head_dim({}, family, width, heads),
            mlp_width=needed(c, family, "n_inner", 4 * width),
            activation=_activation(c, family, "activation_function", activation),
            norm_eps=float(needed(c, family, "layer_norm_epsilon", 1e-5)),
            positions="learned",
            rotary_dim=0,
            rotary_base=0.0,
            tied_head=bool(c.get("tie_word_embeddings", True)),
            init_std=float(needed(c, family, "initializer_range", 0.02)),
        )

    return make


def _gptj(c: dict[str, Any]) -> DecoderSpec:
    width, heads = needed(c, "gptj", "n_embd"), needed(c, "gptj", "n_head")
    return DecoderSpec(
        family="gptj",
        vocab_size=needed(c, "gptj", "vocab_size"),
        max_positions=needed(c, "gptj", "n_positions"),
        num_layers=needed(c, "gptj", "n_layer"),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_head_dim({}, "gptj", width, heads),
        mlp_width=needed(c, "gptj", "n_inner", 4 * width),
        activation=_activation(c, "gptj", "activation_function", "gelu_new"),
        norm_eps=float(needed(c, "gptj", "layer_norm_epsilon", 1e-5)),
        positions="rotary",
        rotary_dim=needed(c, "gptj", "rotary_dim"),
        rotary_base=10000.0,
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=False,
        out_bias=False,
        head_bias=True,
        tied_head=bool(c.get("tie_word_embeddings", False)),
        init_std=float(needed(c, "gptj", "initializer_range", 0.02)),
    )


def _gpt_neox(c: dict[str, Any]) -> DecoderSpec:
    width, heads = (
        needed(c, "gpt_neox", "hidden_size", 6144),
        needed(c, "gpt_neox", "num_attention_heads", 64),
    )
    head_dim = _head_dim({}, "gpt_neox", width, heads)
    if c.get("head_dim") is not None:  # follows from the two above
        _refuse_unless(c, "gpt_neox", head_dim=head_dim)
    base, share = gpt_neox_rope(c)
    bias = bool(c.get("attention_bias", True))
    return DecoderSpec(
        family="gpt_neox",
        vocab_size=needed(c, "gpt_neox", "vocab_size", 50432),
        max_positions=needed(c, "gpt_neox", "max_position_embeddings", 2048),
        num_layers=needed(c, "gpt_neox", "num_hidden_layers", 44),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_width=needed(c, "gpt_neox", "intermediate_size", 24576),
        activation=_activation(c, "gpt_neox", "hidden_act", "gelu"),
        norm_eps=float(needed(c, "gpt_neox", "layer_norm_eps", 1e-5)),
        positions="rotary",
        rotary_dim=int(head_dim * share),
        rotary_base=base,
        parallel_residual=bool(c.get("use_parallel_residual", True)),
        qkv_bias=bias,
        out_bias=bias,
        tied_head=bool(c.get("tie_word_embeddings", False)),
        init_std=float(needed(c, "gpt_neox", "initializer_range", 0.02)),
    )


def _llama_like(family: Family, **fixed: Any) -> Callable[[dict[str, Any]], DecoderSpec]:
    """Llama and its kin: RMS norms, gated MLP, rotary positions, grouped queries.

    fixed: of the spec, or a function of the config. Fields whose defaults differ between families and versions
    must be there.
    """
    tied = family in ("gemma2", "gemma3_text")

    def make(c: dict[str, Any]) -> DecoderSpec:
        width, heads = needed(c, family, "hidden_size"), needed(c, family, "num_attention_heads")
        positions = needed(c, family, "max_position_embeddings")
        head_dim = (
            needed(c, family, "head_dim")
            if family in ("qwen3", "gemma2", "gemma3_text")
            else _head_dim(c, family, width, heads)
        )
        # null means as many as there are heads; where it is absent, the families' own numbers differ
        alike = family in ("llama", "olmo2") or (
            "num_key_value_heads" in c and not family.startswith("gemma")
        )
        kv_heads = needed(c, family, "num_key_value_heads", heads if alike else None)
        base, scaling = read_rope(c, family, positions)
        activation = (
            ("hidden_activation", "gelu_pytorch_tanh")
            if "hidden_activation" in READ[family]
            else ("hidden_act", "silu")
        )
        return DecoderSpec(
            family=family,
            vocab_size=needed(c, family, "vocab_size"),
            max_positions=positions,
            num_layers=needed(c, family, "num_hidden_layers"),
            width=width,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            mlp_width=needed(c, family, "intermediate_size"),
            activation=_activation(c, family, *activation),
            norm="rms",
            norm_eps=float(needed(c, family, "rms_norm_eps")),
            gated_mlp=True,
            positions="rotary",
            rotary_dim=head_dim,
            rotary_base=base,
            rope_scaling=scaling,
            tied_head=bool(c.get("tie_word_embeddings", tied)),
            init_std=float(needed(c, family, "initializer_range", 0.02)),
            **{name: value(c) if callable(value) else value for name, value in fixed.items()},
        )

    return make


def _flag(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda c: bool(c.get(name, False))


def _no_window(family: str) -> Callable[[dict[str, Any]], None]:
    """Qwen's configs carry a window that is off; alternating layers of it are not supported."""

    def check(c: dict[str, Any]) -> None:
        layers, kinds = needed(c, family, "num_hidden_layers"), c.get("layer_types")
        if kinds is not None and (len(kinds) != layers or set(kinds) != {"full_attention"}):
            raise SpecError(
                f"{family}: layer_types: only 'full_attention' for each of {layers} layers is supported"
            )

    return check


def _gemma(
    family: Family, *, full_every: int, softcaps: tuple[float | None, float | None], **fixed: Any
) -> Callable:
    """Gemma 2 and 3: norms around attention and MLP, scaled embeddings, local layers but for every full_every-th.

    softcaps: of attention scores and logits, where the config does not say.
    """

    def local_layers(c: dict[str, Any]) -> tuple[bool, ...]:
        layers, every = (
            needed(c, family, "num_hidden_layers"),
            needed(c, family, "sliding_window_pattern", full_every),
        )
        kinds = c.get("layer_types") or [
            "sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)
        ]
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise SpecError(
                f"{family}: layer_types: expected full_attention or sliding_attention for each of "
                f"{layers} layers"
            )
        return tuple(kind == "sliding_attention" for kind in kinds)

    def softcap(name: str, default: float | None) -> Callable[[dict[str, Any]], float | None]:
        return lambda c: None if c.get(name, default) is None else float(c.get(name, default))

    return _llama_like(
        family,
        qkv_bias=_flag("attention_bias"),
        out_bias=_flag("attention_bias"),
        mlp_bias=False,
        norms="both",
        norm_offset=1.0,
        query_scale=lambda c: needed(c, family, "query_pre_attn_scalar") ** -0.5,
        embed_scale=lambda c: float(c["hidden_size"]) ** 0.5,
        window=lambda c: needed(c, family, "sliding_window"),
        local_layers=local_layers,
        attn_softcap=softcap("attn_logit_softcapping", softcaps[0]),
        logit_softcap=softcap("final_logit_softcapping", softcaps[1]),
        **fixed,
    )


_READERS: dict[str, Callable[[dict[str, Any]], DecoderSpec]] = {
    "gpt2": _gpt2_like("gpt2", "gelu_new"),
    "gpt_bigcode": _gpt2_like("gpt_bigcode", "gelu_pytorch_tanh", multi_query=True),
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "llama": _llama_like(
        "llama",
        qkv_bias=_flag("attention_bias"),
        out_bias=_flag("attention_bias"),
        mlp_bias=_flag("mlp_bias"),
    ),
    "mistral": _llama_like(
        "mistral",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        window=lambda c: c.get("sliding_window", 4096),
    ),
    "qwen2": _llama_like("qwen2", qkv_bias=True, out_bias=False, mlp_bias=False, window=_no_window("qwen2")),
    "qwen3": _llama_like(
        "qwen3",
        qkv_bias=_flag("attention_bias"),
        out_bias=_flag("attention_bias"),
        mlp_bias=False,
        qk_norm="head",
        window=_no_window("qwen3"),
    ),
    "olmo2": _llama_like(
        "olmo2",
        qkv_bias=_flag("attention_bias"),
        out_bias=_flag("attention_bias"),
        mlp_bias=False,
        norms="after",
        qk_norm="all",
    ),
    "gemma2": _gemma("gemma2", full_every=2, softcaps=(50.0, 30.0)),
    "gemma3_text": _gemma(
        "gemma3_text",
        full_every=6,
        softcaps=(None, None),
        qk_norm="head",
        local_rotary_base=gemma3_local_base,
    ),
}


def _fields(config: Mapping[Any, Any]) -> tuple[str, Fields]:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _READERS:
        raise SpecError(f"model_type: unknown architecture {shown(family)}; known: {', '.join(_READERS)}")
    return family, check_fields(config, family)


def spec_from_hf(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Hugging Face config (the content of a config.json).

    Raises:
        SpecError: In one line, what we cannot run faithfully.
    """
    family, fields = _fields(config)
    return _checked(_READERS[family](fields.config))


def ignored_note(config: Mapping[str, Any], where: str) -> str | None:
    """One line that lists the fields of a config which change nothing; None if there are none.

    Raises:
        SpecError: As `spec_from_hf`.
    """
    family, fields = _fields(config)
    return note_of_ignored(fields.ignored, config, family, where)
