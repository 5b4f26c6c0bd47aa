"""A Hugging Face directory that transformers loads as any other; mask nets lie beside the model, in masks.safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.spec import DecoderSpec
from sparsepo_jax.models.weights import to_hf, to_peft

SHARD_BYTES = 5 * 10**9
_ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "gpt_bigcode": "GPTBigCodeForCausalLM", "gptj": "GPTJForCausalLM",
                  "gpt_neox": "GPTNeoXForCausalLM",
                  "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "olmo2": "Olmo2ForCausalLM",
                  "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}


def save_hf(
    directory: Path, spec: DecoderSpec, hf_config: Mapping[str, Any], weights: Mapping[str, Any], masks: Mapping[str, Any], card: str,
    *, shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, generation_config.json, safetensors (float32, sharded beyond shard_bytes), masks.safetensors and README.md.

    weights: ours by path, on any devices. masks: official tensor names -> arrays; {} writes no file.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = dict(hf_config) | {"architectures": [_ARCHITECTURES[spec.family]], "dtype": "float32", "vocab_size": spec.vocab_size}
    config.pop("torch_dtype", None)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(name) is not None}
    (directory / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
    for old in (*directory.glob("model*.safetensors"), *directory.glob("model.safetensors.index.json")):
        old.unlink()
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in to_hf(spec, weights):
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = np.ascontiguousarray(tensor, np.float32)
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        for name, shard in zip(names, shards, strict=True):
            save_file(shard, directory / name, metadata={"format": "pt"})
        index = {"metadata": {"total_size": sum(x.nbytes for shard in shards for x in shard.values())},
                 "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    _save_masks(directory, masks)
    (directory / "README.md").write_text(card)


def save_peft(
    directory: Path, spec: DecoderSpec, adapters: Mapping[str, Any], lora: Lora, masks: Mapping[str, Any], card: str, base: str | None
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which PEFT loads onto the base model, masks.safetensors and README.md.

    base: the base model's path or id, None if it has no name.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors, ranks = {}, {}
    for module, name, a, b in to_peft(spec, adapters):
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        ranks[name] = len(a)
    # A fused module's rank is a multiple of ours: its alpha grows so that the scale stays.
    alphas = {name: lora.scale * (rank**0.5 if lora.rslora else rank) for name, rank in ranks.items()}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True, "bias": "none",
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.rslora, "fan_in_fan_out": spec.family == "gpt2",
        "target_modules": sorted(ranks), "rank_pattern": {name: rank for name, rank in ranks.items() if rank != lora.rank},
        "alpha_pattern": {name: alphas[name] for name, rank in ranks.items() if rank != lora.rank},
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    _save_masks(directory, masks)
    (directory / "README.md").write_text(card)


def _save_masks(directory: Path, masks: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    (directory / "masks.safetensors").unlink(missing_ok=True)
    if masks:
        save_file({name: np.ascontiguousarray(x, np.float32) for name, x in masks.items()}, directory / "masks.safetensors", metadata={"format": "pt"})


def make_card(
    name: str, *, origin: str, trained: list[str], objective: str | None, has_masks: bool, summary: str | None, config: str
) -> str:
    """The model card (Markdown): how the model came about. summary: JSON text of the evaluation, config: YAML text of the run."""
    lines = ["---", "library_name: transformers", "tags: [sparsepo_jax, preference-optimisation]", "---", "", f"# {name}", "",
             f"Trained with sparsepo_jax from {origin}: {', '.join(trained) or 'not trained further'}"
             + (f" (objective {objective})." if objective else "."), ""]
    if has_masks:
        lines += ["`masks.safetensors` holds the mask nets, under the official names; transformers and vLLM do not need it.", ""]
    if summary:
        lines += ["Evaluation (summary.json of the run):", "", "```json", summary.rstrip(), "```", ""]
    return "\n".join([*lines, "Configuration:", "", "```yaml", config.rstrip(), "```", ""])
