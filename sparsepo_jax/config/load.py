"""Strict YAML 1.2 files and dotted overrides -> Config, with every mistake said at once; and back to YAML.

The order: read the file; where an override changes a `kind`, drop the file's keys that the new kind does not have; put in the
overrides; where a kind is wrong take the nearest, so that the rest of its mapping is checked too; validate with pydantic.

A file may come from anywhere: nothing in it is executed, and its size, its depth and what its aliases stand for are bounded before any of it is built.
"""

import difflib
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from sparsepo_jax.config.names import NOTES, SETTINGS, other_program, same_name
from sparsepo_jax.config.schema.base import ByKind, Section, members
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.files import write_text

Keys = tuple[str, ...]

MOST_BYTES = 2**18
MOST_VALUES = 50_000  # aliases written out
DEEPEST = 64  # mappings and lists within each other
MOST_MISTAKES = 100  # that are explained
MOST_BITS = 1000  # of a whole number
LONGEST_SHOWN = 60  # characters of a key or a value in a message


class ConfigError(Exception):
    """A configuration that cannot be run: `lines` holds one mistake a line."""

    def __init__(self, lines: Sequence[str]):
        self.lines = [
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
            for line in lines
        ]
        super().__init__("\n".join(self.lines))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The configuration in a YAML file with `section.field=value` overrides put in, and notes to print. Raises ConfigError."""
    data = _read(Path(path))
    if (program := other_program(data)) is not None:
        raise ConfigError(
            [
                f"this is a config of {program}: docs/guides/trl.md says what each of its settings is called "
                "here; configs/quickstart.yaml is one to begin with"
            ]
        )
    changes, mistakes = parse_overrides(overrides)
    notes: list[str] = []
    data = _drop_other_kinds(data, Config, Config, (), changes, notes)
    for keys in sorted(
        changes, key=len
    ):  # a section before what lies in it, in whatever order they were given
        try:
            data = _with(data, keys, changes[keys])
        except ConfigError as error:
            mistakes += error.lines
    data = _with_nearest_kinds(data, Config, (), mistakes)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        more = [f"and {len(found) - MOST_MISTAKES} more mistakes"] if len(found) > MOST_MISTAKES else []
        raise ConfigError(
            mistakes + [line for item in found[:MOST_MISTAKES] for line in _explain(item)] + more
        ) from None
    if mistakes:
        raise ConfigError(mistakes)
    return config, notes


def save_config(config: Config, path: str | Path) -> None:
    """Writes every knob as YAML, whole or not at all; `load_config(path)` gives an equal Config."""
    write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """Every knob as YAML."""
    text, yaml = io.StringIO(), _yaml()
    yaml.allow_unicode = (
        False  # else line ends beyond ASCII (U+0085, U+2028) are written as they are, and read as spaces
    )
    yaml.dump(config.model_dump(), text)
    return text.getvalue()


def json_schema() -> dict[str, Any]:
    """The JSON schema that editors use for completion and checking."""

    def any_of(node: Any) -> Any:
        # Which kind a mapping without `kind` means depends on where it stands, so two kinds may match one: not `oneOf`.
        if isinstance(node, dict):
            return {"anyOf" if key == "oneOf" else key: any_of(value) for key, value in node.items()}
        return [any_of(item) for item in node] if isinstance(node, list) else node

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **any_of(Config.model_json_schema())}


# ---------------------------------------------------------------- YAML


_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}


class _Constructor(SafeConstructor):
    """Text, numbers, booleans, null, lists and mappings with text as keys; nothing else, whatever its tag. YAML 1.2 has no dates: 2024-01-01 is a string."""

    def construct_document(self, node: Node) -> Any:
        if _measure(node, {})[0] > MOST_VALUES:
            raise _refused(
                node,
                f"more than {MOST_VALUES} values, aliases written out: leave out what is not of the config",
            )
        return super().construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            made = super().construct_object(node, deep)
            if isinstance(made, int) and made.bit_length() > MOST_BITS:
                raise ValueError
            if isinstance(
                made, str
            ):  # JSON writes a character beyond the 65,536th as two escapes, the halves of a surrogate pair
                made = made.encode("utf-16", "surrogatepass").decode("utf-16")
            return made
        except (
            ValueError,
            KeyError,
        ):  # ours, or of Python's constructors: a tag that does not fit, a number of thousands of digits, half a pair
            raise _refused(
                node, f"{_shown(node.value)} cannot be read as {node.tag.rpartition(':')[2]}"
            ) from None


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _refused(node: Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def _measure(node: Node, seen: dict[Node, tuple[int, int] | None]) -> tuple[int, int]:
    """(values, depth) of a node with its aliases written out, in time of what is written. `seen`: those of nodes; None while within one.

    Ten lines of ten aliases each stand for 10^10 values: building them is cheap, printing one is not.
    """
    if node in seen:
        if seen[node] is None:
            raise _refused(node, "an alias to what it lies in")
        return seen[node]
    seen[node] = None
    if node.tag not in _PLAIN_TAGS:
        raise _refused(
            node, f"{node.tag}: only text, numbers, true, false, null, lists and mappings, without tags"
        )
    size, depth = 1, 0
    if not isinstance(node, ScalarNode):
        below = node.value
        if isinstance(node, MappingNode):
            for key, _ in node.value:
                if not isinstance(key, ScalarNode) or key.tag.rpartition(":")[2] not in (
                    "str",
                    "timestamp",
                    "merge",
                    "value",
                ):
                    raise _refused(
                        key,
                        f"expected text as key, got {_shown(key.value) if isinstance(key, ScalarNode) else 'a list or mapping'}: quote it",
                    )
            below = [value for _, value in node.value]
        measures = [_measure(child, seen) for child in below]
        size += sum(size for size, _ in measures)
        depth = 1 + max((depth for _, depth in measures), default=0)
        if depth > DEEPEST:
            raise _refused(node, f"lists and mappings lie within each other more than {DEEPEST} deep")
    seen[node] = size, depth
    return seen[node]


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    return yaml


class _NotYaml(Exception):
    """Text that cannot be read, the line (from 1) if it is known, and why."""

    def __init__(self, line: int | None, problem: str):
        self.line, self.problem = line, problem


def _parse(text: str) -> Any:
    try:
        return _yaml().load(text)
    except RecursionError:
        raise _NotYaml(None, f"lists and mappings lie within each other more than {DEEPEST} deep") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise _NotYaml(mark.line + 1 if mark else None, problem[:300]) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError([f"{path}: more than {MOST_BYTES} bytes: is it a config?"])
        data = _parse(content.decode())
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8: {error.reason} at byte {error.start + 1}"]) from None
    except _NotYaml as error:
        raise ConfigError(
            [error.problem if error.line is None else f"line {error.line}: {error.problem}"]
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(
            [f"line 1: expected a mapping of sections (stages: ..., policy: ...), got {_shown(data)}"]
        )
    return data


def parse_overrides(overrides: Sequence[str]) -> tuple[dict[Keys, Any], list[str]]:
    """Dotted path -> value (the last one, where a path is given twice), and the mistakes."""
    changes, mistakes = {}, []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(keys) or not dotted.isprintable() or len(keys) > DEEPEST:
            mistakes.append(f"{_cut(override)}: expected section.field=value")
            continue
        try:
            changes[keys] = _parse(text)
        except _NotYaml as error:
            mistakes.append(
                f"{_dotted(keys)}: {_shown(text)} is not YAML ({error.problem}); quote it to give a string"
            )
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
    if len(key) > 9 or int(key) > len(node):
        raise ConfigError(
            [f"{place} has {len(node)} entries, so the highest index is {len(node)}, which appends"]
        )
    entries = node + [None] * (int(key) == len(node))
    entries[int(key)] = _with(entries[int(key)], rest, value, here)
    return entries


# ---------------------------------------------------------------- kinds


def _plain(annotation: Any) -> Any:
    """Without `| None` and constraints; a union told apart by `kind` stays as it is annotated."""
    while True:
        if get_origin(annotation) is Annotated and _by_kind(annotation) is None:
            annotation = get_args(annotation)[0]
        elif type(None) in get_args(annotation):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation


def _by_kind(annotation: Any) -> ByKind | None:
    """How a union of sections is told apart; None: the annotation is no such union."""
    return next((mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, ByKind)), None)


def _kinds(annotation: Any) -> dict[str | None, type[Section]]:
    """The models that a mapping at this annotation may be, by kind (None: the only one); empty where no section goes."""
    annotation = _plain(annotation)
    if _by_kind(annotation) is not None:
        return dict(members(annotation))
    return {None: annotation} if isinstance(annotation, type) and issubclass(annotation, Section) else {}


def _kind(annotation: Any, mapping: dict[Any, Any]) -> str | None:
    """The kind of a mapping, the default if it names none, the nearest if it names one that does not exist."""
    by_kind = _by_kind(_plain(annotation))
    if by_kind is None:
        return None
    kind = by_kind.kind_of(mapping)
    return _by_likeness(kind, _kinds(annotation))[0] if isinstance(kind, str) else by_kind.default


@cache
def _fields(model: type[Section]) -> dict[str, Any]:
    hints = get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in model.model_fields}


def _drop_other_kinds(
    value: Any, old: Any, new: Any, at: Keys, changes: dict[Keys, Any], notes: list[str]
) -> Any:
    """The file's `value` without keys of other kinds, wherever `changes` alter its kind (by name, or by altering the default).

    `old` and `new` are the annotations before and after the change. A key that no kind has is misspelt, and stays.
    """
    if at in changes:
        return value  # replaced as a whole
    if isinstance(value, list) and get_origin(_plain(new)) is list:
        item_old, item_new = get_args(_plain(old))[0], get_args(_plain(new))[0]
        return [
            _drop_other_kinds(item, item_old, item_new, (*at, str(i)), changes, notes)
            for i, item in enumerate(value)
        ]
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
            notes.append(
                f"{_dotted((*at, 'kind'))}={kind}: dropped {', '.join(dropped)}, which {kind} does not have"
            )
    shared = old_fields.keys() & new_fields.keys()
    return {
        key: _drop_other_kinds(item, old_fields[key], new_fields[key], (*at, key), changes, notes)
        if key in shared
        else item
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
    return {
        key: _with_nearest_kinds(item, fields.get(key), (*at, key), mistakes) for key, item in value.items()
    }


# ---------------------------------------------------------------- saying what is wrong


def _explain(error: Any) -> list[str]:
    """One line for each mistake in one entry of pydantic's list."""
    path, owner, kind = _place(error["loc"])
    message, got, where = error["msg"], _shown(error["input"]), _dotted(path)
    match error["type"]:
        case (
            "value_error"
        ):  # ours, from schema.py: a line each; the outermost lines name their place themselves
            return [f"{where}: {line}" if where else line for line in str(error["ctx"]["error"]).split("\n")]
        case "missing":
            return [f"{where}: required, but missing"]
        case "extra_forbidden":
            fields = _fields(owner)
            names = _by_likeness(path[-1], fields)
            elsewhere = _name_here(path, names)
            below = [
                name
                for name in fields
                if any(path[-1] in _fields(model) for model in _kinds(fields[name]).values())
            ]
            unknown = f"{where}: unknown key" + (f" for kind {kind}" if kind else "")
            if elsewhere is not None:
                return [f"{unknown}; did you mean {elsewhere}?"]
            if difflib.get_close_matches(path[-1], names[:1]):
                return [f"{unknown}; did you mean {names[0]}?"]
            if len(below) == 1:
                return [f"{unknown}; did you mean {_dotted((*path[:-1], below[0], path[-1]))}?"]
            return [f"{unknown}; known, the nearest first: {', '.join(names)}"]
        case "literal_error":
            return [f"{where}: {_not_one_of(error['input'], _choices(_fields(owner), path))}"]
        case "model_type" | "dict_type" | "model_attributes_type":
            return [
                f"{where}: expected a mapping (key: value), got {got}{_as_mapping(path, owner, error['input'])}"
            ]
        case "list_type":
            return [f"{where}: expected a list, got {got}{_as_list(path, owner, error['input'])}"]
        case "string_type":
            quote = (
                f'; quote it to give a string: "{got}"' if isinstance(error["input"], (int, float)) else ""
            )
            return [f"{where}: expected a string, got {got}{quote}"]
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").split(", ")[0]
        message = "expected " + wanted.replace("a valid i", "an i").replace("a valid ", "a ")
    return [f"{where}: {message}, got {got}"]


def _name_here(path: Keys, names: Sequence[str]) -> str | None:
    """What an unknown key is called here, if it is written in other letters or is another program's name."""
    if (same := same_name(path[-1], names)) is not None:
        return same
    ours = SETTINGS.get(path[-1])
    if ours is None:
        return None
    if path[0] == "sft" and ours.startswith("po.") and not ours.startswith("po.eval_every_steps"):
        ours = f"sft.{ours.removeprefix('po.')}"
    above, _, last = ours.rpartition(".")
    if above == ".".join(path[:-1]):
        return last if last in names else None
    return ours + NOTES.get(ours, "")


def _as_mapping(path: Keys, owner: type[Section], value: Any) -> str:
    """How a text that stands where a mapping goes could have been meant: '; did you mean ...?', or nothing."""
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > LONGEST_SHOWN:
        return ""
    kinds, where = _kinds(_annotation(path, owner)), _dotted(path)
    model = next(iter(kinds.values()), None)
    if model is None:
        return ""
    known = [kind for kind in kinds if kind is not None] or (
        _choices(_fields(model), ("kind",)) if "kind" in _fields(model) else []
    )
    if same_name(value, known) or difflib.get_close_matches(value, known, n=1):
        key, meant = "kind", _by_likeness(value, known)[0]
    elif "path" in _fields(model):
        key, meant = "path", value
    elif known:
        key, meant = "kind", _by_likeness(value, known)[0]
    else:
        return f"; its keys are {', '.join(_fields(model))}"
    return f"; did you mean {where}.{key}={meant} (in a file {path[-1] + ': ' if not path[-1].isdecimal() else ''}{{{key}: {meant}}})?"


def _as_list(path: Keys, owner: type[Section], value: Any) -> str:
    """The same where a list goes."""
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > LONGEST_SHOWN:
        return ""
    kinds = _kinds((get_args(_plain(_annotation(path, owner))) or (None,))[0])
    if not kinds:
        return f"; did you mean [{value}]?"
    key = "kind" if value in kinds else "path"
    return (
        f"; did you mean [{{{key}: {value}}}]?"
        if any(key in _fields(model) for model in kinds.values())
        else ""
    )


def _annotation(path: Keys, owner: type[Section]) -> Any:
    """Of the last place on a path, in the section that holds it: a field's, or that of an entry of a field's list."""
    fields = _fields(owner)
    if path[-1] in fields:
        return fields[path[-1]]
    field = next((key for key in reversed(path) if key in fields), None)
    return None if field is None else (get_args(_plain(fields[field])) or (None,))[0]


def _place(loc: tuple[str | int, ...]) -> tuple[Keys, type[Section], str | None]:
    """Pydantic's location without the kinds it puts in between; the section that holds the last key, and that section's kind."""
    path: list[str] = []
    node, owner, kind, entered = Config, Config, None, None
    for part in loc:
        node = _plain(node)
        if _by_kind(node) is not None:
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
    """The names, the one that is meant first."""
    nearest = difflib.get_close_matches(
        name[:LONGEST_SHOWN].casefold(), list(names), n=len(names), cutoff=0.0
    )
    same = same_name(name, names)
    return nearest if same is None else [same, *(other for other in nearest if other != same)]


def _shown(value: Any) -> str:
    return _cut("null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _dotted(keys: Keys) -> str:
    return ".".join(_cut(str(key)) for key in keys)
