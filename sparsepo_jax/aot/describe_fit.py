"""What a search for settings came to, as JSON and as text for the terminal."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from sparsepo_jax.aot.describe import as_json, as_text, gb, topology_text
from sparsepo_jax.aot.fit import Candidate, Fit, Overrides, Tried, mesh_name
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.run.choices import BLOCK

FitLine = tuple[str, str]


def fit_as_json(result: Fit, topology: Topology) -> dict[str, Any]:
    """What `--aot --fit --json` prints."""
    best = result.best
    return {
        "topology": str(topology),
        "usable_bytes": topology.usable_bytes,
        "overrides": None if best is None else best.candidate.overrides,
        "best": None if best is None else as_json(best.compiled),
        "by_hand": _by_hand(result),
        "counted": len(result.candidates),
        "least_bytes": min((x.estimate.needed_bytes for x in result.candidates), default=None),
        "compiled": [
            {
                "overrides": one.candidate.overrides,
                "fits": one.compiled.footprint.fits,
                "needed_bytes": one.compiled.footprint.needed_bytes,
                "estimated_bytes": one.candidate.estimate.needed_bytes,
                "lower_bound_s": None if one.compiled.bound is None else one.compiled.bound.seconds,
                "estimated_s": one.candidate.estimate.bound.seconds,
            }
            for one in result.tried
        ],
        "left_out": dict(left_out(result)),
    }


def _by_hand(result: Fit) -> dict[str, Any] | None:
    """The settings that would be the best by hand count; None if none should fit."""
    first = next((candidate for candidate in result.candidates if candidate.fits), None)
    if first is None:
        return None
    counted = first.estimate
    return {
        "overrides": first.overrides,
        "needed_bytes": counted.needed_bytes,
        "lower_bound_s": counted.bound.seconds,
    }


def fit_as_text(result: Fit, topology: Topology) -> str:
    """What `--aot --fit` prints: the settings to paste, what they take, and why others fall out."""
    failed = sum(not one.compiled.footprint.fits for one in result.tried)
    counted = f"{len(result.candidates):,} settings counted by hand, {len(result.tried)} of them compiled"
    searched = ("searched", counted + (f", of which {failed} did not fit" if failed else ""))
    if result.best is None:
        nearest = min(result.candidates, key=lambda candidate: candidate.estimate.needed_bytes, default=None)
        text = "no settings fit"
        if nearest is not None:
            needed, usable = gb(nearest.estimate.needed_bytes), gb(topology.usable_bytes)
            text += f"; the smallest need about {needed} of {usable}: {settings_text(nearest.overrides)}"
        return _aligned([("topology", topology_text(topology)), searched, ("fits", text)], result)
    settings = ("settings", settings_text(result.best.candidate.overrides))
    return "\n".join((as_text(result.best.compiled), _aligned([searched, settings], result)))


def _aligned(lines: list[FitLine], result: Fit) -> str:
    fallen = [("left out", f"{name}: {why}") for name, why in left_out(result)]
    return "\n".join(f"{name:<12}{text}" for name, text in [*lines, *fallen])


def settings_text(overrides: Overrides) -> str:
    """Settings as the command line takes them."""
    return " ".join(f"{name}={_yaml(value)}" for name, value in overrides.items())


def _yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def left_out(result: Fit) -> Iterator[FitLine]:
    """(settings, why they were not taken): meshes, micro-steps, remat policies, blocks of logits."""
    yield from result.refused.items()
    best = result.best
    for one in result.tried:
        if one is not best:
            yield settings_text(_changes(one, best)), _compiled_reason(one)
    for name_of in (_mesh, _micro_steps, _remat, _head, _types):
        taken = None if best is None else name_of(best.candidate)
        for name, candidates in _grouped(result.candidates, name_of).items():
            if name != taken:
                yield name, _reason(candidates, best)


def _compiled_reason(one: Tried) -> str:
    footprint, bound = one.compiled.footprint, one.compiled.bound
    if not footprint.fits:
        return f"compiled, needs {gb(footprint.needed_bytes)}"
    return f"compiled, {bound.seconds:.3f} s a step at least"


def _reason(candidates: list[Candidate], best: Tried | None) -> str:
    """Why none of some candidates was taken, by hand count."""
    fitting = [x for x in candidates if x.fits]
    if not fitting:
        return f"needs about {gb(min(x.estimate.needed_bytes for x in candidates))} or more"
    text = f"about {min(x.estimate.bound.seconds for x in fitting):.3f} s a step at least"
    if best is not None:
        text += f", where the settings above count {best.candidate.estimate.bound.seconds:.3f} s"
    return text


def _changes(one: Tried, best: Tried | None) -> Overrides:
    """What a candidate has other than the best."""
    if best is None:
        return one.candidate.overrides
    chosen = best.candidate.overrides
    return {name: value for name, value in one.candidate.overrides.items() if chosen.get(name) != value}


def _grouped(candidates: list[Candidate], name_of: Callable[[Candidate], str]) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(name_of(candidate), []).append(candidate)
    return groups


def _types(candidate: Candidate) -> str:
    smaller = {name: value for name, value in candidate.overrides.items() if value == "bfloat16"}
    return settings_text(smaller) or "types of numbers as the config has them"


def _mesh(candidate: Candidate) -> str:
    names = ("data", "fsdp", "tensor")
    return mesh_name({axis: candidate.overrides[f"compute.mesh.{axis}"] for axis in names})


def _micro_steps(candidate: Candidate) -> str:
    [name] = [name for name in candidate.overrides if name.endswith(".accumulation")]
    return f"{name}={candidate.overrides[name]}"


def _remat(candidate: Candidate) -> str:
    return f"compute.remat={_yaml(candidate.overrides['compute.remat'])}"


def _head(candidate: Candidate) -> str:
    tokens, entries = (candidate.overrides[f"compute.head.{name}"] for name in ("tokens", "vocabulary"))
    if (tokens, entries) == BLOCK:
        return f"blocks of logits of {tokens} x {entries:,}"
    return "blocks of logits as large as suits"
