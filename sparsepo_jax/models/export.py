"""A Hugging Face directory that transformers loads as any other; mask nets lie beside the model, in masks.safetensors."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.directory import ADAPTER, GENERATION, INDEX, SINGLE, TOKENIZER_FILES, with_dtype
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.spec import DecoderSpec
from sparsepo_jax.models.weights import to_hf, to_peft

SHARD_BYTES = 5 * 10**9
_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gptj": "GPTJForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def save_hf(
    directory: Path,
    spec: DecoderSpec,
    hf_config: Mapping[str, Any],
    weights: Mapping[str, Any],
    masks: Mapping[str, Any],
    card: str,
    *,
    dtype: str = "float32",
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, generation_config.json, safetensors (sharded beyond shard_bytes), masks.safetensors and README.md.

    weights: ours by path, on any devices. masks: official tensor names -> arrays; {} writes no file. dtype: of the weights, float32, float16 or
    bfloat16. generation: the content of generation_config.json; None writes no file: transformers then reads config.json.
    """
    shards = _cut(
        ((name, _cast(name, tensor, dtype)) for name, tensor in to_hf(spec, weights)), shard_bytes
    )  # before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    config = with_dtype(hf_config, dtype) | {
        "architectures": [_ARCHITECTURES[spec.family]],
        "vocab_size": spec.vocab_size,
    }
    config.pop("transformers_weights", None)  # a file of the checkpoint that was read
    _write_json(directory / "config.json", config)
    if generation is None:
        (directory / GENERATION).unlink(missing_ok=True)
    else:
        _write_json(directory / GENERATION, generation)
    _save_weights(directory, shards)
    _save_masks(directory, masks)
    (directory / "README.md").write_text(card)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _cut(tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> list[dict[str, np.ndarray]]:
    """Tensors in order, in as many parts as hold at most so many bytes."""
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors:
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def _save_weights(directory: Path, shards: list[dict[str, np.ndarray]]) -> None:
    """model.safetensors, or several files and their index, in place of what is there."""
    from safetensors.numpy import save_file

    for old in (*directory.glob("model*.safetensors"), *directory.glob(INDEX)):
        old.unlink()
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE, metadata={"format": "pt"})
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(x.nbytes for shard in shards for x in shard.values())},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """UserError: a number that float16 cannot hold."""
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(tensor, kind)
    if dtype == "float16" and not np.isfinite(cast).all() and np.isfinite(tensor).all():
        raise UserError(
            f"export.dtype: {name} holds {np.abs(tensor).max():.3g}, too large for float16; set it to bfloat16 or float32"
        )
    return cast


def copy_tokenizer(source: Path, directory: Path) -> None:
    """The files of a tokenizer, its chat templates and processors, as they are, in place of those in `directory`, which is another one."""
    for old in _tokenizer_files(directory):
        old.unlink()
    for path in _tokenizer_files(source):
        target = directory / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _tokenizer_files(directory: Path) -> list[Path]:
    return [path for pattern in TOKENIZER_FILES for path in sorted(directory.glob(pattern)) if path.is_file()]


def save_peft(
    directory: Path,
    spec: DecoderSpec,
    adapters: Mapping[str, Any],
    lora: Lora,
    masks: Mapping[str, Any],
    card: str,
    base: str | None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which PEFT loads onto the base model, masks.safetensors and README.md.

    base: the base model's path or id.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors, ranks = {}, {}
    for module, name, a, b in to_peft(spec, adapters):
        tensors |= {
            f"base_model.model.{module}.lora_A.weight": a,
            f"base_model.model.{module}.lora_B.weight": b,
        }
        ranks[name] = len(a)
    # A fused module's rank is a multiple of ours: its alpha grows so that the scale stays.
    alphas = {name: lora.scale * (rank**0.5 if lora.rslora else rank) for name, rank in ranks.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "fan_in_fan_out": spec.family == "gpt2",
        "target_modules": sorted(ranks),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != lora.rank},
        "alpha_pattern": {name: alphas[name] for name, rank in ranks.items() if rank != lora.rank},
    }
    _write_json(directory / ADAPTER, config)
    save_file(
        {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()},
        directory / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    _save_masks(directory, masks)
    (directory / "README.md").write_text(card)


def _save_masks(directory: Path, masks: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    (directory / "masks.safetensors").unlink(missing_ok=True)
    if masks:
        save_file(
            {name: np.ascontiguousarray(x, np.float32) for name, x in masks.items()},
            directory / "masks.safetensors",
            metadata={"format": "pt"},
        )


def make_card(
    name: str,
    *,
    origin: str,
    trained: list[str],
    objective: str | None,
    has_masks: bool,
    summary: str | None,
    config: str,
) -> str:
    """The model card (Markdown): how the model came about. summary: JSON text of the evaluation, config: YAML text of the run."""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [sparsepo_jax, preference-optimisation]",
        "---",
        "",
        f"# {name}",
        "",
        f"Trained with sparsepo_jax from {origin}: {', '.join(trained) or 'not trained further'}"
        + (f" (objective {objective})." if objective else "."),
        "",
    ]
    if has_masks:
        lines += [
            "`masks.safetensors` holds the mask nets, under the official names; transformers and vLLM do not need it.",
            "",
        ]
    if summary:
        lines += ["Evaluation (summary.json of the run):", "", "```json", summary.rstrip(), "```", ""]
    return "\n".join([*lines, "Configuration:", "", "```yaml", config.rstrip(), "```", ""])
