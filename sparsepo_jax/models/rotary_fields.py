"""How positions are rotated: a config's `rope_parameters` (transformers 5), `rope_scaling`, `rope_theta`."""

from dataclasses import dataclass
from typing import Any

from sparsepo_jax.models.config_fields import SpecError, first, needed, rope_kind, shown


@dataclass(frozen=True)
class RopeScaling:
    """How positions are stretched beyond those of the first training.

    Linear scaling stretches all wavelengths by `factor`. That of Llama 3 stretches those longer than
    original_positions / low, keeps those shorter than original_positions / high, and blends in between.

    Attributes:
        factor: how many times the positions are stretched, above 0.
        low: low_freq_factor, turns over the original positions; None: linear scaling.
        high: high_freq_factor, above `low`; None: linear scaling.
        original_positions: positions of the first training, tokens; None: linear scaling.
    """

    factor: float
    low: float | None = None
    high: float | None = None
    original_positions: int | None = None


@dataclass(frozen=True)
class Rotation:
    """How queries and keys are rotated by their positions.

    Attributes:
        dim: dims of each head that are rotated, even.
        base: base of the rotary frequencies.
        scaling: how positions are stretched; None: they are not.
    """

    dim: int
    base: float
    scaling: RopeScaling | None = None


def read_rope(config: dict[Any, Any], family: str, positions: int, head_dim: int) -> Rotation:
    """The rotation of all layers; in Gemma 3, of the layers that see everything.

    Args:
        config: the fields that the family reads.
        family: its `model_type`; any of Llama's kin.
        positions: max_position_embeddings, for scaling that does not name the original positions.
        head_dim: dims of a head.

    Raises:
        SpecError: fields that contradict each other, or a rotation that we do not have.
    """
    if family == "gemma3_text":
        rope = _gemma3_rope(config)
        where = "rope_parameters.full_attention"
        return Rotation(head_dim, *_rope_of(where, rope, config, family, positions, base=1e6))
    readings = [_rope_of(name, rope, config, family, positions) for name, rope in _rope_sets(config, family)]
    if readings[0] != readings[-1]:
        raise SpecError(
            f"{family}: rope_scaling and rope_parameters are both there and differ; keep the right one"
        )
    return Rotation(head_dim, *readings[0])


def gpt_neox_rope(config: dict[Any, Any], head_dim: int) -> Rotation:
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
    if rope_kind(rope) != "default":
        raise SpecError(
            f"gpt_neox: rope_parameters.rope_type: {shown(rope_kind(rope))} is not supported, only 'default'"
        )
    base = float(first(rope.get("rope_theta"), config.get("rotary_emb_base"), 10000.0))
    share = float(first(rope.get("partial_rotary_factor"), config.get("rotary_pct"), 0.25))
    _refuse_another(config, "rope_theta", base, "rotary_emb_base")
    _refuse_another(config, "partial_rotary_factor", share, "rotary_pct")
    return Rotation(int(head_dim * share), base)


def _refuse_another(config: dict[Any, Any], name: str, value: float, other_name: str) -> None:
    if first(config.get(name), value) != value:
        raise SpecError(
            f"gpt_neox: {name}: {shown(config[name])} differs from {other_name}, which is {value:g}; "
            "keep the right one"
        )


def gemma3_local_rope(config: dict[Any, Any], head_dim: int) -> Rotation:
    """The rotation of Gemma 3's layers that see a window. Their positions cannot be stretched.

    Args:
        config: the fields that Gemma 3 reads.
        head_dim: dims of a head.

    Raises:
        SpecError: a rotation that we do not have.
    """
    where = "rope_parameters.sliding_attention"
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if rope_kind(local) != "default":
        raise SpecError(
            f"gemma3_text: {where}.rope_type: {shown(rope_kind(local))} is not supported, only 'default'"
        )
    above = {"rope_theta": config.get("rope_local_base_freq")}
    return Rotation(head_dim, *_rope_of(where, local, above, "gemma3_text", positions=1))


def _rope_sets(config: dict[Any, Any], family: str) -> list[tuple[str, dict[Any, Any]]]:
    """(name, content) of the fields that say how positions are rotated; at least one, which may be empty."""
    sets = [(name, config[name]) for name in ("rope_scaling", "rope_parameters") if config.get(name)]
    for name, rope in sets:
        if nested := {"full_attention", "sliding_attention"} & rope.keys():
            raise SpecError(
                f"{family}: {name}.{min(nested)}: all layers of this family rotate alike; "
                "expected rope_type and the like"
            )
    return sets or [("rope_parameters", {})]


def _gemma3_rope(config: dict[Any, Any]) -> dict[Any, Any]:
    """The fields for layers that see everything: as in transformers, `rope_scaling` overrides the others."""
    sets = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    if flat := sets.keys() - {"full_attention", "sliding_attention"}:
        raise SpecError(
            f"gemma3_text: rope_parameters.{min(flat)}: expected full_attention and sliding_attention, "
            "each with a set of its own"
        )
    if scaling.get("type") and not scaling.get("rope_type"):
        raise SpecError(
            f"gemma3_text: rope_scaling.type: {shown(scaling['type'])} is read under the name rope_type "
            "only; rename it"
        )
    return {**(sets.get("full_attention") or {}), **scaling}


def _rope_of(
    name: str,
    rope: dict[Any, Any],
    above: dict[Any, Any],
    family: str,
    positions: int,
    base: float = 10000.0,
) -> tuple[float, RopeScaling | None]:
    """The rotary base and scaling that one set of fields means.

    Args:
        name: the set's name in the config, for messages.
        rope: its content.
        above: the config, whose fields count where the set has none.
        family: the config's `model_type`.
        positions: original positions where the set does not name them.
        base: the rotary base where no field names it.
    """
    where = f"{family}: {name}"
    kind = rope_kind(rope)
    _refuse_unclear_kind(rope, where)
    for fields in (above, rope):
        share = first(fields.get("partial_rotary_factor"), 1.0)
        if share != 1.0:
            raise SpecError(f"{family}: partial_rotary_factor: {shown(share)} is not supported, only 1.0")
    base = float(first(rope.get("rope_theta"), above.get("rope_theta"), base))
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling(float(needed(rope, where, "factor")))
    if kind != "llama3":
        raise SpecError(f"{where}.rope_type: {shown(kind)} is not supported, only default, linear and llama3")
    factor = float(needed(rope, where, "factor"))
    low = float(needed(rope, where, "low_freq_factor"))
    high = float(needed(rope, where, "high_freq_factor"))
    if low >= high:
        raise SpecError(f"{where}: expected low_freq_factor below high_freq_factor, got {low} and {high}")
    original = first(rope.get("original_max_position_embeddings"), positions)
    return base, RopeScaling(factor, low, high, original)


def _refuse_unclear_kind(rope: dict[Any, Any], where: str) -> None:
    kind, old_kind = rope.get("rope_type"), rope.get("type")
    if kind and old_kind and kind != old_kind:
        raise SpecError(
            f"{where}: rope_type {shown(kind)} and type {shown(old_kind)} differ; keep the right one"
        )
    if not (kind or old_kind) and first(rope.get("factor"), 1.0) != 1.0:
        raise SpecError(f"{where}.rope_type: missing, though there is a factor of {rope['factor']:g}")
