"""How positions are rotated: a config's `rope_parameters` (transformers 5), `rope_scaling`, `rope_theta`."""

from typing import Any, NamedTuple

from sparsepo_jax.models.config_fields import SpecError, first, needed, rope_kind, shown
from sparsepo_jax.models.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    Rotation,
    YarnScaling,
    longrope_attention_factor,
    yarn_attention_factor,
)

RotaryFields = dict[Any, Any]


class RopeDefaults(NamedTuple):
    """What rotary fields are read against.

    Attributes:
        family: the config's `model_type`.
        positions: max_position_embeddings, for scaling that does not name the original positions.
        head_dim: dims of a head.
        base: the rotary base where no field names it.
        share: of a head's dims that are rotated where no field names it; None: all are, in each model of the
            family.
        proportional: whether the family has proportional rotation.
    """

    family: str
    positions: int
    head_dim: int
    base: float = 10000.0
    share: float | None = None
    proportional: bool = False


def read_rope(config: RotaryFields, defaults: RopeDefaults) -> Rotation:
    """The rotation of all layers.

    Args:
        config: the fields that the family reads.
        defaults: what they are read against.

    Raises:
        SpecError: fields that contradict each other, or a rotation that we do not have.
    """
    rotations = [
        _rotation(name, rope, config, defaults) for name, rope in _rope_sets(config, defaults.family)
    ]
    if rotations[0] != rotations[-1]:
        raise SpecError(
            f"{defaults.family}: rope_scaling and rope_parameters are both there and differ; "
            "keep the right one"
        )
    return rotations[0]


def read_rope_of_kinds(
    config: RotaryFields, defaults: RopeDefaults, local_base: float
) -> tuple[Rotation, Rotation]:
    """The rotations of layers that see everything, and of those that see a window.

    An older `rope_scaling` belongs to those that see everything.

    Args:
        config: the fields that the family reads.
        defaults: what they are read against; its base is that of layers that see everything.
        local_base: the base of those that see a window, where their set does not name it.

    Raises:
        SpecError: fields that contradict each other, or a rotation that we do not have.
    """
    family = defaults.family
    sets = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    if flat := sets.keys() - {"full_attention", "sliding_attention"}:
        raise SpecError(
            f"{family}: rope_parameters.{min(flat)}: expected full_attention and sliding_attention, "
            "each with a set of its own"
        )
    if scaling.get("type") and not scaling.get("rope_type"):
        raise SpecError(
            f"{family}: rope_scaling.type: {shown(scaling['type'])} is read under the name rope_type "
            "only; rename it"
        )
    everywhere, local = ({**(sets.get(f"{kind}_attention") or {})} for kind in ("full", "sliding"))
    for name, rope in (("full", everywhere), ("sliding", local)):
        if rope.get("truncate") is False:
            raise SpecError(
                f"{family}: rope_parameters.{name}_attention.truncate: False is not supported, since "
                "transformers does not read it there"
            )
    everywhere |= scaling
    above = {name: value for name, value in config.items() if name != "original_max_position_embeddings"}
    above_local = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    return (
        _rotation("rope_parameters.full_attention", everywhere, above, defaults),
        _rotation(
            "rope_parameters.sliding_attention", local, above_local, defaults._replace(base=local_base)
        ),
    )


def gpt_neox_rope(config: RotaryFields, head_dim: int) -> Rotation:
    """The rotation of GPT-NeoX.

    Some versions of transformers wrote its base, and the share of a head's dims that are rotated, under two
    names, which must agree.

    Args:
        config: the fields that GPT-NeoX reads.
        head_dim: dims of a head.

    Raises:
        SpecError: fields that contradict each other, or a rotation that we do not have.
    """
    (_, rope), *others = _rope_sets(config, "gpt_neox")
    if others and others[0][1] != rope:
        raise SpecError(
            "gpt_neox: rope_scaling and rope_parameters are both there and differ; keep the right one"
        )
    if (kind := rope_kind(rope, "gpt_neox")) != "default":
        raise SpecError(
            f"gpt_neox: rope_parameters.rope_type: {shown(kind)} is not supported, only 'default'"
        )
    base = float(first(rope.get("rope_theta"), config.get("rotary_emb_base"), 10000.0))
    share = float(first(rope.get("partial_rotary_factor"), config.get("rotary_pct"), 0.25))
    _refuse_another(config, "rope_theta", base, "rotary_emb_base")
    _refuse_another(config, "partial_rotary_factor", share, "rotary_pct")
    return Rotation(int(head_dim * share), base)


def _refuse_another(config: RotaryFields, name: str, value: float, other_name: str) -> None:
    if first(config.get(name), value) != value:
        raise SpecError(
            f"gpt_neox: {name}: {shown(config[name])} differs from {other_name}, which is {value:g}; "
            "keep the right one"
        )


def _rope_sets(config: RotaryFields, family: str) -> list[tuple[str, RotaryFields]]:
    """(name, content) of the fields that say how positions are rotated; at least one, which may be empty."""
    sets = [(name, config[name]) for name in ("rope_scaling", "rope_parameters") if config.get(name)]
    for name, rope in sets:
        if nested := {"full_attention", "sliding_attention"} & rope.keys():
            raise SpecError(
                f"{family}: {name}.{min(nested)}: all layers of this family rotate alike; "
                "expected rope_type and the like"
            )
    return sets or [("rope_parameters", {})]


def _rotation(name: str, rope: RotaryFields, above: RotaryFields, defaults: RopeDefaults) -> Rotation:
    """The rotation that one set of fields means.

    Args:
        name: the set's name in the config, for messages.
        rope: its content.
        above: the config, whose fields count where the set has none.
        defaults: what they are read against.
    """
    where = f"{defaults.family}: {name}"
    kind = rope_kind(rope, defaults.family)
    _refuse_unclear_kind(rope, where)
    if kind == "proportional" and defaults.proportional:
        return _proportional(rope, defaults)
    share = first(rope.get("partial_rotary_factor"), above.get("partial_rotary_factor"), defaults.share, 1.0)
    if share != 1.0 and defaults.share is None:
        raise SpecError(
            f"{defaults.family}: partial_rotary_factor: {shown(share)} is not supported, only 1.0"
        )
    dim = int(defaults.head_dim * share)
    base = float(first(rope.get("rope_theta"), above.get("rope_theta"), defaults.base))
    if kind == "default":
        return Rotation(dim, base)
    if kind not in _SCALINGS:
        raise SpecError(f"{where}.rope_type: {shown(kind)} is not supported, {_remedy(kind, defaults)}")
    original = first(
        above.get("original_max_position_embeddings"),
        rope.get("original_max_position_embeddings"),
        defaults.positions,
    )
    rotation = Rotation(dim, base, _SCALINGS[kind](rope, where, original, defaults))
    _check_rotation(rotation, where)
    return rotation


def _proportional(rope: RotaryFields, defaults: RopeDefaults) -> Rotation:
    share = float(first(rope.get("partial_rotary_factor"), 1.0))
    scaling = ProportionalScaling(share, float(first(rope.get("factor"), 1.0)))
    return Rotation(defaults.head_dim, float(first(rope.get("rope_theta"), defaults.base)), scaling)


def _remedy(kind: str, defaults: RopeDefaults) -> str:
    if kind == "dynamic":
        return (
            "since it depends on the longest sequence of a batch: up to "
            f"{defaults.positions:,} tokens rope_type 'default' is the same, so write that into config.json"
        )
    return f"only default, {', '.join(_SCALINGS)}"


def _linear(rope: RotaryFields, where: str, original: int, defaults: RopeDefaults) -> RopeScaling:
    return LinearScaling(float(needed(rope, where, "factor")))


def _llama3(rope: RotaryFields, where: str, original: int, defaults: RopeDefaults) -> RopeScaling:
    factor = float(needed(rope, where, "factor"))
    low = float(needed(rope, where, "low_freq_factor"))
    high = float(needed(rope, where, "high_freq_factor"))
    if low >= high:
        raise SpecError(f"{where}: expected low_freq_factor below high_freq_factor, got {low} and {high}")
    return Llama3Scaling(factor, low, high, original)


def _yarn(rope: RotaryFields, where: str, original: int, defaults: RopeDefaults) -> RopeScaling:
    factor = float(first(rope.get("factor"), defaults.positions / original))
    usual = yarn_attention_factor(factor, rope.get("mscale"), rope.get("mscale_all_dim"))
    return YarnScaling(
        factor,
        original,
        attention_factor=float(first(rope.get("attention_factor"), usual)),
        fast=float(first(rope.get("beta_fast"), 32.0)),
        slow=float(first(rope.get("beta_slow"), 1.0)),
        truncate=bool(rope.get("truncate", True)),
    )


def _longrope(rope: RotaryFields, where: str, original: int, defaults: RopeDefaults) -> RopeScaling:
    short = needed(rope, where, "short_factor")
    needed(rope, where, "long_factor")
    if original < 2:
        raise SpecError(f"{where}: original_max_position_embeddings: expected 2 or more, got {original}")
    factor = float(first(rope.get("factor"), defaults.positions / original))
    usual = longrope_attention_factor(factor, original)
    attention_factor = float(first(rope.get("attention_factor"), usual))
    return LongRopeScaling(tuple(map(float, short)), original, attention_factor)


_SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def _check_rotation(rotation: Rotation, where: str) -> None:
    scaling = rotation.scaling
    if isinstance(scaling, YarnScaling) and rotation.base <= 1.0:
        raise SpecError(f"{where}: rope_theta: expected a number above 1 for yarn, got {rotation.base:g}")
    if isinstance(scaling, LongRopeScaling) and len(scaling.short) != rotation.dim // 2:
        raise SpecError(
            f"{where}: short_factor: expected {rotation.dim // 2} numbers, one for each pair of the "
            f"{rotation.dim} rotated dims, got {len(scaling.short)}"
        )


def _refuse_unclear_kind(rope: RotaryFields, where: str) -> None:
    kind, old_kind = rope.get("rope_type"), rope.get("type")
    if kind and old_kind and kind != old_kind:
        raise SpecError(
            f"{where}: rope_type {shown(kind)} and type {shown(old_kind)} differ; keep the right one"
        )
    if not (kind or old_kind) and first(rope.get("factor"), 1.0) != 1.0:
        raise SpecError(f"{where}.rope_type: missing, though there is a factor of {rope['factor']:g}")
