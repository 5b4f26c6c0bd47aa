"""What the schema allows at a place: the sections that may stand there, their kinds and fields, read from its
annotations."""

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Tag

from sparsepo_jax.config.names import same_name
from sparsepo_jax.config.schema.base import ByKind, Section, members
from sparsepo_jax.config.shown import LONGEST_SHOWN


def unwrapped(annotation: Any) -> Any:
    """An annotation without `| None` and constraints; a union told apart by `kind` keeps its mark."""
    while True:
        if get_origin(annotation) is Annotated and by_kind(annotation) is None:
            annotation = get_args(annotation)[0]
        elif type(None) in get_args(annotation):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation


def may_be_null(annotation: Any) -> bool:
    """Whether null may stand here."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return type(None) in get_args(annotation)


def by_kind(annotation: Any) -> ByKind | None:
    """How a union of sections is told apart; None: the annotation is no such union."""
    marks = getattr(annotation, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, ByKind)), None)


def sections_of(annotation: Any) -> dict[str | None, type[Section]]:
    """The sections that a mapping may be here, by kind (None: there is one only); empty where no section
    goes."""
    annotation = unwrapped(annotation)
    if by_kind(annotation) is not None:
        return {kind: section for kind, section in members(annotation).items()}
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {None: annotation}
    return {}


def kind_of(annotation: Any, mapping: Mapping[Any, Any]) -> str | None:
    """The kind of a mapping: the default if it names none, the nearest if it names one that does not
    exist."""
    mark = by_kind(unwrapped(annotation))
    if mark is None:
        return None
    kind = mapping.get("kind", mark.default)
    return by_likeness(kind, members(unwrapped(annotation)))[0] if isinstance(kind, str) else mark.default


def forms_of(annotation: Any) -> dict[str, Any]:
    """The forms of what may be a list or several lists by name, by pydantic's word for each; else none."""
    annotation = unwrapped(annotation)
    forms: dict[str, Any] = {}
    for form in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ():
        tags = [mark.tag for mark in getattr(form, "__metadata__", ()) if isinstance(mark, Tag)]
        forms |= dict.fromkeys(tags, form)
    return forms


def entry_of(annotation: Any) -> Any | None:
    """The annotation of a list's entries; None: it is no list."""
    annotation = unwrapped(forms_of(annotation).get("list", annotation))
    return get_args(annotation)[0] if get_origin(annotation) is list else None


def named_of(annotation: Any) -> Any | None:
    """The annotation of each of several lists by name; None: there are no such lists here."""
    named = forms_of(annotation).get("named")
    return None if named is None else get_args(unwrapped(named))[1]


@cache
def fields_of(section: type[Section]) -> dict[str, Any]:
    """The annotations of a section's fields."""
    hints = get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in section.model_fields}


def choices(annotation: Any) -> list[str]:
    """The words of a Literal, or of the Literal that the entries of a list are; true and false as YAML has
    them."""
    annotation = unwrapped(annotation)
    while get_origin(annotation) is not Literal:
        annotation = unwrapped(get_args(annotation)[-1])
    return [word if isinstance(word, str) else json.dumps(word) for word in get_args(annotation)]


def by_likeness(name: str, names: Iterable[str]) -> list[str]:
    """The names, the one that is most likely meant first: the same, with letters exchanged, or near."""
    known = list(names)
    nearest = difflib.get_close_matches(name[:LONGEST_SHOWN].casefold(), known, n=len(known), cutoff=0.0)
    same = same_name(name, known)
    exchanged = [other for other in nearest if sorted(other) == sorted(name.casefold())]
    return list(dict.fromkeys([*([] if same is None else [same]), *exchanged, *nearest]))
