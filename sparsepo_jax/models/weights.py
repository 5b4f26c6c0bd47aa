"""Hugging Face safetensors <-> our decoder: one table a family, read in both directions.

A rule pairs the name of a Hugging Face tensor with paths of ours and says how the one becomes the other. Names with {i} stand for every
layer. Errors are collected: a checkpoint with three wrong tensors is told so once.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.models.directory import read_config, said_dtype, weight_files
from sparsepo_jax.models.spec import DecoderSpec


@dataclass(frozen=True)
class Rule:
    """`split` turns the Hugging Face tensor into one array per path of ours, `join` is its inverse."""

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    join: Callable[..., np.ndarray]


def _same(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,), lambda x: (x,), lambda x: x)


def _transposed(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [_same(f"{theirs}.weight", f"{ours}.scale"), _same(f"{theirs}.bias", f"{ours}.bias")]


def _projections(part: str) -> tuple[str, ...]:
    return tuple(f"blocks.attention.{name}.{part}" for name in ("query", "key", "value"))


def _by_head(
    spec: DecoderSpec,
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, ...]], Callable[..., np.ndarray]]:
    """(split, join) of a fused projection [heads x (q | k | v), ...]: weight [3 D, D] -> three kernels [D, D], bias [3 D] -> three."""
    N, H = spec.num_heads, spec.head_dim

    def split(x):
        return tuple(
            part.reshape(N * H, *x.shape[1:]).T
            for part in np.moveaxis(x.reshape(N, 3, H, *x.shape[1:]), 1, 0)
        )

    def join(*parts):
        stacked = np.stack([part.T.reshape(N, H, *part.T.shape[1:]) for part in parts], axis=1)
        return stacked.reshape(3 * N * H, *stacked.shape[3:])

    return split, join


def _one_after_another(sizes: tuple[int, ...], axis: int, *, transposed: bool) -> tuple[Callable, Callable]:
    """(split, join) of a fused projection q | k | v of these output sizes."""
    ends = np.cumsum(sizes)[:-1]
    turned = (lambda x: x.T) if transposed else (lambda x: x)
    return (
        lambda x: tuple(turned(part) for part in np.split(x, ends, axis=axis)),
        lambda *parts: np.concatenate([turned(part) for part in parts], axis=axis),
    )


def _gpt2(spec: DecoderSpec) -> list[Rule]:
    """GPT-2 stores [in, out] (Conv1D), GPTBigCode [out, in]."""
    h, conv = "transformer.h.{i}", spec.family == "gpt2"
    sizes = tuple(heads * spec.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads))
    if conv or spec.num_kv_heads == 1:
        split, join = _one_after_another(sizes, -1 if conv else 0, transposed=not conv)
    else:
        split, join = _by_head(spec)
    kernel = _same if conv else _transposed
    rules = [
        _same("transformer.wte.weight", "embed.embedding"),
        _same("transformer.wpe.weight", "embed_positions.embedding"),
        *_norm(f"{h}.ln_1", "blocks.attn_norm"),
        *_norm(f"{h}.ln_2", "blocks.mlp_norm"),
        Rule(f"{h}.attn.c_attn.weight", _projections("kernel"), split, join),
        Rule(f"{h}.attn.c_attn.bias", _projections("bias"), split, join),
        *_norm("transformer.ln_f", "final_norm"),
    ]
    for theirs, ours in (("attn.c_proj", "attention.out"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down")):
        rules += [
            kernel(f"{h}.{theirs}.weight", f"blocks.{ours}.kernel"),
            _same(f"{h}.{theirs}.bias", f"blocks.{ours}.bias"),
        ]
    return rules + ([] if spec.tied_head else [_same("lm_head.weight", "head.embedding")])


def _gptj(spec: DecoderSpec) -> list[Rule]:
    """GPT-J rotates neighbouring dims; ours rotates halves. The dims of queries and keys are put in our order: their products do not change."""
    h, N, H, R = "transformer.h.{i}", spec.num_heads, spec.head_dim, spec.rotary_dim
    order = np.concatenate([np.arange(0, R, 2), np.arange(1, R, 2), np.arange(R, H)])

    def reordered(theirs: str, ours: str) -> Rule:
        def put(x, places):  # [N * H, D]
            return x.reshape(N, H, -1)[:, places].reshape(x.shape)

        return Rule(theirs, (ours,), lambda x: (put(x, order).T,), lambda x: put(x.T, np.argsort(order)))

    rules = [
        _same("transformer.wte.weight", "embed.embedding"),
        *_norm(f"{h}.ln_1", "blocks.attn_norm"),
        reordered(f"{h}.attn.q_proj.weight", "blocks.attention.query.kernel"),
        reordered(f"{h}.attn.k_proj.weight", "blocks.attention.key.kernel"),
        _transposed(f"{h}.attn.v_proj.weight", "blocks.attention.value.kernel"),
        _transposed(f"{h}.attn.out_proj.weight", "blocks.attention.out.kernel"),
        *_norm("transformer.ln_f", "final_norm"),
        _same("lm_head.bias", "head_bias"),
    ]
    for theirs, ours in (("mlp.fc_in", "up"), ("mlp.fc_out", "down")):
        rules += [
            _transposed(f"{h}.{theirs}.weight", f"blocks.{ours}.kernel"),
            _same(f"{h}.{theirs}.bias", f"blocks.{ours}.bias"),
        ]
    return rules + ([] if spec.tied_head else [_same("lm_head.weight", "head.embedding")])


def _gpt_neox(spec: DecoderSpec) -> list[Rule]:
    h, (split, join) = "gpt_neox.layers.{i}", _by_head(spec)
    rules = [
        _same("gpt_neox.embed_in.weight", "embed.embedding"),
        *_norm(f"{h}.input_layernorm", "blocks.attn_norm"),
        *_norm(f"{h}.post_attention_layernorm", "blocks.mlp_norm"),
        Rule(f"{h}.attention.query_key_value.weight", _projections("kernel"), split, join),
        _transposed(f"{h}.attention.dense.weight", "blocks.attention.out.kernel"),
        *_norm("gpt_neox.final_layer_norm", "final_norm"),
    ]
    if spec.qkv_bias:
        rules += [
            Rule(f"{h}.attention.query_key_value.bias", _projections("bias"), split, join),
            _same(f"{h}.attention.dense.bias", "blocks.attention.out.bias"),
        ]
    for theirs, ours in (("mlp.dense_h_to_4h", "up"), ("mlp.dense_4h_to_h", "down")):
        rules += [
            _transposed(f"{h}.{theirs}.weight", f"blocks.{ours}.kernel"),
            _same(f"{h}.{theirs}.bias", f"blocks.{ours}.bias"),
        ]
    return rules + ([] if spec.tied_head else [_same("embed_out.weight", "head.embedding")])


def _llama(spec: DecoderSpec) -> list[Rule]:
    h = "model.layers.{i}"
    linears = [
        (f"self_attn.{theirs}_proj", f"attention.{ours}", bias)
        for theirs, ours, bias in (
            ("q", "query", spec.qkv_bias),
            ("k", "key", spec.qkv_bias),
            ("v", "value", spec.qkv_bias),
            ("o", "out", spec.out_bias),
        )
    ]
    linears += [(f"mlp.{name}_proj", name, spec.mlp_bias) for name in ("gate", "up", "down")]
    norms = {
        "before": {"input": "attn_norm", "post_attention": "mlp_norm"},
        "after": {"post_attention": "attn_post_norm", "post_feedforward": "mlp_post_norm"},
        "both": {
            "input": "attn_norm",
            "post_attention": "attn_post_norm",
            "pre_feedforward": "mlp_norm",
            "post_feedforward": "mlp_post_norm",
        },
    }[spec.norms]
    scales = {f"{h}.{theirs}_layernorm.weight": f"blocks.{ours}.scale" for theirs, ours in norms.items()} | {
        "model.norm.weight": "final_norm.scale"
    }
    if spec.qk_norm is not None:
        scales |= {
            f"{h}.self_attn.{name[0]}_norm.weight": f"blocks.attention.{name}_norm.scale"
            for name in ("query", "key")
        }
    offset = np.float32(spec.norm_offset)
    rules = [
        Rule(theirs, (ours,), lambda x: (x + offset,), lambda x: x - offset)
        if offset
        else _same(theirs, ours)
        for theirs, ours in scales.items()
    ]
    rules.append(_same("model.embed_tokens.weight", "embed.embedding"))
    for theirs, ours, bias in linears:
        rules += [_transposed(f"{h}.{theirs}.weight", f"blocks.{ours}.kernel")] + (
            [_same(f"{h}.{theirs}.bias", f"blocks.{ours}.bias")] if bias else []
        )
    return rules + ([] if spec.tied_head else [_same("lm_head.weight", "head.embedding")])


_RULES = {
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
# Buffers that old checkpoints carry and no forward pass of ours reads: causal masks, rotary tables.
_BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
)
_HEADS = ("lm_head.weight", "embed_out.weight")
_MASKS = ("common_mask.", "rw_mask.", "kl_mask.")
_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names


def family_rules(spec: DecoderSpec) -> list[Rule]:
    """The table of a decoder's family."""
    return _RULES[spec.family](spec)


def is_mask_tensor(name: str) -> bool:
    """Whether a tensor belongs to the mask nets that the official code stores beside the model's weights."""
    return name.startswith(_MASKS)


class Part(NamedTuple):
    """A tensor's share of one of our arrays: the whole array, or one layer of it."""

    path: str
    layer: int | None
    value: np.ndarray


def stream_hf(
    spec: DecoderSpec, tensors: "Tensors", expected: Mapping[str, tuple[int, ...]], where: str
) -> Iterator[Part]:
    """Parts of our arrays from Hugging Face tensors, each read once, in the order in which they lie in their files.

    expected: the shape of each of our arrays by path. Before anything is read UserError lists every missing, unexpected and wrongly shaped
    tensor. Tensors of the mask nets are left alone; so is the head where it is tied, but for one that is another than the embedding.
    """
    shapes, faults, places = tensors.shapes(), [], {}
    alias = _name_in(spec, shapes)
    for rule in _RULES[spec.family](spec):
        stacked = "{i}" in rule.theirs
        wanted = rule.join(
            *(np.empty(expected[path][1:] if stacked else expected[path], np.bool_) for path in rule.ours)
        ).shape
        for layer in range(spec.num_layers) if stacked else (None,):
            name = alias(rule.theirs.format(i=layer))
            places[name] = rule, layer
            if name not in shapes:
                faults.append(f"{rule.theirs.format(i=layer)} is missing (expected shape {list(wanted)})")
            elif shapes[name] != wanted:
                faults.append(f"{name} has shape {list(shapes[name])}, expected {list(wanted)}")
    tied = set(_HEADS) if spec.tied_head else set()
    for name in sorted(set(shapes) - set(places) - tied):
        if not name.endswith(_BUFFERS) and not is_mask_tensor(name):
            faults.append(f"{name} is not part of this architecture ({spec.family})")
    if faults:
        raise UserError(f"{where}: {len(faults)} tensor(s) do not fit config.json: " + "; ".join(faults))
    _refuse_another_head(tensors, tied & shapes.keys() - places.keys(), alias(_embedding(spec)), where)
    for name, tensor in tensors.read(places):
        rule, layer = places[name]
        parts = [Part(path, layer, value) for path, value in zip(rule.ours, rule.split(tensor), strict=True)]
        del tensor  # what has been handed over must not be held while the next one is read
        while parts:
            yield parts.pop(0)


def _embedding(spec: DecoderSpec) -> str:
    return next(rule.theirs for rule in _RULES[spec.family](spec) if rule.ours == ("embed.embedding",))


def _name_in(spec: DecoderSpec, shapes: Container[str]) -> Callable[[str], str]:
    """The name that a tensor has in a checkpoint: without its prefix in one of the bare trunk, the head's where a tied embedding lies there only."""
    embedding = _embedding(spec)

    def name_in(name: str) -> str:
        found = name if name in shapes else name.split(".", 1)[1]
        if name == embedding and spec.tied_head and found not in shapes:
            return next((head for head in _HEADS if head in shapes), found)
        return found

    return name_in


def _refuse_another_head(tensors: "Tensors", heads: Container[str], embedding: str, where: str) -> None:
    """UserError: config.json says that the head is the embedding, and the checkpoint has another one, which transformers would use."""
    for name, head in tensors.read(heads):
        ((_, embedded),) = tensors.read({embedding})
        if not np.array_equal(head, embedded):
            raise UserError(
                f"{where}: {name} is not {embedding}, though config.json ties them (transformers would not tie them either): set "
                "tie_word_embeddings to false in its config.json"
            )


class Tensors(Protocol):
    """Named arrays whose shapes are known before they are read."""

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, names: Container[str]) -> Iterator[tuple[str, np.ndarray]]: ...


def to_hf(spec: DecoderSpec, tree: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face tensors, one at a time, from our arrays; a tied head is left out, as transformers does."""
    for rule in _RULES[spec.family](spec):
        if "{i}" not in rule.theirs:
            yield rule.theirs, rule.join(*(np.asarray(tree[path]) for path in rule.ours))
            continue
        for layer in range(spec.num_layers):
            yield (
                rule.theirs.format(i=layer),
                rule.join(*(np.asarray(tree[path][layer]) for path in rule.ours)),
            )


def adapted_kernels(adapters: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Path of the base's kernel -> (A [L, in, R], B [L, R, out])."""
    end = ".lora.lora_a"
    return {
        path.removesuffix(end) + ".kernel": (a, adapters[path[:-1] + "b"])
        for path, a in adapters.items()
        if path.endswith(end)
    }


def to_peft(
    spec: DecoderSpec, adapters: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(layer's module by its full name, its name within a layer, lora_A [R, in], lora_B [out, R]) of every adapted Hugging Face module.

    A module that holds several of our projections gets one adapter of their ranks together: rows of A one after the other, B in blocks, so
    that B A is theirs exactly.
    """
    kernels, sizes = (
        adapted_kernels(adapters),
        {f"blocks.{name}.kernel": size for name, size in spec.projections().items()},
    )
    for rule in _RULES[spec.family](spec):
        if not any(path in kernels for path in rule.ours):
            continue
        module = rule.theirs.removesuffix(".weight")
        for layer in range(spec.num_layers):
            parts_A, parts_B, rank = (
                [],
                [],
                sum(kernels[path][0].shape[-1] for path in rule.ours if path in kernels),
            )
            for path in rule.ours:
                block = np.zeros((rank, sizes[path][1]), np.float32)
                if path in kernels:
                    a_DR, b_RF = (np.asarray(x[layer]) for x in kernels[path])
                    begin = sum(len(part) for part in parts_A)
                    parts_A.append(a_DR.T)
                    block[begin : begin + len(b_RF)] = b_RF
                parts_B.append(block)
            joined = rule.join(*parts_B)  # as a kernel whose inputs are the ranks
            b = joined.T if spec.family == "gpt2" else joined  # GPT-2's modules store [in, out]
            yield (
                module.format(i=layer),
                module.split("{i}.")[1],
                np.concatenate(parts_A),
                np.ascontiguousarray(b),
            )


class SafeTensors:
    """The tensors of a checkpoint directory, one file or several: those that transformers would take. No pickle is ever opened."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._files: dict[Path, dict[str, tuple[int, ...]]] = {}
        self._kinds: dict[str, str] = {}
        for path in weight_files(directory):
            with open_safetensors(path) as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                self._files[path] = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
                self._kinds |= {name: tensor.get_dtype() for name, tensor in slices.items()}
        twice = sorted(
            name
            for name, count in Counter(name for shapes in self._files.values() for name in shapes).items()
            if count > 1
        )
        if twice:
            raise UserError(
                f"{directory}: {', '.join(twice[:3])} in two files: keep the files that the index names"
            )

    def dtype(self) -> str:
        """float32, float16 or bfloat16: the type of all weights; where they differ what transformers would make of them: the type that config.json
        names, else that of the first one. Buffers and mask nets do not count; float64 is float32."""
        counted = (name for name in self._kinds if not name.endswith(_BUFFERS) and not is_mask_tensor(name))
        kinds = [_DTYPES[self._kinds[name]] for name in counted if self._kinds[name] in _DTYPES]
        if not kinds:
            return "float32"
        return kinds[0] if len(set(kinds)) == 1 else said_dtype(read_config(self._directory)) or kinds[0]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for shapes in self._files.values() for name, shape in shapes.items()}

    def read(self, names: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float32 array) of those of the names that are there."""
        for path, shapes in self._files.items():
            for name in shapes:
                if name in names:
                    with open_safetensors(
                        path
                    ) as file:  # anew for each: an open file keeps in memory what has been read of it
                        tensor = read_float32(path, file, name)
                    yield name, tensor
                    del tensor


def read_float32(path: Path, file, name: str) -> np.ndarray:
    """A tensor of an opened safetensors file, float32. UserError: it holds no floating-point numbers."""
    try:
        tensor = file.get_tensor(name)
    except Exception as error:  # types that NumPy does not have raise several kinds
        raise UserError(f"{path}: {name} cannot be read ({error}); save it as float32 or bfloat16") from None
    if tensor.dtype.kind in "biu":
        raise UserError(
            f"{path}: {name} holds {tensor.dtype}, not floating-point numbers (a quantised checkpoint?); save it as float32 or bfloat16"
        )
    return tensor.astype(np.float32, copy=False)


def open_safetensors(path: Path):
    """A safetensors file, opened for NumPy. UserError: it is none."""
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
    from safetensors import safe_open

    try:
        return safe_open(path, framework="numpy")
    except Exception as error:  # safetensors raises its own type, not exported
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def find_checkpoint(path: str) -> Path:
    """The local directory of a checkpoint: `path` itself, or the Hub's copy of that id. Raises UserError if it cannot be had."""
    if Path(path).is_dir():
        return Path(path)
    if is_mistyped_path(path):
        raise UserError(
            f"{path}: no such directory (expected a Hugging Face checkpoint directory or a Hub id like owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"])
        )
    except Exception as error:  # the Hub's client raises a dozen types; all mean that it cannot be had
        raise UserError(
            f"{path}: neither a local directory nor reachable on the Hugging Face Hub ({type(error).__name__})"
        ) from error
