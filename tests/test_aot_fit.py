"""The search of `--aot --fit`: what is counted by hand, what is compiled, what is taken and why not the rest.

Compiling is faked; shapes are real, on two of the test's devices.
"""

import functools

import jax
import pytest

from helpers.program import write_config
from sparsepo_jax.aot.bound import Bound
from sparsepo_jax.aot.compile import Compiled, read_task, shapes_of
from sparsepo_jax.aot.describe_fit import fit_as_json, fit_as_text, left_out, settings_text
from sparsepo_jax.aot.estimate import estimate, held_on
from sparsepo_jax.aot.fit import ENOUGH, MOST_COMPILED, fastest_first, mesh_choices, search, with_settings
from sparsepo_jax.aot.footprint import Footprint, held_bytes
from sparsepo_jax.aot.topology import find_topology
from sparsepo_jax.config.load import load_config

H100X2 = find_topology("h100x2")


def devices():
    return jax.devices()[: H100X2.devices]


SMALL = {"model_type": "gpt2", "vocab_size": 512, "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64}
LARGE = {
    "model_type": "gpt2",
    "vocab_size": 50304,
    "n_layer": 24,
    "n_head": 16,
    "n_embd": 2048,
    "n_positions": 2048,
}


TASKS: dict = {}  # by output_dir


def make_task(tmp_path, policy, batch_size):
    """Of pairs as long as the model allows: the data is not here."""
    path = write_config(
        tmp_path,
        stages=["po"],
        tokenizer=None,
        policy={"path": "no-one/here", "config": policy},
        data={"train": [{"path": "no-one/there"}], "sft": [], "eval": []},
        po={"batch_size": batch_size, "steps": 2},
    )
    return read_task(load_config(str(path), [])[0], H100X2)


@pytest.fixture
def small(tmp_path):
    return make_task(tmp_path, SMALL, 16)


@pytest.fixture
def large(tmp_path):
    return make_task(tmp_path, LARGE, 256)


@functools.cache
def shapes_on(path, sizes):
    """The shapes of a task on a mesh, in one micro-step."""
    names = ("compute.mesh.data", "compute.mesh.fsdp", "compute.mesh.tensor")
    settings = {**dict(zip(names, sizes, strict=True)), "po.accumulation": 1}
    return shapes_of(with_settings(TASKS[path], settings), devices())


def shapes_for(task):
    """Those of a task's own mesh."""
    mesh, path = task.config.compute.mesh, task.config.output_dir
    TASKS.setdefault(path, task)
    data = mesh.data or H100X2.devices // (mesh.fsdp * mesh.tensor)
    return shapes_on(path, (data, mesh.fsdp, mesh.tensor))


def estimated(task):
    """The hand count of a task's own settings."""
    return estimate(task, held_on(task, shapes_for(task)))


class Compiler:
    """Needs some times the estimate of temporaries, and a number of seconds; notes what it was asked."""

    def __init__(self, over_estimate=1.0, seconds=None):
        self.over_estimate, self.seconds, self.asked = over_estimate, seconds, []

    def __call__(self, task, on):
        self.asked.append(task.config)
        counted, shapes = estimated(task), shapes_for(task)
        temp_bytes = int(self.over_estimate * counted.temp_bytes)
        needed = counted.argument_bytes + temp_bytes
        fits = needed <= task.topology.usable_bytes
        seconds = self.seconds(task.config) if self.seconds else counted.bound.seconds
        return Compiled(
            topology=task.topology,
            mesh=shapes.mesh,
            stage=task.stage,
            batch=shapes.batch,
            lengths="",
            attention="cudnn",
            choices=shapes.choices,
            dtype="bfloat16",
            footprint=Footprint(counted.argument_bytes, temp_bytes, 0, needed, fits, {}, False, {}, {}),
            bound=Bound(1e12, seconds, 0.0, 0.0),
            refusal=None,
            seconds=1.0,
        )


def test_meshes_keep_tensor_within_a_host():
    sizes = [tuple(mesh.values()) for mesh in mesh_choices(find_topology("2x h100x2"))]
    assert sizes == [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]


def test_arguments_are_counted_to_the_byte(small):
    for mesh in ({"data": 2, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 2, "tensor": 1}):
        task = with_settings(small, {f"compute.mesh.{axis}": size for axis, size in mesh.items()})
        shapes = shapes_of(task, devices())
        assert estimated(task).argument_bytes == held_bytes(shapes.arguments)


def test_estimates_rank_settings_as_they_must(large):
    """More micro-steps and more recomputation need less; recomputing everything costs products, cutting
    weights costs exchange."""

    def of(**settings):
        names = {name.replace("__", "."): value for name, value in settings.items()}
        return estimated(with_settings(large, {"compute.mesh.data": 2, **names}))

    keeps, recomputes = of(compute__remat="nothing"), of(compute__remat="everything")
    assert keeps.temp_bytes > recomputes.temp_bytes
    assert keeps.bound.products_s < recomputes.bound.products_s
    assert of(po__accumulation=2).temp_bytes > of(po__accumulation=4).temp_bytes
    cut = of(compute__mesh__data=1, compute__mesh__fsdp=2)
    assert cut.argument_bytes < 0.6 * keeps.argument_bytes and cut.bound.exchange_s > keeps.bound.exchange_s


def test_the_lowest_bound_of_those_that_fit_is_taken(small):
    """Kills: taking the first that fits; compiling them all; compiling the same with other micro-steps."""
    compiler = Compiler(
        seconds=lambda config: 1.0 + 0.1 * config.compute.mesh.fsdp + config.compute.mesh.tensor
    )
    result = search(small, devices(), compiler)
    assert len(compiler.asked) == len(result.tried) == ENOUGH
    bounds = [one.compiled.bound.seconds for one in result.tried]
    assert result.best.compiled.bound.seconds == min(bounds)
    kinds = {(str(x.compute.mesh), x.compute.remat) for x in compiler.asked}
    assert len(kinds) == ENOUGH


def test_of_equal_bounds_the_least_exchange_is_first_then_the_fewest_micro_steps_then_the_least_memory(small):
    """Kills: cutting products over cards, with ten times the exchange, for a thousandth of the bound; sixteen
    micro-steps for the sake of memory that is there."""
    one = search(small, devices(), enough=0).candidates[0]

    def of(name, seconds, exchange_s, needed_bytes, micro_steps=2):
        bound = Bound(1e12, seconds, 0.0, exchange_s)
        counted = one.estimate._replace(argument_bytes=needed_bytes, temp_bytes=0, bound=bound)
        task = with_settings(one.task, {"po.accumulation": micro_steps})
        return one._replace(overrides={"name": name}, task=task, estimate=counted)

    listed = [
        of("slower", 2.7, 0.01, 1),
        of("tensor", 2.600, 1.0, 1),
        of("fsdp", 2.603, 0.063, 5),
        of("data and fsdp", 2.604, 0.055, 7),
        of("many micro-steps", 2.601, 0.055, 1, micro_steps=16),
    ]
    names = [candidate.overrides["name"] for candidate in fastest_first(listed)]
    assert names == ["fsdp", "data and fsdp", "many micro-steps", "tensor", "slower"]
    assert fastest_first([]) == []


def test_of_compiled_bounds_that_are_alike_the_one_that_was_ranked_first_is_taken(small):
    seconds = iter([1.005, 1.0, 1.003])
    result = search(small, devices(), Compiler(seconds=lambda _: next(seconds)))
    assert result.best is result.tried[0] and len(result.tried) == 3


def test_what_does_not_fit_is_tried_with_settings_that_need_less(large):
    """The compiler needs 2.5 times the temporaries that were estimated.

    Kills: taking what does not fit; giving up after the first failure.
    """
    compiler = Compiler(over_estimate=2.5)
    result = search(large, devices(), compiler)
    assert len(result.tried) <= MOST_COMPILED
    assert not result.tried[0].compiled.footprint.fits
    assert result.best.compiled.footprint.fits
    reasons = [reason for _, reason in left_out(result)]
    assert any(reason.startswith("compiled, needs") for reason in reasons)
    assert any(reason.startswith("needs about") for reason in reasons)
    assert (
        f", of which {sum(not x.compiled.footprint.fits for x in result.tried)} did not fit"
        in fit_as_text(result, H100X2)
    )


@pytest.mark.slow
def test_where_nothing_fits_the_smallest_is_said(large):
    result = search(large, devices(), Compiler(over_estimate=1000))
    assert result.best is None and result.tried
    text = fit_as_text(result, H100X2)
    assert "no settings fit; the smallest need about" in text and "compute.mesh.data=" in text
    report = fit_as_json(result, H100X2)
    assert report["best"] is None and report["overrides"] is None and report["left_out"]


@pytest.mark.slow
def test_settings_are_printed_as_the_command_line_takes_them(small, tmp_path):
    result = search(small, devices(), Compiler())
    overrides = settings_text(result.best.candidate.overrides)
    assert overrides in fit_as_text(result, H100X2)
    config, _ = load_config(str(tmp_path / "config.yaml"), overrides.split(" "))
    assert config == result.best.candidate.task.config
    left = {name for name, _ in left_out(result)}
    assert left and f"po.accumulation={config.po.accumulation}" not in left
