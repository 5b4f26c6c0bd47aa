"""Which Hugging Face tensor is which of our arrays: one table a family, read in both directions.

A rule pairs the name of a Hugging Face tensor with paths of ours and says how one becomes the other. A name
with {i} stands for the tensors of all layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsepo_jax.models.decoder_spec import DecoderSpec

Split = Callable[[np.ndarray], tuple[np.ndarray, ...]]
Join = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Rule:
    """One row of a family's table.

    Attributes:
        theirs: name of the Hugging Face tensor.
        ours: paths of the arrays that it holds.
        split: turns the tensor (of one layer) into an array for each path.
        join: the inverse of `split`: arrays in the order of `ours` become the tensor.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Split
    join: Join

    @property
    def per_layer(self) -> bool:
        """Whether there is such a tensor in each layer."""
        return "{i}" in self.theirs


def family_rules(spec: DecoderSpec) -> list[Rule]:
    """The table of a decoder's family, in the order in which tensors are written.

    Args:
        spec: the decoder.
    """
    return _TABLES[spec.family](spec)


# ---------------------------------------------------------------- kinds of rules


def _same(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,), lambda x: (x,), lambda x: x)


def _transposed(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def _with_offset(theirs: str, ours: str, offset: float) -> Rule:
    """A scale that is stored as what it lacks to `offset` (1 in Gemma)."""
    if not offset:
        return _same(theirs, ours)
    added = np.float32(offset)
    return Rule(theirs, (ours,), lambda x: (x + added,), lambda x: x - added)


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [_same(f"{theirs}.weight", f"{ours}.scale"), _same(f"{theirs}.bias", f"{ours}.bias")]


def _linear(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """A projection stored as [out, in]; ours is [in, out]."""
    rules = [_transposed(f"{theirs}.weight", f"{ours}.kernel")]
    if bias:
        rules.append(_same(f"{theirs}.bias", f"{ours}.bias"))
    return rules


def _conv(theirs: str, ours: str) -> list[Rule]:
    """A projection stored as [in, out]: GPT-2's Conv1D."""
    return [_same(f"{theirs}.weight", f"{ours}.kernel"), _same(f"{theirs}.bias", f"{ours}.bias")]


def _head(spec: DecoderSpec, theirs: str) -> list[Rule]:
    return [] if spec.tied_head else [_same(theirs, "head.embedding")]


# ---------------------------------------------------------------- fused projections


def _fused(theirs: str, split: Split, join: Join, *, bias: bool = True) -> list[Rule]:
    """Queries, keys and values in one module."""
    rules = [Rule(f"{theirs}.weight", _query_key_value("kernel"), split, join)]
    if bias:
        rules.append(Rule(f"{theirs}.bias", _query_key_value("bias"), split, join))
    return rules


def _query_key_value(part: str) -> tuple[str, ...]:
    return tuple(f"blocks.attention.{name}.{part}" for name in ("query", "key", "value"))


def _by_head(spec: DecoderSpec) -> tuple[Split, Join]:
    """(split, join) of rows that hold q, k and v of one head after the other, N x (q | k | v).

    A weight [3 D, D] becomes three kernels [D, D], a bias [3 D] three biases [D].
    """
    N, H = spec.num_heads, spec.head_dim

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        features = x.shape[1:]
        parts = np.moveaxis(x.reshape(N, 3, H, *features), 1, 0)
        return tuple(part.reshape(N * H, *features).T for part in parts)

    def join(*parts: np.ndarray) -> np.ndarray:
        stacked = np.stack([part.T.reshape(N, H, *part.T.shape[1:]) for part in parts], axis=1)
        return stacked.reshape(3 * N * H, *stacked.shape[3:])

    return split, join


def _one_after_another(sizes: tuple[int, ...], axis: int, *, transposed: bool) -> tuple[Split, Join]:
    """(split, join) of q | k | v along an axis.

    Args:
        sizes: outputs of q, k and v.
        axis: of the Hugging Face tensor.
        transposed: whether it is stored as [out, in].
    """
    ends = np.cumsum(sizes)[:-1]

    def turned(x: np.ndarray) -> np.ndarray:
        return x.T if transposed else x

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(turned(part) for part in np.split(x, ends, axis=axis))

    def join(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([turned(part) for part in parts], axis=axis)

    return split, join


# ---------------------------------------------------------------- families


def _gpt2(spec: DecoderSpec) -> list[Rule]:
    """GPT-2 stores projections as [in, out], GPTBigCode as [out, in]."""
    layer = "transformer.h.{i}"
    conv = spec.family == "gpt2"
    projection = _conv if conv else _linear
    if conv or spec.num_kv_heads == 1:
        sizes = tuple(n * spec.head_dim for n in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads))
        split, join = _one_after_another(sizes, -1 if conv else 0, transposed=not conv)
    else:
        split, join = _by_head(spec)
    return [
        _same("transformer.wte.weight", "embed.embedding"),
        _same("transformer.wpe.weight", "embed_positions.embedding"),
        *_norm(f"{layer}.ln_1", "blocks.attn_norm"),
        *_norm(f"{layer}.ln_2", "blocks.mlp_norm"),
        *_fused(f"{layer}.attn.c_attn", split, join),
        *_norm("transformer.ln_f", "final_norm"),
        *projection(f"{layer}.attn.c_proj", "blocks.attention.out"),
        *projection(f"{layer}.mlp.c_fc", "blocks.up"),
        *projection(f"{layer}.mlp.c_proj", "blocks.down"),
        *_head(spec, "lm_head.weight"),
    ]


def _gptj(spec: DecoderSpec) -> list[Rule]:
    """GPT-J rotates neighbouring dims, ours the two halves of a head.

    The dims of queries and keys are put in our order, which does not change their products.
    """
    layer = "transformer.h.{i}"
    N, H, rotary_dim = spec.num_heads, spec.head_dim, spec.rotary_dim
    evens, odds = np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2)
    order = np.concatenate([evens, odds, np.arange(rotary_dim, H)])
    inverse = np.argsort(order)

    def reordered(theirs: str, ours: str) -> Rule:
        def put(x: np.ndarray, dims: np.ndarray) -> np.ndarray:  # [N * H, D]
            return x.reshape(N, H, -1)[:, dims].reshape(x.shape)

        return Rule(theirs, (ours,), lambda x: (put(x, order).T,), lambda x: put(x.T, inverse))

    return [
        _same("transformer.wte.weight", "embed.embedding"),
        *_norm(f"{layer}.ln_1", "blocks.attn_norm"),
        reordered(f"{layer}.attn.q_proj.weight", "blocks.attention.query.kernel"),
        reordered(f"{layer}.attn.k_proj.weight", "blocks.attention.key.kernel"),
        *_linear(f"{layer}.attn.v_proj", "blocks.attention.value", bias=False),
        *_linear(f"{layer}.attn.out_proj", "blocks.attention.out", bias=False),
        *_norm("transformer.ln_f", "final_norm"),
        _same("lm_head.bias", "head_bias"),
        *_linear(f"{layer}.mlp.fc_in", "blocks.up"),
        *_linear(f"{layer}.mlp.fc_out", "blocks.down"),
        *_head(spec, "lm_head.weight"),
    ]


def _gpt_neox(spec: DecoderSpec) -> list[Rule]:
    layer = "gpt_neox.layers.{i}"
    split, join = _by_head(spec)
    return [
        _same("gpt_neox.embed_in.weight", "embed.embedding"),
        *_norm(f"{layer}.input_layernorm", "blocks.attn_norm"),
        *_norm(f"{layer}.post_attention_layernorm", "blocks.mlp_norm"),
        *_fused(f"{layer}.attention.query_key_value", split, join, bias=spec.qkv_bias),
        *_linear(f"{layer}.attention.dense", "blocks.attention.out", bias=spec.out_bias),
        *_norm("gpt_neox.final_layer_norm", "final_norm"),
        *_linear(f"{layer}.mlp.dense_h_to_4h", "blocks.up"),
        *_linear(f"{layer}.mlp.dense_4h_to_h", "blocks.down"),
        *_head(spec, "embed_out.weight"),
    ]


# Their layer norms -> ours, by where a family norms.
_LLAMA_NORMS = {
    "before": {"input": "attn_norm", "post_attention": "mlp_norm"},
    "after": {"post_attention": "attn_post_norm", "post_feedforward": "mlp_post_norm"},
    "both": {
        "input": "attn_norm",
        "post_attention": "attn_post_norm",
        "pre_feedforward": "mlp_norm",
        "post_feedforward": "mlp_post_norm",
    },
}


def _llama(spec: DecoderSpec) -> list[Rule]:
    """Llama and its kin: Mistral, Qwen, OLMo 2, Gemma."""
    layer = "model.layers.{i}"
    scales = {
        f"{layer}.{theirs}_layernorm.weight": f"blocks.{ours}.scale"
        for theirs, ours in _LLAMA_NORMS[spec.norms].items()
    }
    scales["model.norm.weight"] = "final_norm.scale"
    if spec.qk_norm is not None:
        scales[f"{layer}.self_attn.q_norm.weight"] = "blocks.attention.query_norm.scale"
        scales[f"{layer}.self_attn.k_norm.weight"] = "blocks.attention.key_norm.scale"
    return [
        *(_with_offset(theirs, ours, spec.norm_offset) for theirs, ours in scales.items()),
        _same("model.embed_tokens.weight", "embed.embedding"),
        *_linear(f"{layer}.self_attn.q_proj", "blocks.attention.query", bias=spec.qkv_bias),
        *_linear(f"{layer}.self_attn.k_proj", "blocks.attention.key", bias=spec.qkv_bias),
        *_linear(f"{layer}.self_attn.v_proj", "blocks.attention.value", bias=spec.qkv_bias),
        *_linear(f"{layer}.self_attn.o_proj", "blocks.attention.out", bias=spec.out_bias),
        *_linear(f"{layer}.mlp.gate_proj", "blocks.gate", bias=spec.mlp_bias),
        *_linear(f"{layer}.mlp.up_proj", "blocks.up", bias=spec.mlp_bias),
        *_linear(f"{layer}.mlp.down_proj", "blocks.down", bias=spec.mlp_bias),
        *_head(spec, "lm_head.weight"),
    ]


_TABLES: dict[str, Callable[[DecoderSpec], list[Rule]]] = {
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt2,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "olmo2": _llama,
    "gemma2": _llama,
    "gemma3_text": _llama,
}
