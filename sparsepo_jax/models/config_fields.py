"""Checks the fields of a Hugging Face `config.json` against the tables: read, harmless, or refused by name.

No JAX here, and transformers is not imported (that takes seconds).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import escaped
from sparsepo_jax.models.field_kinds import KINDS, LAYER_KINDS, FieldKind, FieldKinds, is_texts
from sparsepo_jax.models.field_tables import (
    ALWAYS_GATED,
    ALWAYS_QK_NORM,
    HARMLESS,
    HARMLESS_IN_FAMILY,
    OTHER_NAMES,
    QUANTISED,
    READ,
    ROPE_READ,
    ROPE_READ_IN_FAMILY,
    SWITCHES,
    SWITCHES_READ,
    Switch,
)
from sparsepo_jax.models.installed_fields import ABSENT, fields_of_installed


class SpecError(ValueError):
    """A config that we cannot run as it is meant.

    Args:
        message: says why; shown on one line.
    """

    def __init__(self, message: str):
        super().__init__(escaped(message))


class ConfigFields(NamedTuple):
    """A config sorted by what its fields do.

    Attributes:
        config: the fields that the family reads, under its names.
        ignored: names of the fields that change nothing and that nobody knows.
        defaults: the fields that are absent, with what transformers takes them to be; they stand in `config`.
    """

    config: dict[Any, Any]
    ignored: tuple[Any, ...]
    defaults: dict[str, Any]


# What a config may leave out to its class in transformers. Width, layers, heads and the like must be there.
_MAY_BE_ABSENT = (
    *("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "max_position_embeddings"),
    *("head_dim", "num_key_value_heads", "query_pre_attn_scalar", "num_experts_per_tok"),
)

# ---------------------------------------------------------------- the rule


def check_fields(config: Mapping[Any, Any], family: str) -> ConfigFields:
    """Sorts the fields of a config, or refuses them.

    Args:
        config: the content of a config.json.
        family: its `model_type`, one of `READ`.

    Returns:
        The fields that are read, the names that nobody knows (transformers' class of this family does not
            read them either, so they cannot change what it computes), and the absent fields with their
            defaults.

    Raises:
        SpecError: a field holds what it cannot, makes another model, is known to transformers only, or is a
            mistyped one.
    """
    renamed = _under_family_names(config, family)
    read = READ[family]
    defaults = _defaults_of_absent(renamed, family)
    renamed |= defaults
    kinds = {name: kind for name, kind in KINDS.items() if name in read}
    _check_kinds(renamed, kinds, f"{family}: ")
    _check_task(renamed, family)
    _check_switches(renamed, family)
    harmless = HARMLESS | HARMLESS_IN_FAMILY.get(family, set())
    known = read | harmless | SWITCHES.keys() | {"auto_map", "rotary", "layer_types", "attn_output_gate"}
    unknown = [name for name in renamed if not isinstance(name, str) or name not in known]
    if unknown:
        _refuse_known_elsewhere(renamed, family, unknown)
        _refuse_mistyped(unknown, defaults, family)
    # Code beside the checkpoint: it does not run here, nor in transformers by default.
    if renamed.get("auto_map"):
        unknown.append("auto_map")
    unknown += _unread_of_rope(renamed, family)
    known_fields = {name: value for name, value in renamed.items() if name in read}
    return ConfigFields(known_fields, tuple(unknown), defaults)


def _defaults_of_absent(config: Mapping[Any, Any], family: str) -> dict[str, Any]:
    """What the installed transformers' class of a family says of fields that a config leaves out."""
    absent = [name for name in _MAY_BE_ABSENT if name in READ[family] and name not in config]
    if not absent or family == "gpt_neox":  # whose reader has the defaults of all versions
        return {}
    installed = fields_of_installed(family)
    defaults = {name: installed.get(name) for name in absent}
    return {name: value for name, value in defaults.items() if value is not None and value is not ABSENT}


def check_wrapper(config: Mapping[Any, Any], name: str) -> None:
    """Refuses fields of a model around a text model that make another model of the text model.

    Args:
        config: the content of its config.json.
        name: its `model_type`.

    Raises:
        SpecError: it is quantised, no language model, or the like.
    """
    _check_task(config, name)
    _check_switched_off(config, name, SWITCHES)


def _under_family_names(config: Mapping[Any, Any], family: str) -> dict[Any, Any]:
    renamed = dict(config)
    for other, name in OTHER_NAMES.get(family, {}).items():
        value = renamed.pop(other, None)
        if value is None:
            continue
        if renamed.get(name) not in (None, value):
            raise SpecError(
                f"{family}: {other} {shown(value)} and {name} {shown(renamed[name])} mean the same; "
                "keep the right one"
            )
        renamed[name] = value
    return renamed


def _check_kinds(values: Mapping[Any, Any], kinds: FieldKinds, where: str) -> None:
    for name in kinds.keys() & values.keys():
        kind, value = kinds[name], values[name]
        if isinstance(kind, FieldKind):
            if not kind.fits(value):
                raise SpecError(f"{where}{name}: expected {kind.expected}, got {shown(value)}")
            continue
        if value is not None and not isinstance(value, dict):
            raise SpecError(f"{where}{name}: expected an object or null, got {shown(value)}")
        _check_kinds(value or {}, kind, f"{where}{name}.")


_OTHER_TASKS = re.compile(
    "SequenceClassification|TokenClassification|QuestionAnswering|Reward|SequenceRegression"
)


def _check_task(config: Mapping[Any, Any], family: str) -> None:
    """A classifier or reward model lacks the head of a language model."""
    names = config.get("architectures")
    if not is_texts(names):
        raise SpecError(f"{family}: architectures: expected a list of texts or null, got {shown(names)}")
    for name in names or []:
        if _OTHER_TASKS.search(name):
            raise SpecError(
                f"{family}: architectures: {shown(name)} is a classifier or reward model; "
                "expected a language model (a reward model goes into scorer.path)"
            )


def _check_switches(config: Mapping[Any, Any], family: str) -> None:
    of_family = {
        "rotary": Switch(family not in ("gpt2", "gpt_bigcode")),
        "use_qk_norm": Switch(family in ALWAYS_QK_NORM),
        "attn_output_gate": Switch(family in ALWAYS_GATED),
    }
    _check_switched_off(config, family, SWITCHES | of_family)
    if "layer_types" not in READ[family]:
        _check_layer_types(config, family)


def _check_switched_off(config: Mapping[Any, Any], family: str, switches: Mapping[str, Switch]) -> None:
    for name, switch in switches.items():
        if family in SWITCHES_READ.get(name, set()) or _is_read_quantised(config, name, family):
            continue
        if not _is_off(config.get(name), switch.off):
            expected = switch.remedy or f"only {str(switch.off).lower()}"
            raise SpecError(f"{family}: {name}: {shown(config[name])} is not supported, {expected}")


def _is_read_quantised(config: Mapping[Any, Any], name: str, family: str) -> bool:
    """Whether a field says that weights are quantised in the way that we read."""
    value = config.get(name)
    return (
        name == "quantization_config"
        and family in QUANTISED
        and isinstance(value, dict)
        and value.get("quant_method") == QUANTISED[family]
    )


def _is_off(value: Any, off: bool | None) -> bool:
    if value is None:
        return True
    if off is None:
        return isinstance(value, dict | list | str | bool | float) and not value
    return value is off


def _check_layer_types(config: Mapping[Any, Any], family: str) -> None:
    """Where all layers are alike, a list of their kinds may only say so."""
    kinds = config.get("layer_types")
    if kinds is None:
        return
    has_window = "sliding_window" in READ[family]
    local = has_window and config.get("sliding_window", family == "mistral" or None) is not None
    expected = "sliding_attention" if local else "full_attention"
    if not is_texts(kinds) or set(kinds) - {expected}:
        raise SpecError(
            f"{family}: layer_types: {shown(kinds)} is not supported, only {expected!r} in every layer"
        )


def rope_kind(rope: Mapping[Any, Any], family: str) -> str:
    """The kind of rotation that rotary fields name: default, linear, yarn, or one that we do not have.

    Args:
        rope: the content of `rope_scaling` or `rope_parameters`.
        family: the config's `model_type`.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return "longrope" if family == "phi3" and kind in ("su", "yarn") else kind  # its older names


def _unread_of_rope(config: Mapping[Any, Any], family: str) -> list[str]:
    """The fields within rope_scaling and rope_parameters that their kind of rotation does not read."""
    sets: dict[str, dict[Any, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        if name in READ[family]:
            sets[name] = config.get(name) or {}
    for kind in LAYER_KINDS:
        sets[f"rope_parameters.{kind}"] = sets.get("rope_parameters", {}).get(kind) or {}
    unread = []
    read_by_family = ROPE_READ_IN_FAMILY.get(family, set())
    for where, rope in sets.items():
        if rope.get("mrope_section") is not None and "mrope_section" not in read_by_family:
            raise SpecError(
                f"{family}: {where}.mrope_section: {shown(rope['mrope_section'])} is not supported, "
                "only positions of text are"
            )
        read = ROPE_READ.get(rope_kind(rope, family), set(rope)) | LAYER_KINDS.keys()
        read |= read_by_family
        unread += [f"{where}.{name}" for name in rope if name not in read]
    return unread


def _refuse_mistyped(unknown: list[Any], defaults: Mapping[str, Any], family: str) -> None:
    """A name like that of an absent field is that field, mistyped: its default would make another model."""
    for name in defaults:
        near = difflib.get_close_matches(name, [str(other)[:60] for other in unknown], 1, 0.75)
        if near:
            raise SpecError(f"{family}: {near[0]}: no such field; was {name} meant? (it is absent)")


def _refuse_known_elsewhere(config: Mapping[Any, Any], family: str, unknown: list[Any]) -> None:
    """A newer transformers may know fields that our tables lack: they must hold its default."""
    installed = fields_of_installed(family)
    for name in unknown:
        if not isinstance(name, str) or name not in installed:
            continue
        default = installed[name]
        if config[name] is not None and (default is ABSENT or default != config[name]):
            raise SpecError(
                f"{family}: {_cut(name)}: {shown(config[name])} is not supported: the installed transformers "
                "reads this field, and this program does not know it yet"
            )


# ---------------------------------------------------------------- reading values


def first(*values: Any) -> Any:
    """The first value that is not None.

    Args:
        *values: of which there must be such a one.
    """
    return next(value for value in values if value is not None)


def needed(config: Mapping[Any, Any], where: str, key: str, default: Any = None) -> Any:
    """The value of a field.

    Args:
        config: the fields.
        where: the family, or a set of fields in it, for the message.
        key: the field.
        default: its value where it is absent or null; None: it must be there.

    Raises:
        SpecError: it is not there, and has no default.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise SpecError(f"{where}: {key}: missing; it has no default that all checkpoints share")
    return value


# ---------------------------------------------------------------- words


def shown(value: Any) -> str:
    """A value as a message quotes it: 60 characters at most.

    Args:
        value: anything that a JSON file can hold.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or lists within lists
        text = f"a {type(value).__name__} too large to be shown"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[Any], most: int) -> str:
    """Names as a message lists them: sorted, and only so many.

    Args:
        names: texts, or what else stands in their place in a config.
        most: how many.
    """
    ordered = sorted(_cut(name) if isinstance(name, str) else shown(name) for name in names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def note_of_fields(fields: ConfigFields, config: Mapping[Any, Any], family: str, where: str) -> str | None:
    """One line that lists the fields which change nothing, and asks after mistyped ones, and those which were
    absent; None: no such.

    Args:
        fields: what `check_fields` made of the config.
        config: the content of the config.json.
        family: its `model_type`.
        where: the setting or directory that it came from.
    """
    parts = []
    if fields.ignored:
        why = f"config fields ignored, since transformers' {family} does not read them either"
        part = f"{why}: {listed(fields.ignored, 60)}"
        absent = [name for name in READ[family] if name not in config]
        for name in fields.ignored[:60]:
            near = difflib.get_close_matches(str(name)[:60], absent, 1, 0.88)
            if near:
                part += f" (was {near[0]} meant by {_cut(str(name))}?)"
        parts.append(part)
    if fields.defaults:
        parts.append(f"config fields absent{_taken(fields, family)}")
    return escaped(f"{where}: {'; '.join(parts)}") if parts else None


def defaults_taken(fields: ConfigFields, family: str) -> str:
    """Ends a message about a config with what was absent from it; "" if nothing was.

    Args:
        fields: what `check_fields` made of the config.
        family: its `model_type`.
    """
    return f" (fields absent{_taken(fields, family)})" if fields.defaults else ""


def _taken(fields: ConfigFields, family: str) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in sorted(fields.defaults.items()))
    return f", taken as transformers' {family} has them: {listed}"
