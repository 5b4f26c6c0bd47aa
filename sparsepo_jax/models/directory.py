"""What the files of a Hugging Face checkpoint directory mean, as transformers takes them. No JAX here.

config.json              the model's shape; what it says of generation counts without generation_config.json
generation_config.json   how the model answers, and among that the tokens that end an answer
model.safetensors        the weights, or what stands for them: see weight_files
adapter_config.json      an adapter for another model, or for the one beside it
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.placeholders import placeholder_problem

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"
# What transformers' processors of images, videos and sound read.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
# What its tokenizers and processors read.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.*.json",  # for versions of transformers, by fast_tokenizer_files
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "tokenizer.model.*",  # Mistral's, by version
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "tekken.json",
    *PROCESSOR_FILES,
)
_BEGINS_A_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "tekken.json"),
)
# How Unsloth calls the copies in 4 bits that adapters are trained on.
_PACKED_NAME = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
_FLOATS = ("float32", "float16", "bfloat16")


# ---------------------------------------------------------------- JSON files


def read_json_object(file: Path, setting: str | None = None) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Args:
        file: its path.
        setting: the setting that led here, for the beginning of messages; None: none.

    Raises:
        UserError: it cannot be read, or it is no JSON, or no object.
    """
    where = f"{file}" if setting is None else f"{setting}: {file}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = placeholder_problem(file) or f"no valid JSON ({error})"
        raise UserError(f"{where}: {reason}") from error
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
        hint = hint_at_latest(directory, CONFIG, f"{setting}.path")
        raise UserError(f"{directory}: expected a config.json (a Hugging Face checkpoint), found none{hint}")
    return read_json_object(file)


def hint_at_latest(directory: Path, name: str, setting: str) -> str:
    """The end of a message on a directory that lacks a file, where directories within have it; else empty.

    Such are those of a trainer (checkpoint-500), and the Hub's cache of a model (snapshots/COMMIT).

    Args:
        directory: around them.
        name: of the file.
        setting: which the directory was given to.
    """
    files = [*directory.glob(f"snapshots/*/{name}"), *directory.glob(f"*/{name}")]
    latest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return "" if latest is None else f"; there is one in {latest.parent}: set {setting} to that"


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
            f"{name}: eos_token_id: expected a token id, a list of them or null, got {value!r:.60}"
        )
    return ids


def check_end_tokens(directory: Path) -> None:
    """Reads what a checkpoint says of generation, which is of use at the end of a run only.

    Args:
        directory: of a checkpoint.

    Raises:
        UserError: one of its files cannot be read, or names end tokens that are no ids.
    """
    config = read_config(directory)
    end_tokens(config, None)
    end_tokens(config, read_generation_config(directory))


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


# ---------------------------------------------------------------- what to do with other directories


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
        if (plain := _PACKED_NAME.sub("", base)) != base:
            named, base = f"{named}, whose weights are in 4 bits, which are not read", plain
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
