"""The settings in a Python script of TRL, read as a config: `DPOConfig(beta=0.1, ...)`, `LoraConfig(r=16)`.

The script is parsed and not run: what it computes is not known.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

_TRAINERS = {f"{name.upper()}Config": name for name in ("dpo", "kto", "cpo", "orpo", "sft")}
# What they are where a script leaves them out: not the defaults of TRL's own command.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"use_peft": True, "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "TrainingArguments": {"learning_rate": 5e-5, "bf16": False, "logging_steps": 500},
}
_LORA = {"r": "lora_r", "target_modules": "lora_target_modules", "task_type": "lora_task_type"}
_TRAINER_ARGUMENTS = {"beta", "loss_type", "label_smoothing", "max_length", "max_prompt_length"}
_BITS = {"load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type"}
_MODELS = ("AutoModel", "AutoPeftModel", "FastLanguageModel")
_FIRST_COUNTS = ("from_pretrained", "load_dataset")  # the next one's is the reference, or rows to evaluate
_FILES = ("json", "csv", "parquet", "text")  # what load_dataset reads data_files as


class NoScript(Exception):
    """A text that is no Python, or makes no config of a trainer."""


def read_script(text: str) -> tuple[dict[str, Any], str | None, list[str]]:
    """(settings by name, the trainer, lines about those whose values are not written out).

    Raises:
        NoScript: says why there are none.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise NoScript(f"no Python ({error})") from None
    constants = _constants(tree)
    settings: dict[str, Any] = {}
    lines: list[str] = []
    seen: set[str] = set()
    calls = sorted(_calls(tree), key=lambda found: found[0].lineno)
    trainers = [name for _, name in calls if name in _TRAINERS]
    if len(trainers) > 1:
        raise NoScript(f"it makes {' and '.join(trainers)}: leave one")
    for call, name in calls:
        settings |= _DEFAULTS.get(name, {})
        if name in (*_TRAINERS, *_DEFAULTS) and any(keyword.arg is None for keyword in call.keywords):
            lines.append(f"{name}: what its **arguments are is not known: set them")
        given = dict(_settings(call, name))
        if given and name in _FIRST_COUNTS:
            if name in seen:
                lines.append(f"{ast.unparse(call)[:60]} in the script: only the first {name} is read")
                continue
            seen.add(name)
        for key, node in given.items():
            try:
                settings[key] = _value(node, constants)
            except (ValueError, TypeError):
                lines.append(f"{key}: {ast.unparse(node)[:60]} in the script: its value is not known: set it")
    if not trainers and "beta" not in settings:
        raise NoScript(f"it makes none of {', '.join(_TRAINERS)}")
    return settings, _TRAINERS[trainers[0]] if trainers else None, lines


def _constants(tree: ast.AST) -> dict[str, ast.expr]:
    """What each name is set to that gets its value in one place of the script."""
    nodes = list(ast.walk(tree))
    places = Counter(
        node.arg if isinstance(node, ast.arg) else node.id
        for node in nodes
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    )
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and places[target.id] == 1
    }


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Calls, with the last part of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, node.func.id if isinstance(node.func, ast.Name) else node.func.attr


def _settings(call: ast.Call, name: str) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of what a call sets, by the names of a config of TRL."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    owner = ast.unparse(call.func).partition(".")[0]
    if name in _TRAINERS or name == "TrainingArguments":
        yield from keywords.items()
    elif name.endswith("Trainer"):
        yield from ((key, node) for key, node in keywords.items() if key in _TRAINER_ARGUMENTS)
    elif name == "LoraConfig":
        yield from (
            (_LORA.get(key, key), node)
            for key, node in keywords.items()
            if key not in ("bias", "inference_mode")
        )
    elif name == "BitsAndBytesConfig":
        yield from ((key, node) for key, node in keywords.items() if key in _BITS)
    elif name == "from_pretrained" and owner.startswith(_MODELS):
        if node := keywords.get("model_name", call.args[0] if call.args else None):
            yield "model_name_or_path", node
    elif name == "load_dataset" and call.args:
        named = dict(zip(("dataset_name", "dataset_config"), call.args, strict=False))
        if "data_files" in keywords and getattr(call.args[0], "value", None) in _FILES:
            named["dataset_name"] = keywords["data_files"]
        if "name" in keywords:
            named["dataset_config"] = keywords["name"]
        if "split" in keywords:
            named["dataset_train_split"] = keywords["split"]
        yield from named.items()


def _value(node: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """What is written, or what a name was set to. ValueError: it is computed."""
    if isinstance(node, ast.Name) and node.id in constants:
        node = constants[node.id]
    return ast.literal_eval(node)
