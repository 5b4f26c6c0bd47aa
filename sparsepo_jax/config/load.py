"""Strict YAML 1.2 files and dotted overrides -> Config, with every mistake said at once; and back to YAML.

The order: read the file; where an override changes a `kind`, drop the file's keys that the new kind does not have; put in the
overrides; where a kind is wrong take the nearest, so that the rest of its mapping is checked too; validate with pydantic.
"""

import difflib
import io
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Sequence, get_args, get_origin, get_type_hints

from pydantic import Discriminator, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from sparsepo_jax.config.schema import Config, Section

Keys = tuple[str, ...]


class ConfigError(Exception):
    """A configuration that cannot be run: `lines` holds one mistake a line."""

    def __init__(self, lines: Sequence[str]):
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The configuration in a YAML file with `section.field=value` overrides put in, and notes to print. Raises ConfigError."""
    data = _read(Path(path))
    changes, mistakes = _parse_overrides(overrides)
    notes: list[str] = []
    data = _drop_other_kinds(data, Config, Config, (), changes, notes)
    for keys in sorted(changes, key=len):  # a section before what lies in it, in whatever order they were given
        try:
            data = _with(data, keys, changes[keys])
        except ConfigError as error:
            mistakes += error.lines
    data = _with_nearest_kinds(data, Config, (), mistakes)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(mistakes + [line for item in error.errors() for line in _explain(item)]) from None
    if mistakes:
        raise ConfigError(mistakes)
    return config, notes


def save_config(config: Config, path: str | Path) -> None:
    """Writes every knob as YAML; `load_config(path)` gives an equal Config."""
    text, yaml = io.StringIO(), _yaml()
    yaml.allow_unicode = False  # else line ends beyond ASCII (U+0085, U+2028) are written as they are, and read as spaces
    yaml.dump(config.model_dump(), text)
    Path(path).write_text(text.getvalue(), encoding="utf-8")


def json_schema() -> dict[str, Any]:
    """The JSON schema that editors use for completion and checking."""

    def any_of(node: Any) -> Any:
        # Which kind a mapping without `kind` means depends on where it stands, so two kinds may match one: not `oneOf`.
        if isinstance(node, dict):
            return {"anyOf" if key == "oneOf" else key: any_of(value) for key, value in node.items()}
        return [any_of(item) for item in node] if isinstance(node, list) else node

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **any_of(Config.model_json_schema())}


# ---------------------------------------------------------------- YAML


class _Constructor(SafeConstructor):
    """YAML 1.2 has no dates: 2024-01-01 is a string."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    return yaml


def _read(path: Path) -> dict[Any, Any]:
    try:
        data = _yaml().load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8: {error}"]) from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError([f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())]) from None
    if not isinstance(data, dict):
        raise ConfigError([f"line 1: expected a mapping of sections (stages: ..., policy: ...), got {_shown(data)}"])
    return data


def _parse_overrides(overrides: Sequence[str]) -> tuple[dict[Keys, Any], list[str]]:
    """Dotted path -> value (the last one, where a path is given twice), and the mistakes."""
    changes, mistakes = {}, []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            mistakes.append(f"{override}: expected section.field=value")
            continue
        try:
            changes[keys] = _yaml().load(text)
        except YAMLError as error:
            reason = getattr(error, "problem", None) or "unreadable"
            mistakes.append(f"{dotted}: {text!r} is not YAML ({reason}); quote it to give a string")
    return changes, mistakes


def _with(node: Any, keys: Keys, value: Any, above: Keys = ()) -> Any:
    """`node` with `value` at `keys`; what lacks on the way is made, and an index one past a list's end appends."""
    if not keys:
        return value
    key, rest, here = keys[0], keys[1:], above + keys[:1]
    if node is None:
        node = [] if key.isdecimal() else {}
    if isinstance(node, dict):
        return {**node, key: _with(node.get(key), rest, value, here)}
    place = f"{_dotted(above + keys)}: {_dotted(above)}"
    if not isinstance(node, list):
        raise ConfigError([f"{place} is {_shown(node)}, not a mapping"])
    if not key.isdecimal():
        raise ConfigError([f"{place} is a list: give an index, as in {_dotted((*above, '0', *keys))}"])
    if int(key) > len(node):
        raise ConfigError([f"{place} has {len(node)} entries, so the highest index is {len(node)}, which appends"])
    entries = node + [None] * (int(key) == len(node))
    entries[int(key)] = _with(entries[int(key)], rest, value, here)
    return entries


# ---------------------------------------------------------------- kinds


def _plain(annotation: Any) -> Any:
    """Without `| None` and constraints; a union told apart by `kind` stays as it is annotated."""
    while True:
        if get_origin(annotation) is Annotated and not _discriminator(annotation):
            annotation = get_args(annotation)[0]
        elif type(None) in get_args(annotation):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation


def _discriminator(annotation: Any) -> Discriminator | None:
    return next((extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Discriminator)), None)


def _kinds(annotation: Any) -> dict[str | None, type[Section]]:
    """The models that a mapping at this annotation may be, by kind (None: the only one); empty where no section goes."""
    annotation = _plain(annotation)
    if _discriminator(annotation):
        members = [get_args(member) for member in get_args(get_args(annotation)[0])]
        return {tag.tag: model for model, tag in members}
    return {None: annotation} if isinstance(annotation, type) and issubclass(annotation, Section) else {}


def _kind(annotation: Any, mapping: dict[Any, Any]) -> str | None:
    """The kind of a mapping, the default if it names none, the nearest if it names one that does not exist."""
    kinds = _kinds(annotation)
    if None in kinds:
        return None
    kind_of = _discriminator(_plain(annotation)).discriminator
    kind = kind_of(mapping)
    return _by_likeness(kind, kinds)[0] if isinstance(kind, str) else kind_of({})


@cache
def _fields(model: type[Section]) -> dict[str, Any]:
    hints = get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in model.model_fields}


def _drop_other_kinds(value: Any, old: Any, new: Any, at: Keys, changes: dict[Keys, Any], notes: list[str]) -> Any:
    """The file's `value` without keys of other kinds, wherever `changes` alter its kind (by name, or by altering the default).

    `old` and `new` are the annotations before and after the change. A key that no kind has is misspelt, and stays.
    """
    if at in changes:
        return value  # replaced as a whole
    if isinstance(value, list) and get_origin(_plain(new)) is list:
        item_old, item_new = get_args(_plain(old))[0], get_args(_plain(new))[0]
        return [_drop_other_kinds(item, item_old, item_new, (*at, str(i)), changes, notes) for i, item in enumerate(value)]
    if not isinstance(value, dict) or not _kinds(old) or not _kinds(new):
        return value
    chosen = changes.get((*at, "kind"))
    kind = _kind(new, value if chosen is None else {"kind": chosen})
    old_fields, new_fields = _fields(_kinds(old)[_kind(old, value)]), _fields(_kinds(new)[kind])
    kept = value
    if old_fields != new_fields:
        known = {name for model in (_kinds(old) | _kinds(new)).values() for name in _fields(model)}
        dropped = [key for key in value if key in known and key not in new_fields]
        kept = {key: item for key, item in value.items() if key not in dropped}
        if dropped:
            notes.append(f"{_dotted((*at, 'kind'))}={kind}: dropped {', '.join(dropped)}, which {kind} does not have")
    shared = old_fields.keys() & new_fields.keys()
    return {
        key: _drop_other_kinds(item, old_fields[key], new_fields[key], (*at, key), changes, notes) if key in shared else item
        for key, item in kept.items()
    }


def _with_nearest_kinds(value: Any, annotation: Any, at: Keys, mistakes: list[str]) -> Any:
    """`value` with every wrong kind replaced by the nearest that exists, and said in `mistakes`."""
    if isinstance(value, list) and get_origin(_plain(annotation)) is list:
        item = get_args(_plain(annotation))[0]
        return [_with_nearest_kinds(entry, item, (*at, str(i)), mistakes) for i, entry in enumerate(value)]
    if not isinstance(value, dict) or not _kinds(annotation):
        return value
    kind = _kind(annotation, value)
    if kind is not None and value.get("kind", kind) != kind:
        mistakes.append(f"{_dotted((*at, 'kind'))}: {_not_one_of(value['kind'], _kinds(annotation))}")
        value = {**value, "kind": kind}
    fields = _fields(_kinds(annotation)[kind])
    return {key: _with_nearest_kinds(item, fields.get(key), (*at, key), mistakes) for key, item in value.items()}


# ---------------------------------------------------------------- saying what is wrong


def _explain(error: Any) -> list[str]:
    """One line for each mistake in one entry of pydantic's list."""
    path, owner, kind = _place(error["loc"])
    message, got, where = error["msg"], _shown(error["input"]), _dotted(path)
    match error["type"]:
        case "value_error":  # ours, from schema.py: a line each; the outermost lines name their place themselves
            return [f"{where}: {line}" if where else line for line in str(error["ctx"]["error"]).split("\n")]
        case "missing":
            return [f"{where}: required, but missing"]
        case "extra_forbidden":
            fields = _fields(owner)
            names = _by_likeness(path[-1], fields)
            below = [name for name in fields if any(path[-1] in _fields(model) for model in _kinds(fields[name]).values())]
            unknown = f"{where}: unknown key" + (f" for kind {kind}" if kind else "")
            if difflib.get_close_matches(path[-1], names[:1]):
                return [f"{unknown}; did you mean {names[0]}?"]
            if len(below) == 1:
                return [f"{unknown}; did you mean {_dotted((*path[:-1], below[0], path[-1]))}?"]
            return [f"{unknown}; known, the nearest first: {', '.join(names)}"]
        case "literal_error":
            return [f"{where}: {_not_one_of(error['input'], _choices(_fields(owner), path))}"]
        case "model_type" | "dict_type" | "model_attributes_type":
            return [f"{where}: expected a mapping (key: value), got {got}"]
        case "string_type":
            quote = f'; quote it to give a string: "{got}"' if isinstance(error["input"], (int, float)) else ""
            return [f"{where}: expected a string, got {got}{quote}"]
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").split(", ")[0]
        message = "expected " + wanted.replace("a valid i", "an i").replace("a valid ", "a ")
    return [f"{where}: {message}, got {got}"]


def _place(loc: tuple[str | int, ...]) -> tuple[Keys, type[Section], str | None]:
    """Pydantic's location without the kinds it puts in between; the section that holds the last key, and that section's kind."""
    path: list[str] = []
    node, owner, kind, entered = Config, Config, None, None
    for part in loc:
        node = _plain(node)
        if _discriminator(node):
            node, entered = _kinds(node)[part], part
            continue
        path.append(str(part))
        if isinstance(node, type) and issubclass(node, Section):
            owner, kind, entered, node = node, entered, None, _fields(node).get(part)
        else:
            node, entered = (get_args(node) or (None,))[-1], None
    return tuple(path), owner, kind


def _choices(fields: dict[str, Any], path: Keys) -> list[str]:
    """The values of the Literal that the last field on the path (or the entries of its list) is."""
    annotation = _plain(fields[next(key for key in reversed(path) if key in fields)])
    while get_origin(annotation) is not Literal:
        annotation = _plain(get_args(annotation)[-1])
    return list(get_args(annotation))


def _not_one_of(value: Any, names: Any) -> str:
    nearest = f"; did you mean {_by_likeness(value, names)[0]}?" if isinstance(value, str) else ""
    return f"expected one of {', '.join(names)}; got {_shown(value)}{nearest}"


def _by_likeness(name: str, names: Any) -> list[str]:
    return difflib.get_close_matches(name, list(names), n=len(names), cutoff=0.0)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)
