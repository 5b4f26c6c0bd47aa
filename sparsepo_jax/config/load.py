"""Strict YAML 1.2 files and dotted overrides -> Config, with all mistakes reported together; and back to
YAML.

The order: read the file; where an override changes a `kind`, drop the file's keys that the new kind does not
have, or that were the old kind's own; apply the overrides; where a kind is wrong take the nearest, so that
the rest of its mapping is checked too; validate with pydantic.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsepo_jax.config.kinds import entry_of, fields_of, kind_of, may_be_null, named_of, sections_of
from sparsepo_jax.config.mistakes import Keys, explain, not_one_of
from sparsepo_jax.config.programs import why_not_ours
from sparsepo_jax.config.schema.base import Section
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.shown import cut, dotted, shown
from sparsepo_jax.config.yaml_text import NotYaml, parse, write
from sparsepo_jax.core.errors import escaped
from sparsepo_jax.core.files import write_text

_BRACKETS, _DOTTED = re.compile(r"\[([^][]*)\]"), r".\1"  # train[0] -> train.0
_MOST_BYTES = 2**18  # of a config: a larger file is one of data, given by mistake


class ConfigError(Exception):
    """A configuration that cannot be run: `lines` holds one mistake a line."""

    def __init__(self, lines: Sequence[str]):
        self.lines = [escaped(line) for line in lines]
        super().__init__("\n".join(self.lines))


def load_config(
    path: str | Path, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> tuple[Config, list[str]]:
    """The configuration in a YAML file, and notes to print.

    Args:
        path: of the file.
        overrides: `section.field=value`, the value in YAML.
        settings: further values by their dotted paths, applied over the overrides.

    Raises:
        ConfigError: with all mistakes.
    """
    data = _read(Path(path))
    if problem := why_not_ours(data, Config.model_fields):
        raise ConfigError([problem])
    changes, mistakes = parse_overrides(overrides)
    notes = _given_again(overrides)
    changes |= {tuple(name.split(".")): value for name, value in (settings or {}).items()}
    data = _drop_other_kinds(data, Config, Config, (), changes, notes)
    for keys in sorted(changes, key=len):  # a section before what lies in it, whatever their order
        try:
            data = _with(data, keys, changes[keys])
        except ConfigError as error:
            mistakes += error.lines
    data = _with_nearest_kinds(data, Config, (), mistakes)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(mistakes + explain(error)) from None
    if mistakes:
        raise ConfigError(mistakes)
    return config, notes


def save_config(config: Config, path: str | Path) -> None:
    """Writes every knob as YAML, atomically; `load_config(path)` gives an equal Config."""
    write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """Every knob as YAML."""
    return write(config.model_dump())


def json_schema() -> dict[str, Any]:
    """The JSON schema that editors use for completion and checking."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_any_of(Config.model_json_schema()),
    }


def _any_of(node: Any) -> Any:
    """anyOf in place of oneOf: a mapping without `kind` may fit several sections of a union."""
    if isinstance(node, dict):
        # `discriminator` is OpenAPI's, and requires `kind` to be there.
        kept = {key: value for key, value in node.items() if not (key == "discriminator" and "oneOf" in node)}
        return {"anyOf" if key == "oneOf" else key: _any_of(value) for key, value in kept.items()}
    return [_any_of(item) for item in node] if isinstance(node, list) else node


# ---------------------------------------------------------------- files and overrides


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError([f"{path}: more than {_MOST_BYTES} bytes: is it a config?"])
        if b"\0" in content:
            raise ConfigError([f"{path}: holds null bytes, as UTF-16 does: save it as UTF-8"])
        data = parse(content.decode())
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"{path}: not UTF-8: {error.reason} at byte {error.start + 1}; save it as UTF-8"]
        ) from None
    except NotYaml as error:
        raise ConfigError([str(error)]) from None
    if data is None:
        raise ConfigError(["the file is empty: expected sections (stages: ..., policy: ...)"])
    if not isinstance(data, dict):
        raise ConfigError(
            [f"line 1: expected a mapping of sections (stages: ..., policy: ...), got {shown(data)}"]
        )
    return data


def parse_overrides(overrides: Sequence[str]) -> tuple[dict[Keys, Any], list[str]]:
    """Dotted path -> value (the last one, where a path comes twice), and the mistakes."""
    changes: dict[Keys, Any] = {}
    mistakes: list[str] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = tuple(name.strip(" ").split("."))
        if not equals or not all(keys) or not name.isprintable():
            mistakes.append(f"{cut(override)}: expected section.field=value")
            continue
        if "[" in name:
            mistakes.append(f"{cut(name)}: expected dots; did you mean {cut(_BRACKETS.sub(_DOTTED, name))}?")
            continue
        try:
            changes[keys] = parse(text)
        except NotYaml as error:
            mistakes.append(
                f"{dotted(keys)}: {shown(text)} is not YAML ({error.problem}); quote it to give a string"
            )
    return changes, mistakes


def _given_again(overrides: Sequence[str]) -> list[str]:
    """A note for each setting that comes with several values, of which the last one counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        name, _, text = override.partition("=")
        values.setdefault(name.strip(" "), []).append(text)
    return [
        f"{cut(name)}={cut(texts[-1])} replaces {', '.join(cut(text) for text in texts[:-1])}, given before"
        for name, texts in values.items()
        if len(set(texts)) > 1
    ]


def _with(node: Any, keys: Keys, value: Any, above: Keys = ()) -> Any:
    """`node` with `value` at `keys`; missing parts are made, and an index one past a list's end appends."""
    if not keys:
        return value
    key, *rest = keys
    here = (*above, key)
    if node is None:
        node = [] if key.isdecimal() else {}
    if isinstance(node, dict):
        return {**node, key: _with(node.get(key), tuple(rest), value, here)}
    place = f"{dotted(above + keys)}: {dotted(above)}"
    if not isinstance(node, list):
        raise ConfigError([f"{place} is {shown(node)}, not a mapping"])
    if not key.isdecimal():
        # -1 or x stands where an index should; another name is a setting of an entry.
        inner = rest if re.fullmatch(r"-?\d+|\w", key) else keys
        raise ConfigError([f"{place} is a list: give an index, as in {dotted((*above, '0', *inner))}"])
    if len(key) > 9 or int(key) > len(node):
        raise ConfigError(
            [f"{place} has {len(node)} entries, so the highest index is {len(node)}, which appends"]
        )
    index = int(key)
    entries = [*node, None] if index == len(node) else list(node)
    entries[index] = _with(entries[index], tuple(rest), value, here)
    return entries


# ---------------------------------------------------------------- kinds


def _drop_other_kinds(
    value: Any, old: Any, new: Any, at: Keys, changes: Mapping[Keys, Any], notes: list[str]
) -> Any:
    """The file's `value` without keys of other kinds, wherever `changes` alter its kind (by name or by
    another default).

    `old` and `new` are the annotations before and after the change. A key that no kind has is misspelt, and
    stays.
    """
    if at in changes:
        return value  # replaced completely
    if isinstance(value, list) and entry_of(new) is not None:
        return [
            _drop_other_kinds(entry, entry_of(old), entry_of(new), (*at, str(index)), changes, notes)
            for index, entry in enumerate(value)
        ]
    if isinstance(value, dict) and (named := named_of(new)) is not None:
        return {
            name: _drop_other_kinds(entry, named, named, (*at, name), changes, notes)
            for name, entry in value.items()
        }
    if not isinstance(value, dict) or not sections_of(old) or not sections_of(new):
        return value
    kind = kind_of(new, {"kind": changes[(*at, "kind")]} if (*at, "kind") in changes else value)
    old_section, new_section = sections_of(old)[kind_of(old, value)], sections_of(new)[kind]
    old_fields, new_fields = fields_of(old_section), fields_of(new_section)
    kept = value
    if old_section != new_section:
        sections = sections_of(old) | sections_of(new)
        known = {name for section in sections.values() for name in fields_of(section)}
        foreign = [key for key in value if key in known and key not in new_fields]
        left = [key for key in value if key in set(old_section.own) - set(new_section.own) - set(foreign)]
        kept = {key: item for key, item in value.items() if key not in (*foreign, *left)}
        stays_behind = f"meant for {kind_of(old, value)}; give as overrides what {kind} should keep"
        for dropped, why in ((foreign, f"which {kind} does not have"), (left, stays_behind)):
            if dropped:
                notes.append(f"{dotted((*at, 'kind'))}={kind}: dropped {', '.join(dropped)}, {why}")
        notes.extend(_staying(kept, old_section, new_section, kind, at, changes))
        for key in kept.keys() & set(old_section.own) & set(new_section.own):
            kept = kept | {
                key: _of_new_default(kept[key], old_fields[key], new_fields[key], (*at, key), changes, notes)
            }
    shared = old_fields.keys() & new_fields.keys()
    return {
        key: _drop_other_kinds(item, old_fields[key], new_fields[key], (*at, key), changes, notes)
        if key in shared
        else item
        for key, item in kept.items()
    }


def _staying(
    kept: Mapping[str, Any],
    old: type[Section],
    new: type[Section],
    kind: Any,
    at: Keys,
    changes: Mapping[Keys, Any],
) -> Iterator[str]:
    """A note of the values that go over to another kind, where its default is not the old kind's.

    A beta suits one objective and not another, and an alpha is another thing in each.
    """
    defaults = {
        key: new.model_fields[key].default
        for key, value in kept.items()
        if key != "kind" and (*at, key) not in changes and not isinstance(value, dict | list)
        if key in old.model_fields and key in new.model_fields and not new.model_fields[key].is_required()
        if old.model_fields[key].default != new.model_fields[key].default != value
    }
    if defaults:
        stay = ", ".join(f"{key}={kept[key]}" for key in defaults)
        others = ", ".join(f"{key}={default}" for key, default in defaults.items())
        yield f"{dotted((*at, 'kind'))}={kind}: kept from the config: {stay}; by default {kind} has {others}"


def _of_new_default(
    value: Any, old: Any, new: Any, at: Keys, changes: Mapping[Keys, Any], notes: list[str]
) -> Any:
    """A section that is own to both kinds, without its `kind` where that is the default of the old one alone.

    So it takes the new one's: objective.kind=mapo turns sparsepo's learned mask into one of activations.
    """
    before, after = kind_of(old, {}), kind_of(new, {})
    if at in changes or not isinstance(value, dict) or before == after or value.get("kind") != before:
        return value
    place = dotted((*at, "kind"))
    if (*at, "kind") not in changes:
        notes.append(f"{place}: {before} becomes {after}, the new kind's; {place}={before} keeps it")
    return {key: item for key, item in value.items() if key != "kind"}


def _with_nearest_kinds(value: Any, annotation: Any, at: Keys, mistakes: list[str]) -> Any:
    """`value` with every wrong kind replaced by the nearest that exists, and a line for it in `mistakes`.

    So is Python's None, which is a text in YAML, where null may stand.
    """
    if value == "None" and may_be_null(annotation):
        mistakes.append(f"{dotted(at)}: None is a text here: write null, or leave it out")
        return None
    entry = entry_of(annotation)
    if isinstance(value, list) and entry is not None:
        return [
            _with_nearest_kinds(item, entry, (*at, str(index)), mistakes) for index, item in enumerate(value)
        ]
    named, sections = named_of(annotation), sections_of(annotation)
    if isinstance(value, dict) and named is not None:
        return {name: _with_nearest_kinds(item, named, (*at, name), mistakes) for name, item in value.items()}
    if not isinstance(value, dict) or not sections:
        return value
    kind = kind_of(annotation, value)
    if kind is not None and value.get("kind", kind) != kind:
        names = [name for name in sections if name is not None]
        mistakes.append(f"{dotted((*at, 'kind'))}: {not_one_of(value['kind'], names)}")
        value = {**value, "kind": kind}
    fields = fields_of(sections[kind])
    return {
        key: _with_nearest_kinds(item, fields.get(key), (*at, key), mistakes) for key, item in value.items()
    }
