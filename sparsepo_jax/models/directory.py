"""What the files of a Hugging Face checkpoint directory mean, as transformers takes them. No JAX here.

config.json               the model's shape; what it says of generation counts only where there is no generation_config.json
generation_config.json    how the model answers, the tokens that end an answer among it
model.safetensors         the weights; else the files that model.safetensors.index.json names. Other files of weights are not read
adapter_config.json       an adapter for another model, or for the one beside it
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError

SINGLE, INDEX, GENERATION, ADAPTER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
    "adapter_config.json",
)
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What transformers' tokenizers and processors read.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
_BEGINS_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_FLOATS = ("float32", "float16", "bfloat16")


def read_config(directory: Path, setting: str = "policy") -> dict[str, Any]:
    """The content of config.json. UserError: there is none, or what lies there is an adapter. setting: policy or reference."""
    file = directory / "config.json"
    if not file.exists():
        if (problem := adapter_problem(directory, setting)) is not None:
            raise UserError(f"{directory}: {problem}")
        raise UserError(f"{directory}: expected a config.json (a Hugging Face checkpoint), found none")
    return _read_object(file)


def read_generation_config(directory: Path) -> dict[str, Any] | None:
    """The content of generation_config.json, None if there is none."""
    file = directory / GENERATION
    return _read_object(file) if file.exists() else None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any] | None) -> list[int]:
    """Ids of the tokens that end the model's answers, in order: by generation_config.json where there is one, else by config.json."""
    name, content = ("config.json", config) if generation is None else (GENERATION, generation)
    value = content.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise UserError(
            f"{name}: eos_token_id: expected a token id, a list of them or null, got {value!s:.60}"
        )
    return ids


def with_end_token(content: Mapping[str, Any], token: int | None) -> dict[str, Any]:
    """A config.json or generation_config.json in which `token`, too, ends answers; as it is where it does so already, or None."""
    known = end_tokens(content, None)
    if token is None or token in known:
        return dict(content)
    return dict(content) | {"eos_token_id": [*known, token] if known else token}


def said_dtype(config: Mapping[str, Any]) -> str | None:
    """float32, float16 or bfloat16 if config.json says that the weights are of this type; `torch_dtype` is the older name."""
    value = config.get("dtype") or config.get("torch_dtype")
    name = str(value).removeprefix("torch.")
    return name if name in _FLOATS else None


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json for weights of this type, said under the names that it has used, else under today's."""
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    return dict(config) | dict.fromkeys(names, dtype)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, those that transformers would take. UserError: there are none, or only pickled ones."""
    config = _read_object(directory / "config.json") if (directory / "config.json").exists() else {}
    chosen = config.get("transformers_weights")
    if chosen is not None:
        return _chosen_files(directory, chosen)
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    if (problem := pickle_problem(directory)) is not None:
        raise UserError(f"{directory}: {problem}")
    raise UserError(f"{directory}: expected {SINGLE} or {INDEX}, found neither")


def _chosen_files(directory: Path, name: Any) -> list[Path]:
    """config.json may name the file, or the index."""
    fits = isinstance(name, str) and name.endswith((".safetensors", ".safetensors.index.json"))
    if not fits or Path(name).name != name:
        raise UserError(
            f"{directory}: config.json: transformers_weights: expected a safetensors file or index of the same directory, "
            f"got {name!s:.60}"
        )
    if not (directory / name).is_file():
        raise UserError(
            f"{directory}: {name}, which config.json names (transformers_weights), is missing: download or copy it"
        )
    return _shards(directory / name) if name.endswith(".json") else [directory / name]


def _shards(index: Path) -> list[Path]:
    """The files of a checkpoint in several, which lie beside their index; files that it does not name are left over from another one."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{index}: expected a JSON object with weight_map, tensor -> file; download or copy it again"
        ) from None
    outside = next(
        (
            name
            for name in sorted(map(str, names))
            if Path(name).name != name or not name.endswith(".safetensors")
        ),
        None,
    )
    if outside is not None:
        raise UserError(f"{index}: expected safetensors files of the same directory, got {outside!r:.80}")
    missing = next((name for name in sorted(names) if not (index.parent / name).exists()), None)
    if missing is not None:
        raise UserError(f"{index.parent}: {missing}, named by the index, is missing: download or copy it")
    return [index.parent / name for name in sorted(names)]


def pickle_problem(directory: Path) -> str | None:
    """What to do with a directory whose weights are pickled, which we never open; None if they are not."""
    if any((directory / name).is_file() for name in (SINGLE, INDEX)):
        return None
    found = next((name for name in _PICKLED if (directory / name).is_file()), None)
    if found is None:
        return None
    return (
        f"expected {SINGLE} or {INDEX}, found {found}, a pickle, which may run code and is not opened; convert it once, where "
        "torch is: python -c "
        f"\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{directory}', dtype='auto').save_pretrained('{directory}')\""
    )


def adapter_problem(directory: Path, setting: str = "policy") -> str | None:
    """What to set for a directory that holds a PEFT adapter and no model; None if it is none. setting: policy or reference."""
    if (directory / "config.json").exists() or not (directory / ADAPTER).is_file():
        return None
    try:
        base = _read_object(directory / ADAPTER).get("base_model_name_or_path")
    except UserError as error:
        return f"a PEFT adapter, whose {ADAPTER} cannot be read ({error})"
    named = f"for {base}" if isinstance(base, str) and base else "that does not say for which model"
    return (
        f"this is a PEFT adapter {named}, not a model: set {setting}.path={base if isinstance(base, str) and base else 'BASE'} "
        f"{setting}.adapter={directory}"
    )


def inner_adapter_problem(directory: Path, setting: str = "policy") -> str | None:
    """What to do with a model that has an adapter beside it, which transformers (with PEFT) would put onto it; None if it has none."""
    if not (directory / ADAPTER).is_file() or not (directory / "config.json").exists():
        return None
    return (
        f"a PEFT adapter ({ADAPTER}) lies beside the model, and transformers would put it onto it: set "
        f"{setting}.adapter={directory} to do so, too, or move the adapter's files away"
    )


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer lies beside the model."""
    return any((directory / name).exists() for name in _BEGINS_A_TOKENIZER)
