"""Which config fields the installed transformers reads, from its source text: importing it takes seconds."""

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

ABSENT = object()  # a field without a default, or with one that is no plain value
# The files of Gemma 3 and 4 hold the models that see images and hear, too.
_OF_IMAGES = {
    *("image_token_id", "mm_tokens_per_image", "text_config", "token_type_ids", "vision_config"),
    *("audio_config", "audio_token_id", "video_token_id", "mm_token_type_ids", "standardize"),
    "use_clipped_linears",
}
_OF_OTHER_TOWERS = re.compile(r"class \w*(Vision|Audio)")
# What Gemma 4's model works out of its config, or is called with.
_NO_FIELDS = {"cu_seq_lens_q", "kv_sharing_modes", "return_shared_kv_states", "shared_kv_states"}


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
    head, *classes = _parts(config)
    text_config = head + next((part for part in classes if "TextConfig" in part.split("(")[0]), classes[0])
    model = "".join(part for part in _parts(model) if not _OF_OTHER_TOWERS.match(part))
    fields = _fields_read(model) | _fields_read(text_config) | _fields_declared(text_config)
    return {name: default for name, default in fields.items() if name not in _OF_IMAGES | _NO_FIELDS}


def _parts(source: str) -> list[str]:
    """What is before the first class, and the classes with what follows each."""
    return re.split(r"^(?=class )", source, flags=re.MULTILINE)


def _fields_read(source: str) -> dict[str, Any]:
    names = re.findall(r"\bconfig\.(\w+)\b(?!\()", source)
    names += re.findall(r"\bconfig, \"(\w+)\"", source)
    names += re.findall(r"\bkwargs\.(?:pop|get)\(\"(\w+)\"", source)
    return dict.fromkeys(names, ABSENT)


def _fields_declared(source: str) -> dict[str, Any]:
    """`name: type = default` of the classes of a configuration file, or of their constructors before 5.1."""
    declared: dict[str, Any] = {}
    of_class = re.findall(r"^ {4}(\w+): [^=\n]+ = (.+)$", source, re.MULTILINE)
    of_constructor = re.findall(r"^ {8}(\w+): [^=\n]+ = (.+),$", source, re.MULTILINE)
    for name, default in of_constructor + of_class:
        if product := re.fullmatch(r"(\d+) \* (\d+)", default):
            declared[name] = int(product[1]) * int(product[2])
            continue
        try:
            declared[name] = ast.literal_eval(default)
        except (ValueError, SyntaxError):
            declared[name] = ABSENT
    return declared
