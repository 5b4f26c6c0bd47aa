"""What the files of a Hugging Face checkpoint directory mean, as transformers takes them. No JAX here.

config.json              the model's shape; what it says of generation counts without generation_config.json
generation_config.json   how the model answers, and among that the tokens that end an answer
model.safetensors        the weights; else the files that model.safetensors.index.json names; no others
adapter_config.json      an adapter for another model, or for the one beside it
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What transformers' processors of images, videos and sound read.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
# What its tokenizers and processors read.
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
    "tekken.json",
    *PROCESSOR_FILES,
)
_BEGINS_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_FLOATS = ("float32", "float16", "bfloat16")


# ---------------------------------------------------------------- JSON files


def read_json_object(file: Path, setting: str | None = None) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Args:
        file: its path.
        setting: the setting that led here, for the beginning of messages; None: none.

    Raises:
        UserError: it is no JSON, or no object.
    """
    where = f"{file}" if setting is None else f"{setting}: {file}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def read_config(directory: Path, setting: str = "policy") -> dict[str, Any]:
    """The content of config.json.

    Args:
        directory: of a checkpoint.
        setting: policy or reference, for messages.

    Raises:
        UserError: there is none, or the directory holds an adapter.
    """
    file = directory / CONFIG
    if not file.exists():
        if (problem := adapter_problem(directory, setting)) is not None:
            raise UserError(f"{directory}: {problem}")
        raise UserError(f"{directory}: expected a config.json (a Hugging Face checkpoint), found none")
    return read_json_object(file)


def read_generation_config(directory: Path) -> dict[str, Any] | None:
    """The content of generation_config.json; None if there is none.

    Args:
        directory: of a checkpoint.

    Raises:
        UserError: it is no JSON object.
    """
    file = directory / GENERATION
    return read_json_object(file) if file.exists() else None


# ---------------------------------------------------------------- what they say


def end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any] | None) -> list[int]:
    """Ids of the tokens that end the model's answers, in order.

    Args:
        config: the content of config.json, which counts where there is no generation_config.json.
        generation: the content of generation_config.json; None: there is none.

    Raises:
        UserError: `eos_token_id` holds anything but ids.
    """
    if generation is None:
        name, content = CONFIG, config
    else:
        name, content = GENERATION, generation
    value = content.get("eos_token_id", _text_config(content).get("eos_token_id"))
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise UserError(
            f"{name}: eos_token_id: expected a token id, a list of them or null, got {value!s:.60}"
        )
    return ids


def with_end_token(content: Mapping[str, Any], token: int | None) -> dict[str, Any]:
    """The content of config.json or generation_config.json with one more token that ends answers.

    Args:
        content: of the file.
        token: the token's id. Nothing changes if it ends answers already, or is None.
    """
    known = end_tokens(content, None)
    if token is None or token in known:
        return dict(content)
    field = {"eos_token_id": [*known, token] if known else token}
    text = _text_config(content)
    if text and content.get("eos_token_id") is None:
        return {**content, "text_config": text | field}
    return dict(content) | field


def _text_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes a wrapped text model; empty if there is none."""
    text = content.get("text_config")
    return text if isinstance(text, dict) else {}


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """The type of the weights that config.json names (`torch_dtype` is the older field).

    A wrapper may leave it to its text_config.

    Args:
        config: the content of config.json.

    Returns:
        float32, float16 or bfloat16; None if it names none of these.
    """
    text = config.get("text_config")
    configs = (config, text) if isinstance(text, Mapping) else (config,)
    named = (one.get(field) for one in configs for field in ("dtype", "torch_dtype"))
    value = next(filter(None, named), None)
    name = str(value).removeprefix("torch.")
    return name if name in _FLOATS else None


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The content of config.json for weights of another type.

    Args:
        config: the content of config.json; the fields for the type that it has are used again.
        dtype: float32, float16 or bfloat16.
    """
    fields = {"dtype", "torch_dtype"}
    changed = dict(config) | dict.fromkeys(fields & config.keys() or {"dtype"}, dtype)
    if named := fields & _text_config(config).keys():
        changed["text_config"] = config["text_config"] | dict.fromkeys(named, dtype)
    return changed


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer lies beside the model.

    Args:
        directory: of a checkpoint.
    """
    return any((directory / name).exists() for name in _BEGINS_A_TOKENIZER)


# ---------------------------------------------------------------- files of weights


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights: those that transformers would take.

    Args:
        directory: of a checkpoint.

    Raises:
        UserError: there are none, or only pickled ones.
    """
    config = read_json_object(directory / CONFIG) if (directory / CONFIG).exists() else {}
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
    """The files behind the file or index that config.json names."""
    fits = isinstance(name, str) and name.endswith((".safetensors", ".safetensors.index.json"))
    if not fits or Path(name).name != name:
        raise UserError(
            f"{directory}: config.json: transformers_weights: expected a safetensors file or index of the "
            f"same directory, got {name!s:.60}"
        )
    if not (directory / name).is_file():
        raise UserError(
            f"{directory}: {name}, which config.json names (transformers_weights), is missing: "
            "download or copy it"
        )
    return _shards(directory / name) if name.endswith(".json") else [directory / name]


def _shards(index: Path) -> list[Path]:
    """The files that an index names, beside it. Others there are left over from another checkpoint."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{index}: expected a JSON object with weight_map, tensor -> file; download or copy it again"
        ) from None
    for name in sorted(map(str, names)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: expected safetensors files of the same directory, got {name!r:.80}")
    for name in sorted(names):
        if not (index.parent / name).exists():
            raise UserError(f"{index.parent}: {name}, named by the index, is missing: download or copy it")
    return [index.parent / name for name in sorted(names)]


# ---------------------------------------------------------------- what to do with other directories


def pickle_problem(directory: Path) -> str | None:
    """What to do with a directory whose weights are pickled, which we never open; None if they are not.

    Args:
        directory: of a checkpoint.
    """
    if any((directory / name).is_file() for name in (SINGLE, INDEX)):
        return None
    pickle = next((name for name in _PICKLED if (directory / name).is_file()), None)
    if pickle is None:
        return None
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained('{directory}', dtype='auto').save_pretrained('{directory}')"
    )
    return (
        f"expected {SINGLE} or {INDEX}, found {pickle}, a pickle, which may run code and is not opened; "
        f'convert it once, where torch is: python -c "{code}"'
    )


def adapter_problem(directory: Path, setting: str = "policy") -> str | None:
    """What to set for a directory that holds a PEFT adapter and no model; None if it is none.

    Args:
        directory: of a checkpoint.
        setting: policy or reference.
    """
    if (directory / CONFIG).exists() or not (directory / ADAPTER).is_file():
        return None
    try:
        base = read_json_object(directory / ADAPTER).get("base_model_name_or_path")
    except UserError as error:
        return f"a PEFT adapter, whose {ADAPTER} cannot be read ({error})"
    if isinstance(base, str) and base:
        named = f"for {base}"
    else:
        named = "that does not say for which model"
        base = "BASE"
    remedy = f"set {setting}.path={base} {setting}.adapter={directory}"
    return f"this is a PEFT adapter {named}, not a model: {remedy}"


def inner_adapter_problem(directory: Path, setting: str = "policy") -> str | None:
    """What to do with a model that has an adapter beside it; None if it has none.

    transformers, with PEFT installed, would put the adapter onto the model.

    Args:
        directory: of a checkpoint.
        setting: policy or reference.
    """
    if not (directory / ADAPTER).is_file() or not (directory / CONFIG).exists():
        return None
    return (
        f"a PEFT adapter ({ADAPTER}) lies beside the model, and transformers would put it onto it: set "
        f"{setting}.adapter={directory} to do so, too, or move the adapter's files away"
    )
