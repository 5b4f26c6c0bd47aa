"""The settings in a Python script of TRL, read as a config: `DPOConfig(beta=0.1, ...)`, `LoraConfig(r=16)`.

The script is parsed and not run: what it computes is not known.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from sparsepo_jax.config.foreign.literals import Constants, find_constants, parse_quietly, value_of

_TRAINERS = {f"{name.upper()}Config": name for name in ("dpo", "kto", "cpo", "orpo", "sft")}
_TRAINERS["SimPOConfig"] = "simpo"
# Unsloth's PatchDPOTrainer is none; TRL's OnlineDPOTrainer and IterativeSFTTrainer are other methods.
_TRAINER = re.compile(r"(?!Patch|Online|Iterative)(\w*?)(DPO|KTO|CPO|ORPO|SFT|SimPO)Trainer")
_ARGUMENTS = (*_TRAINERS, "TrainingArguments")
# What they are where a script leaves them out: not the defaults of TRL's own command.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"use_peft": True, "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "TrainingArguments": {"learning_rate": 5e-5, "bf16": False, "logging_steps": 500},
    "EarlyStoppingCallback": {"early_stopping_patience": 1},
}
_UNSLOTH = {
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
_LORA = {
    "r": "lora_r",
    "target_modules": "lora_target_modules",
    "task_type": "lora_task_type",
    "modules_to_save": "lora_modules_to_save",
    "target_parameters": "lora_target_parameters",
}
_LORA_ASIDE = {
    "bias",
    "inference_mode",
    "fan_in_fan_out",
    "random_state",
    "max_seq_length",
    "use_gradient_checkpointing",
}
# Arguments of a trainer that are objects of the script, of which other calls say what counts.
_OBJECTS = {
    *("model", "ref_model", "model_ref", "args", "train_dataset", "eval_dataset", "tokenizer"),
    *("processing_class", "peft_config", "data_collator", "compute_metrics", "callbacks", "model_init"),
    *("preprocess_logits_for_metrics", "quantization_config"),
}
_BITS = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")
_OF_MODEL = {"torch_dtype": "dtype", "dtype": "dtype", "revision": "model_revision"} | {
    name: name for name in ("attn_implementation", *_BITS[:2])
}
_MODELS = ("AutoModel", "AutoPeftModel", "Fast")
# Of calls that read the same the first counts: the next one's is the reference, or rows to evaluate.
_FIRST_COUNTS = {"from_pretrained": "a model", "load_dataset": "rows", "load_from_disk": "rows"}
_FILES = ("json", "csv", "parquet", "text")  # what load_dataset reads data_files as
_CHANGES_ROWS = ("map", "filter", "select", "rename_column", "rename_columns", "cast", "batch")
_PARSERS = ("TrlParser", "HfArgumentParser", "H4ArgumentParser")


class NoScript(Exception):
    """A text that is no Python, or makes no config of a trainer."""


def read_script(text: str) -> tuple[dict[str, Any], str, list[str]]:
    """(settings by name, the trainer, lines about those whose values are not written out).

    Raises:
        NoScript: says why there are none.
    """
    try:
        tree = parse_quietly(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NoScript(f"no Python ({error})") from None
    constants = find_constants(tree)
    calls = sorted(_calls(tree), key=lambda found: found[0].lineno)
    trainer, lines = _find_trainer([name for _, name in calls])
    settings: dict[str, Any] = {}
    seen: set[str] = set()
    for call, name in calls:
        shown = f"{ast.unparse(call)[:60]} in the script"
        if isinstance(call.func, ast.Attribute) and name in _CHANGES_ROWS and name not in seen:
            lines.append(
                f"{shown}: rows are trained on as they are in the file: write the changed ones there"
            )
            seen.add(name)
        if name == "from_pretrained" and _owner(call) == "PeftModel":
            lines.append(f"{shown}: it is not loaded: set policy.adapter")
        given, unknown = _settings(call, name, constants)
        if _TRAINER.fullmatch(name):
            given |= _splits(call, settings, constants)
        if given and name in _FIRST_COUNTS:
            if _FIRST_COUNTS[name] in seen:
                if not _is_evaluated_on(given, settings, constants):
                    lines.append(f"{shown}: only the first {name} is read")
                    continue
                given = {"dataset_test_split": given["dataset_train_split"]}
            seen.add(_FIRST_COUNTS[name])
        settings |= _UNSLOTH if _is_unsloth(call, name) else _DEFAULTS.get(name, {})
        lines += unknown
        for key, node in given.items():
            try:
                settings[key] = value_of(node, constants)
            except (ValueError, TypeError, RecursionError):
                lines.append(f"{key}: {ast.unparse(node)[:60]} in the script: its value is not known: set it")
    lines += _check_evaluation(settings)
    return settings, trainer, lines


def _check_evaluation(settings: dict[str, Any]) -> list[str]:
    """Takes out evaluations without rows, and rows without evaluations; a line about each."""
    lines = []
    for key in ("eval_strategy", "evaluation_strategy"):
        has_rows = {"dataset_test_split", "test_split_size"} & settings.keys()
        if not has_rows and settings.pop(key, "no") != "no":
            lines.append(f"{key}: which rows it is of is not known: set data.eval, and po.eval_every_steps")
    if not {"eval_strategy", "evaluation_strategy"} & settings.keys() and "dataset_test_split" in settings:
        split = settings.pop("dataset_test_split")
        lines.append(f"split {split}: nothing is evaluated on it: set data.eval for that")
    return lines


def _splits(call: ast.Call, settings: dict[str, Any], constants: Constants) -> dict[str, ast.expr]:
    """Which splits of the loaded data set a trainer is given: train_dataset=data["train"]."""
    name = settings.get("dataset_name")
    if {"dataset_train_split", "test_split_size"} & settings.keys() or not isinstance(name, str):
        return {}
    if name.endswith(tuple(f".{ending}" for ending in (*_FILES, "jsonl"))):  # its splits are files
        return {}
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    splits: dict[str, ast.expr] = {}
    owners = set()
    for theirs, ours in (("train_dataset", "dataset_train_split"), ("eval_dataset", "dataset_test_split")):
        rows = given.get(theirs)
        if isinstance(rows, ast.Name):
            rows = constants.get(rows.id)
        if isinstance(rows, ast.Subscript) and isinstance(rows.slice, ast.Constant):
            splits[ours] = rows.slice
            owners.add(ast.unparse(rows.value))
    return splits if len(owners) == 1 and "dataset_train_split" in splits else {}


def _is_evaluated_on(given: dict[str, ast.expr], settings: dict[str, Any], constants: Constants) -> bool:
    """Whether a later load_dataset is of another split of the first one's data set."""
    try:
        again = {key: value_of(node, constants) for key, node in given.items()}
    except (ValueError, TypeError, RecursionError):
        return False
    names = ("dataset_name", "dataset_config")
    return (
        all(again.get(name) == settings.get(name) for name in names)
        and re.match("test|val|eval|dev", str(again.get("dataset_train_split"))) is not None
    )


def _find_trainer(names: list[str]) -> tuple[str, list[str]]:
    """The trainer that a script's calls are of, and lines about classes that change it.

    Raises:
        NoScript: none, several, or one whose settings are not in the script.
    """
    configs = [name for name in names if name in _TRAINERS]
    made = {_TRAINERS[name]: name for name in configs}
    lines = []
    for name in names:
        if found := _TRAINER.fullmatch(name):
            made.setdefault(found[2].casefold(), name)
            if found[1]:
                lines.append(f"{name}: a class of its own: what it changes is not known")
    if len(made) > 1 or len(configs) > 1:
        raise NoScript(f"it makes {' and '.join(configs if len(configs) > 1 else made.values())}: leave one")
    parser = next((name for name in names if name in _PARSERS), None)
    if parser is not None and not any(name in _ARGUMENTS for name in names):
        raise NoScript(
            f"it takes its settings from a command line ({parser}): give that command in a .sh file, or the "
            "file after its --config"
        )
    if not made:
        raise NoScript(f"it makes none of {', '.join(_TRAINERS)}, and no trainer of theirs")
    return next(iter(made)), lines


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Calls, with the last part of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, node.func.id if isinstance(node.func, ast.Name) else node.func.attr


def _owner(call: ast.Call) -> str:
    return ast.unparse(call.func).partition(".")[0]


def _is_unsloth(call: ast.Call, name: str) -> bool:
    return name == "get_peft_model" and _owner(call).startswith("Fast")


def _settings(call: ast.Call, name: str, constants: Constants) -> tuple[dict[str, ast.expr], list[str]]:
    """What a call sets, by the names of a config of TRL, and lines about what cannot be read."""
    keywords: dict[str, ast.expr] = {}
    lines: list[str] = []
    counts = name in (*_ARGUMENTS, *_DEFAULTS) or _is_unsloth(call, name) or _TRAINER.fullmatch(name)
    for keyword in call.keywords:
        if keyword.arg is not None:
            keywords[keyword.arg] = keyword.value
            continue
        try:
            more = value_of(keyword.value, constants)
        except (ValueError, TypeError, RecursionError):
            more = None
        if isinstance(more, dict):
            keywords |= {str(key): ast.Constant(value) for key, value in more.items()}
        elif counts:
            lines.append(f"{name}: what its **arguments are is not known: set them")
    return dict(_named(call, name, keywords)), lines


def _named(call: ast.Call, name: str, keywords: dict[str, ast.expr]) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of what a call sets, by the names of a config of TRL."""
    if name in _ARGUMENTS:
        if call.args:
            yield "output_dir", call.args[0]
        yield from keywords.items()
    elif _TRAINER.fullmatch(name):
        model = keywords.get("model", call.args[0] if call.args else None)
        if isinstance(model, ast.Constant):
            yield "model_name_or_path", model
        yield from ((key, node) for key, node in keywords.items() if key not in _OBJECTS)
    elif name == "LoraConfig" or _is_unsloth(call, name):
        yield from ((_LORA.get(key, key), node) for key, node in keywords.items() if key not in _LORA_ASIDE)
    elif name == "BitsAndBytesConfig":
        yield from ((key, node) for key, node in keywords.items() if key in _BITS)
    elif name == "EarlyStoppingCallback":
        yield from zip(("early_stopping_patience", "early_stopping_threshold"), call.args, strict=False)
        yield from keywords.items()
    elif name == "from_pretrained" and _owner(call).startswith(_MODELS):
        if node := keywords.get("model_name", call.args[0] if call.args else None):
            yield "model_name_or_path", node
        yield from ((_OF_MODEL[key], node) for key, node in keywords.items() if key in _OF_MODEL)
    elif name == "train_test_split" and (
        size := keywords.get("test_size", call.args[0] if call.args else None)
    ):
        yield "test_split_size", size
    elif name == "load_from_disk" and call.args:
        yield "dataset_name", call.args[0]
    elif name == "load_dataset" and call.args:
        yield from _of_rows(call, keywords)


def _of_rows(call: ast.Call, keywords: dict[str, ast.expr]) -> Iterator[tuple[str, ast.expr]]:
    named = dict(zip(("dataset_name", "dataset_config"), call.args, strict=False))
    if "data_files" in keywords and getattr(call.args[0], "value", None) in _FILES:
        named["dataset_name"] = _train_file(keywords["data_files"])
    for theirs, ours in (("name", "dataset_config"), ("split", "dataset_train_split")):
        if theirs in keywords:
            named[ours] = keywords[theirs]
    yield from named.items()


def _train_file(files: ast.expr) -> ast.expr:
    """Of {"train": "a.jsonl", "test": "b.jsonl"} the first, and of a list of one file that one."""
    match files:
        case ast.Dict(keys=keys, values=values):
            named = {getattr(key, "value", None): value for key, value in zip(keys, values, strict=True)}
            return _train_file(named["train"]) if "train" in named else files
        case ast.List(elts=[file]):
            return file
    return files
