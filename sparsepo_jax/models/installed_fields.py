"""Which config fields the installed transformers reads, from its source text: importing it takes seconds."""

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

ABSENT = object()  # a field without a default, or with one that is no plain value
# Gemma 3's files hold the models that see images, too.
_OF_IMAGES = {"image_token_id", "mm_tokens_per_image", "text_config", "token_type_ids", "vision_config"}


@functools.cache
def fields_of_installed(family: str) -> dict[str, Any]:
    """The fields that the installed transformers' files of a family read.

    Args:
        family: a `model_type`.

    Returns:
        Name -> default, or ABSENT; {} if transformers or the family is not there.
    """
    try:
        package = importlib.util.find_spec("transformers")
    except ValueError:  # something keeps it from being imported
        return {}
    if package is None or package.origin is None:
        return {}
    folder = family.removesuffix("_text")
    models = Path(package.origin).parent / "models" / folder
    try:
        config = (models / f"configuration_{folder}.py").read_text(encoding="utf-8")
        model = (models / f"modeling_{folder}.py").read_text(encoding="utf-8")
    except OSError:
        return {}
    parts = re.split(r"^(?=class )", config, flags=re.MULTILINE)
    text_config = "".join(parts[:2])  # up to the first class: Gemma 3's file has others below
    fields = _fields_read(model) | _fields_read(text_config) | _fields_declared(text_config)
    return {name: default for name, default in fields.items() if name not in _OF_IMAGES}


def _fields_read(source: str) -> dict[str, Any]:
    names = re.findall(r"\bconfig\.(\w+)\b(?!\()", source)
    names += re.findall(r"\bconfig, \"(\w+)\"", source)
    names += re.findall(r"\bkwargs\.(?:pop|get)\(\"(\w+)\"", source)
    return dict.fromkeys(names, ABSENT)


def _fields_declared(source: str) -> dict[str, Any]:
    """`name: type = default` of the classes of a configuration file."""
    declared: dict[str, Any] = {}
    for name, default in re.findall(r"^    (\w+): [^=\n]+ = (.+)$", source, re.MULTILINE):
        try:
            declared[name] = ast.literal_eval(default)
        except (ValueError, SyntaxError):
            declared[name] = ABSENT
    return declared
