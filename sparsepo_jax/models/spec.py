"""A Hugging Face `config.json` read into a DecoderSpec, by the reader of its family.

No JAX here. Which fields there may be, and what happens to those that are not read, is decided in
`config_fields`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sparsepo_jax.models.config_fields import (
    ConfigFields,
    SpecError,
    check_fields,
    check_wrapper,
    defaults_taken,
    note_of_fields,
    shown,
)
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.families import FAMILIES
from sparsepo_jax.models.wrappers import WRAPPERS, Wrapping, read_text_config, read_wrapping


def spec_from_hf(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Hugging Face config.

    Args:
        config: the content of a config.json. Of a model around a text model, the text model is read.

    Raises:
        SpecError: in one line, what we cannot run faithfully.
    """
    family, fields, wrapping = _fields(config)
    try:
        spec = FAMILIES[family].read(fields.config)
        if wrapping is not None:
            spec = replace(spec, wrapping=wrapping)
            if wrapping.row.plain_logits:
                spec = replace(spec, logit_scale=1.0, logit_softcap=None)
        return _checked(spec)
    except SpecError as error:
        raise SpecError(f"{error}{defaults_taken(fields, family)}") from None


def absent_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a config leaves out, with what the installed transformers takes them to be.

    Args:
        config: the content of a config.json.

    Raises:
        SpecError: as `spec_from_hf`.
    """
    return dict(_fields(config)[1].defaults)


def fields_note(config: Mapping[str, Any], where: str) -> str | None:
    """One line that lists the fields of a config which change nothing, or are absent; None if all is plain.

    Args:
        config: the content of a config.json.
        where: the setting or directory that it came from, for the line's beginning.

    Raises:
        SpecError: as `spec_from_hf`.
    """
    family, fields, wrapping = _fields(config)
    if wrapping is not None:
        config, where = read_text_config(config, wrapping), f"{where}: text_config"
    return note_of_fields(fields, config, family, where)


def _fields(config: Mapping[Any, Any]) -> tuple[str, ConfigFields, Wrapping | None]:
    """(family, its fields, the wrapper that they were found in)."""
    wrapping = read_wrapping(config)
    if wrapping is not None:
        check_wrapper(config, wrapping.model_type)
        config = read_text_config(config, wrapping)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise SpecError(_unknown_family(config))
    return family, check_fields(config, family), wrapping


def _unknown_family(config: Mapping[Any, Any]) -> str:
    """What to do with a config whose `model_type` is none of ours."""
    named, classes = config.get("model_type"), config.get("architectures")
    if isinstance(classes, list):
        by_class = {family.architecture: name for name, family in FAMILIES.items()}
        by_class |= {wrapper.architecture: name for name, wrapper in WRAPPERS.items()}
        fitting = [by_class[name] for name in classes if isinstance(name, str) and name in by_class]
        if fitting:
            what = "missing" if named is None else f"unknown architecture {shown(named)}"
            return (
                f"model_type: {what}; architectures names a class of {fitting[0]!r}: if it is one, write that"
            )
    if config.get("auto_map"):
        return (
            f"model_type: unknown architecture {shown(named)}, which needs code of its own (auto_map), and "
            "that does not run here; the models that are known are listed in docs/guides/models.md"
        )
    known = ", ".join(FAMILIES)
    return (
        f"model_type: unknown architecture {shown(named)}; known: {known}, and {len(WRAPPERS)} models "
        "around these that see images (docs/guides/models.md)"
    )


def _checked(spec: DecoderSpec) -> DecoderSpec:
    for block, _ in spec.blocks():
        if block.num_heads % block.num_kv_heads:
            raise SpecError(
                f"{spec.family}: {block.num_heads} query heads are no multiple of the "
                f"{block.num_kv_heads} key/value heads"
            )
        rotation = block.kinds[0].rotation
        if rotation is not None and not (2 <= rotation.dim <= block.head_dim and rotation.dim % 2 == 0):
            raise SpecError(
                f"{spec.family}: {rotation.dim} rotated dims do not fit heads of {block.head_dim} "
                "(an even number is needed)"
            )
    return spec
