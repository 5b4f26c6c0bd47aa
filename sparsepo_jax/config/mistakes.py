"""What is wrong with a configuration, in words: one line for each mistake, with its place and what was
probably meant."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sparsepo_jax.config.kinds import (
    by_kind,
    by_likeness,
    choices,
    entry_of,
    fields_of,
    forms_of,
    sections_of,
    unwrapped,
)
from sparsepo_jax.config.names import NOTES, SETTINGS, same_name
from sparsepo_jax.config.schema.base import Json, Section
from sparsepo_jax.config.schema.generation import FUNCTION
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.shown import LONGEST_SHOWN, dotted, shown

Keys = tuple[str, ...]

_IN_WORDS = {FUNCTION: "module:function, as in rewards:score for score() in rewards.py"}  # by pattern
_MOST_EXPLAINED = 100
_MOST_KINDS = 5  # that are named


def explain(error: ValidationError) -> list[str]:
    """Pydantic's mistakes, a line each."""
    errors = error.errors()
    lines = [line for details in errors[:_MOST_EXPLAINED] for line in _explain_one(details)]
    if len(errors) > _MOST_EXPLAINED:
        lines.append(f"and {len(errors) - _MOST_EXPLAINED} more mistakes")
    return lines


class _Place(NamedTuple):
    """Where a mistake lies. section: the one that holds the last key; kind: its kind, if it has one; kinds:
    the sections that could stand in its place, by kind."""

    path: Keys
    section: type[Section]
    kind: str | None
    kinds: dict[str | None, type[Section]]

    def annotation(self) -> Any:
        """Of the last key: a field's, or that of an entry of a field's list."""
        fields = fields_of(self.section)
        if self.path[-1] in fields:
            return fields[self.path[-1]]
        field = next((key for key in reversed(self.path) if key in fields), None)
        return None if field is None else entry_of(fields[field])


def _explain_one(error: ErrorDetails) -> list[str]:
    place = _place(error["loc"])
    where, value = dotted(place.path), error["input"]
    match error["type"]:
        case (
            "value_error"
        ):  # raised by the schema: a line each; the outermost lines name their place themselves
            lines = str(error["ctx"]["error"]).split("\n")
            return [f"{where}: {line}" if where else line for line in lines]
        case "missing":
            return [f"{where}: required, but missing"]
        case "extra_forbidden":
            return [_unknown_key(place)]
        case "invalid_key":
            return [f"{where}: expected text as key: quote it"]
        case "literal_error":
            return [f"{where}: {not_one_of(value, choices(place.annotation()))}"]
        case "model_type" | "dict_type" | "model_attributes_type":
            return [
                f"{where}: expected a mapping (key: value), got {shown(value)}{_as_mapping(place, value)}"
            ]
        case "list_type":
            return [f"{where}: expected a list, got {shown(value)}{_as_list(place, value)}"]
        case "too_short":
            return [f"{where}: expected at least {error['ctx']['min_length']} entry, got {shown(value)}"]
        case "string_pattern_mismatch":
            return [f"{where}: expected {_IN_WORDS[error['ctx']['pattern']]}, got {shown(value)}"]
        case "string_type":
            is_number = isinstance(value, (int, float))
            quote = f'; quote it to give a string: "{shown(value)}"' if is_number else ""
            return [f"{where}: expected a string, got {shown(value)}{quote}"]
    message = error["msg"]
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").split(", ")[0]
        message = "expected " + wanted.replace("a valid i", "an i").replace("a valid ", "a ")
    return [f"{where}: {message}, got {shown(value)}"]


def _place(location: tuple[str | int, ...]) -> _Place:
    """Pydantic's location without the kinds and types that it puts in between."""
    path: list[str] = []
    node: Any = Config
    section: type[Section] = Config
    kind: str | None = None  # of the section
    next_kind: str | None = None  # of the node, until the next key enters it
    kinds: dict[str | None, type[Section]] = {}  # of the section, and of the node
    next_kinds: dict[str | None, type[Section]] = {}
    for number, part in enumerate(location):
        if part == "[key]":  # the key itself is wrong, not what stands there
            continue
        node = unwrapped(node)
        if by_kind(node) is not None:
            next_kind, next_kinds = str(part), sections_of(node)
            node = next_kinds[next_kind]
            continue
        if part in (forms := forms_of(node)):
            node = forms[str(part)]
            continue
        if node == unwrapped(Json):  # a key, then its value's type, and so on
            path += map(str, location[number::2])
            break
        path.append(str(part))
        if isinstance(node, type) and issubclass(node, Section):
            section, kind, next_kind = node, next_kind, None
            kinds = next_kinds if kind is not None else {}
            node = fields_of(section).get(str(part))
        else:
            node, next_kind = (get_args(node) or (None,))[-1], None
    return _Place(tuple(path), section, kind, kinds)


def _unknown_key(place: _Place) -> str:
    *above, key = place.path
    fields = fields_of(place.section)
    names = by_likeness(key, fields)
    line = f"{dotted(place.path)}: unknown key" + (f" for kind {place.kind}" if place.kind else "")
    elsewhere = _name_here(place.path, names)
    if elsewhere is not None:
        return f"{line}; did you mean {elsewhere}?"
    having = [str(kind) for kind, section in place.kinds.items() if key in fields_of(section)]
    if len(having) == 1:
        return f"{line}; kind {having[0]} has it: set {dotted((*above, 'kind'))}={having[0]}"
    if having:
        several = ", ".join(having[:_MOST_KINDS]) + (" and others" if len(having) > _MOST_KINDS else "")
        return f"{line}; {several} have it"
    if difflib.get_close_matches(key, names[:1]):
        return f"{line}; did you mean {names[0]}?"
    below = [
        name
        for name, annotation in fields.items()
        if any(key in fields_of(section) for section in sections_of(annotation).values())
    ]
    if len(below) == 1:
        return f"{line}; did you mean {dotted((*above, below[0], key))}?"
    return f"{line}; known, the nearest first: {', '.join(names)}"


def _name_here(path: Keys, names: Sequence[str]) -> str | None:
    """What an unknown key is called here, if it is written in other letters or is another program's name."""
    same = same_name(path[-1], names)
    if same is not None:
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


def _is_short_text(value: Any) -> bool:
    """Whether a value could be a word that was meant to stand elsewhere."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST_SHOWN


def _as_mapping(place: _Place, value: Any) -> str:
    """How a text that stands where a mapping goes could have been meant: '; did you mean ...?', or
    nothing."""
    sections = sections_of(place.annotation())
    if not sections:
        return ""
    fields = fields_of(next(iter(sections.values())))
    if isinstance(value, bool | int | float) and list(sections) == [None]:
        return f"; its keys are {', '.join(fields)}"
    if not _is_short_text(value):
        return ""
    kinds = [kind for kind in sections if kind is not None]
    if not kinds and "kind" in fields:
        kinds = choices(fields["kind"])
    is_kind = same_name(value, kinds) is not None or difflib.get_close_matches(value, kinds, n=1) != []
    if kinds and (is_kind or "path" not in fields):
        key, meant = "kind", by_likeness(value, kinds)[0]
    elif "path" in fields:
        key, meant = "path", value
    else:
        return f"; its keys are {', '.join(fields)}"
    last = place.path[-1]
    in_file = f"{{{key}: {meant}}}" if last.isdecimal() else f"{last}: {{{key}: {meant}}}"
    return f"; did you mean {dotted(place.path)}.{key}={meant} (in a file {in_file})?"


def _as_list(place: _Place, value: Any) -> str:
    """The same where a list goes."""
    if isinstance(value, dict) and sections_of(entry_of(place.annotation())):
        return "; a list of one begins with '- ' in a file"
    if not _is_short_text(value):
        return ""
    entry = entry_of(place.annotation())
    sections = sections_of(entry)
    if not sections:
        words = re.findall(r"\w+", value)
        is_several = get_origin(unwrapped(entry)) is Literal and set(words) <= set(choices(entry))
        return f"; did you mean [{', '.join(words) if is_several else value}]?"
    key = "kind" if value in sections else "path"
    if any(key in fields_of(section) for section in sections.values()):
        return f"; did you mean [{{{key}: {value}}}]?"
    return ""


def not_one_of(value: Any, names: Iterable[str]) -> str:
    """'expected one of ...; got ...; did you mean ...?'."""
    known = list(names)
    nearest = f"; did you mean {by_likeness(value, known)[0]}?" if isinstance(value, str) else ""
    return f"expected one of {', '.join(known)}; got {shown(value)}{nearest}"
