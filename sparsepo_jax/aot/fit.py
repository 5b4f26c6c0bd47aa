"""`--aot NAME --fit`: the settings of memory and mesh that fit devices and have the lowest bound.

All settings are counted by hand first; only the best of them are compiled.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax

from sparsepo_jax.aot.absent import absent_devices
from sparsepo_jax.aot.compile import Compiled, Task, compile_task, read_task, shapes_of
from sparsepo_jax.aot.estimate import Estimate, Held, chosen_for, estimate, held_on
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.run.choices import BLOCK

MOST_COMPILED = 6
ENOUGH = 3  # that fit
SAME = 0.01  # bounds in the same hundredth of the least are taken for equal: a count is no more exact
Overrides = dict[str, Any]


class Candidate(NamedTuple):
    """Settings with what is known of them.

    Attributes:
        overrides: the settings that the search chose.
        task: with these settings.
    """

    overrides: Overrides
    task: Task
    estimate: Estimate

    @property
    def fits(self) -> bool:
        """Whether it should, by hand count."""
        return self.estimate.needed_bytes <= self.task.topology.usable_bytes


class Tried(NamedTuple):
    """A candidate that was compiled."""

    candidate: Candidate
    compiled: Compiled


class Fit(NamedTuple):
    """What a search came to.

    Attributes:
        best: the compiled settings that fit and are the fastest, see `_fastest`; None: none fit.
        tried: all that were compiled.
        candidates: all that were counted by hand, the fastest first.
        refused: meshes that cannot be, with the reason.
    """

    best: Tried | None
    tried: list[Tried]
    candidates: list[Candidate]
    refused: dict[str, str]


def fit(config: Config, topology: Topology) -> Fit:
    """Searches settings. Raises as `compile_step` does."""
    return search(read_task(config, topology), absent_devices(topology))


def search(
    task: Task,
    devices: list[jax.Device],
    compile_one: Callable[[Task, list[jax.Device]], Compiled] = compile_task,
    enough: int = ENOUGH,
) -> Fit:
    """Searches the settings of a task; types of numbers are made smaller only if nothing fits without.

    Args:
        compile_one: what compiles a candidate.
        enough: how many that fit are compiled; 0: all is counted by hand alone.
    """
    tried: list[Tried] = []
    candidates: list[Candidate] = []
    refused: dict[str, str] = {}
    for types in type_choices(task):
        held, refused = _meshes(with_settings(task, types), devices)
        added = list(_candidates(task, types, held))
        candidates = fastest_first([*candidates, *added])
        tried += _compile_best(fastest_first(added), devices, compile_one, enough)
        if enough == 0 and any(candidate.fits for candidate in added):
            break
        fitting = [one for one in tried if one.compiled.footprint.fits and one.compiled.bound is not None]
        if fitting:
            return Fit(_fastest(fitting), tried, candidates, refused)
    return Fit(None, tried, candidates, refused)


def fastest_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """In the order of their bounds.

    Of equal ones (SAME) first what exchanges less, since not all of that goes on beside products; then fewer
    micro-steps, whose starts the bound does not count; then what needs less memory.

    Args:
        candidates: that were counted by hand.
    """
    least_s = min((one.estimate.bound.seconds for one in candidates), default=0.0)

    def rank(candidate: Candidate) -> tuple[float, float, int, int]:
        bound, unit_s = candidate.estimate.bound, SAME * least_s
        micro_steps = getattr(candidate.task.config, candidate.task.stage).accumulation
        of_bound = (bound.seconds - least_s) // unit_s, bound.exchange_s // unit_s
        return *of_bound, micro_steps, candidate.estimate.needed_bytes

    return sorted(candidates, key=rank)


def _fastest(tried: Sequence[Tried]) -> Tried:
    """Of the lowest compiled bound, and of equal ones (SAME) the one that was ranked first."""
    bounds = [one.compiled.bound.seconds for one in tried if one.compiled.bound is not None]
    return next(one for one, bound in zip(tried, bounds, strict=True) if bound <= (1 + SAME) * min(bounds))


# ---------------------------------------------------------------- what there is to choose


def with_settings(task: Task, overrides: Overrides) -> Task:
    """The task with other values of its config, by dotted names."""
    config: Any = task.config
    for name, value in overrides.items():
        config = _replaced(config, name.split("."), value)
    return task._replace(config=config)


def _replaced(section: Any, names: list[str], value: Any) -> Any:
    new = value if len(names) == 1 else _replaced(getattr(section, names[0]), names[1:], value)
    return section.model_copy(update={names[0]: new})


def _choices(section: Any, name: str) -> tuple[Any, ...]:
    """The values that a setting can have; none if there is no such setting."""
    field = type(section).model_fields.get(name)
    return () if field is None else get_args(field.annotation)


def type_choices(task: Task) -> Iterator[Overrides]:
    """Types of numbers to try: the config's own, then smaller ones, those that change least first."""
    config, training = task.config, getattr(task.config, task.stage)
    smaller: Overrides = {}
    yield {}
    for name, section in (
        ("reference.dtype", config.reference),
        (f"{task.stage}.optimizer.moments", training.optimizer),
        ("compute.weights", config.compute),
    ):
        setting = name.rsplit(".", 1)[1]
        if "bfloat16" in _choices(section, setting) and getattr(section, setting) == "float32":
            smaller[name] = "bfloat16"
            yield dict(smaller)


def mesh_choices(topology: Topology) -> Iterator[dict[str, int]]:
    """Meshes of the topology's devices; tensor stays within a host or slice."""
    for tensor in _divisors(topology.group_size):
        for fsdp in _divisors(topology.devices // tensor):
            yield {"data": topology.devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def mesh_name(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def _meshes(task: Task, devices: list[jax.Device]) -> tuple[list[Held], dict[str, str]]:
    """(what devices hold on each mesh that can be, why the others cannot)."""
    held: list[Held] = []
    refused: dict[str, str] = {}
    for sizes in mesh_choices(task.topology):
        settings = {f"compute.mesh.{axis}": size for axis, size in sizes.items()}
        settings |= {f"{task.stage}.accumulation": 1}
        try:
            held.append(held_on(task, shapes_of(with_settings(task, settings), devices)))
        except UserError as error:
            refused[mesh_name(sizes)] = str(error)
    return held, refused


def _candidates(task: Task, types: Overrides, held: list[Held]) -> Iterator[Candidate]:
    """Every combination of mesh, micro-steps and remat, with blocks of logits that suit, and small ones."""
    batch_size = getattr(task.config, task.stage).batch_size
    remats = [remat for remat in _choices(task.config.compute, "remat") if remat != "auto"]
    for on_mesh, remat in itertools.product(held, remats):
        shards = on_mesh.sizes["data"] * on_mesh.sizes["fsdp"]
        for micro_steps in _divisors(batch_size // shards):
            overrides = {
                **{f"compute.mesh.{axis}": size for axis, size in on_mesh.sizes.items()},
                f"{task.stage}.accumulation": micro_steps,
                "compute.remat": remat,
                **types,
            }
            with_remat = with_settings(task, overrides)
            suiting = chosen_for(with_remat, on_mesh)[-1].head.value
            for tokens, vocabulary in dict.fromkeys((suiting, BLOCK)):
                head = {"compute.head.tokens": tokens, "compute.head.vocabulary": vocabulary}
                candidate = with_settings(with_remat, head)
                yield Candidate({**overrides, **head}, candidate, estimate(candidate, on_mesh))


# ---------------------------------------------------------------- compiling


def _compile_best(
    candidates: Sequence[Candidate],
    devices: list[jax.Device],
    compile_one: Callable[[Task, list[jax.Device]], Compiled],
    enough: int,
) -> list[Tried]:
    """Compiles the fastest that should fit, until there are enough that do.

    What is compiled corrects the estimates of temporaries of the same remat policy.

    Args:
        candidates: the fastest first.
    """
    tried: list[Tried] = []
    real_over_estimated: dict[Any, float] = {}
    waiting = list(candidates)
    fits = 0
    while waiting and len(tried) < MOST_COMPILED and fits < enough:
        candidate = waiting.pop(0)
        remat = candidate.overrides["compute.remat"]
        factor = real_over_estimated.get(remat, 1.0)
        estimated = candidate.estimate
        usable_bytes = candidate.task.topology.usable_bytes
        if estimated.argument_bytes + factor * estimated.temp_bytes > usable_bytes:
            continue
        compiled = compile_one(candidate.task, devices)
        tried.append(Tried(candidate, compiled))
        if compiled.footprint.temp_bytes is not None:
            real_over_estimated[remat] = compiled.footprint.temp_bytes / candidate.estimate.temp_bytes
        if compiled.footprint.fits:
            fits += 1
            waiting = [other for other in waiting if not _alike(other, candidate)]
    return tried


def _alike(one: Candidate, other: Candidate) -> bool:
    """Whether two differ in micro-steps or head alone."""
    names = [name for name in one.overrides if name.startswith("compute.mesh.")] + ["compute.remat"]
    return all(one.overrides[name] == other.overrides[name] for name in names)
