"""How positions are rotated: `rope_parameters` (transformers 5), `rope_scaling`, `rope_theta` of a config."""

from dataclasses import dataclass
from typing import Any

from sparsepo_jax.models.config_fields import SpecError, first, needed, rope_kind, shown


@dataclass(frozen=True)
class RopeScaling:
    """How positions are stretched.

    Llama 3: wavelengths longer than original_positions / low are stretched by factor, shorter than
    original_positions / high kept, those between blended. Linear: all are stretched (low, high and
    original_positions are None).
    """

    factor: float
    low: float | None = None
    high: float | None = None
    original_positions: int | None = None


def gpt_neox_rope(c: dict[str, Any]) -> tuple[float, float]:
    """(base, share of the dims that are rotated). Some versions wrote both under two names."""
    (_, rope), *others = _rope_sets(c, "gpt_neox")
    if others and others[0][1] != rope:
        raise SpecError(
            "gpt_neox: rope_scaling and rope_parameters are both there and differ; keep the right one"
        )
    if rope_kind(rope) != "default":
        raise SpecError(
            f"gpt_neox: rope_parameters.rope_type: {shown(rope_kind(rope))} is not supported, only 'default'"
        )
    base = float(first(rope.get("rope_theta"), c.get("rotary_emb_base"), 10000.0))
    share = float(first(rope.get("partial_rotary_factor"), c.get("rotary_pct"), 0.25))
    for name, value, own_name in (
        ("rope_theta", base, "rotary_emb_base"),
        ("partial_rotary_factor", share, "rotary_pct"),
    ):
        if first(c.get(name), value) != value:
            raise SpecError(
                f"gpt_neox: {name}: {shown(c[name])} differs from {own_name}, which is {value:g}; "
                "keep the right one"
            )
    return base, share


def _rope_sets(c: dict[str, Any], family: str) -> list[tuple[str, dict[str, Any]]]:
    """What says how positions are rotated, by name."""
    sets = [(name, c[name]) for name in ("rope_scaling", "rope_parameters") if c.get(name)]
    for name, rope in sets:
        if nested := {"full_attention", "sliding_attention"} & rope.keys():
            raise SpecError(
                f"{family}: {name}.{min(nested)}: all layers of this family rotate alike; "
                "expected rope_type and the like"
            )
    return sets or [("rope_parameters", {})]


def read_rope(c: dict[str, Any], family: str, positions: int) -> tuple[float, RopeScaling | None]:
    """(base, scaling) of all layers, or of those that see everything."""
    if family == "gemma3_text":
        return _rope_of("rope_parameters.full_attention", _gemma3_rope(c), c, family, positions, base=1e6)
    read = [_rope_of(name, rope, c, family, positions) for name, rope in _rope_sets(c, family)]
    if read[0] != read[-1]:
        raise SpecError(
            f"{family}: rope_scaling and rope_parameters are both there and differ; keep the right one"
        )
    return read[0]


def _rope_of(
    where: str, rope: dict[str, Any], c: dict[str, Any], family: str, positions: int, base: float = 10000.0
) -> tuple[float, RopeScaling | None]:
    where, kind = f"{family}: {where}", rope_kind(rope)
    if rope.get("rope_type") and rope.get("type") and rope["rope_type"] != rope["type"]:
        raise SpecError(
            f"{where}: rope_type {shown(rope['rope_type'])} and type {shown(rope['type'])} differ; "
            "keep the right one"
        )
    if not (rope.get("rope_type") or rope.get("type")) and first(rope.get("factor"), 1.0) != 1.0:
        raise SpecError(f"{where}.rope_type: missing, though there is a factor of {rope['factor']:g}")
    for fields in (c, rope):
        if first(fields.get("partial_rotary_factor"), 1.0) != 1.0:
            raise SpecError(
                f"{family}: partial_rotary_factor: {shown(fields['partial_rotary_factor'])} is not supported, "
                "only 1.0"
            )
    base = float(first(rope.get("rope_theta"), c.get("rope_theta"), base))
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling(float(needed(rope, where, "factor")))
    if kind != "llama3":
        raise SpecError(f"{where}.rope_type: {shown(kind)} is not supported, only default, linear and llama3")
    factor, low, high = (
        float(needed(rope, where, name)) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    if low >= high:
        raise SpecError(f"{where}: expected low_freq_factor below high_freq_factor, got {low} and {high}")
    return base, RopeScaling(
        factor, low, high, first(rope.get("original_max_position_embeddings"), positions)
    )


def _gemma3_rope(c: dict[str, Any]) -> dict[str, Any]:
    """Of layers that see everything: transformers puts `rope_scaling` over it."""
    sets, scaling = c.get("rope_parameters") or {}, c.get("rope_scaling") or {}
    if flat := sets.keys() - {"full_attention", "sliding_attention"}:
        raise SpecError(
            f"gemma3_text: rope_parameters.{min(flat)}: expected full_attention and sliding_attention, "
            "each with a set of its own"
        )
    if scaling.get("type") and not scaling.get("rope_type"):
        raise SpecError(
            f"gemma3_text: rope_scaling.type: {shown(scaling['type'])} is read under the name rope_type only; "
            "rename it"
        )
    return {**(sets.get("full_attention") or {}), **scaling}


def gemma3_local_base(c: dict[str, Any]) -> float:
    """The base of layers that see a window. They cannot be stretched."""
    local, where = (
        (c.get("rope_parameters") or {}).get("sliding_attention") or {},
        "rope_parameters.sliding_attention",
    )
    if rope_kind(local) != "default":
        raise SpecError(
            f"gemma3_text: {where}.rope_type: {shown(rope_kind(local))} is not supported, only 'default'"
        )
    return _rope_of(where, local, {"rope_theta": c.get("rope_local_base_freq")}, "gemma3_text", 1)[0]
