"""The walls of the house: who may import whom, and what must not be imported early."""

import ast
import builtins
import dis
import graphlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparsepo_jax"
# A room is a package below sparsepo_jax, or main: the rooms it may import. A room may always import itself.
ALLOWED = {
    "core": set(),
    "config": {"core"},
    "data": {"core"},
    "ops": {"core"},
    "losses": {"core"},
    "masks": {"core"},
    "sharding": {"core"},
    "models": {"core", "ops"},
    "report": {"core"},
    "sandbox": {"core"},
    "generate": {"core", "data", "sharding", "models", "train"},
    "train": {"core", "data", "ops", "losses", "masks", "sharding", "models"},
    "scoring": {"core", "data", "sharding", "models", "sandbox"},
    "eval": {"core", "data", "sharding", "models", "generate", "sandbox"},
    "run": {"core", "config", "data", "models", "sharding"},
    "build": {
        "core",
        "config",
        "data",
        "generate",
        "losses",
        "masks",
        "models",
        "ops",
        "run",
        "scoring",
        "sharding",
        "train",
    },
    "aot": {"core", "config", "data", "sharding", "models", "run", "train", "build"},
    "stages": {
        "core",
        "config",
        "data",
        "eval",
        "generate",
        "build",
        "masks",
        "models",
        "report",
        "run",
        "sandbox",
        "scoring",
        "sharding",
        "train",
    },
    "main": {"core", "config", "report", "run", "sharding", "stages", "aot"},
}
FLOORS = 7  # of rooms that stand on one another
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere, as dotted names below sparsepo_jax."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        imported |= {name.removeprefix("sparsepo_jax.") for name in names if name.startswith("sparsepo_jax.")}
    return imported


def rooms_imported_by(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)} - {room_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_below_it(path):
    wrong = rooms_imported_by(path) - ALLOWED[room_of(path)]
    assert not wrong, f"{room_of(path)} may not import {', '.join(sorted(wrong))}"


def test_every_file_has_its_room():
    assert {room_of(path) for path in FILES} == ALLOWED.keys()
    assert not list(PACKAGE.rglob("utils*.py"))


def test_rooms_stand_on_one_another_without_a_circle():
    """Counts what is imported, not what may be. Kills: two rooms that import each other, by whatever way."""
    below: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for path in FILES:
        below[room_of(path)] |= rooms_imported_by(path)
    order = list(graphlib.TopologicalSorter(below).static_order())  # CycleError: names the circle
    floor: dict[str, int] = {}
    for room in order:
        floor[room] = 1 + max((floor[other] for other in below[room]), default=0)
    assert max(floor.values()) <= FLOORS, floor


def test_packages_export_nothing_twice():
    assert all(path.read_text() == "" for path in PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize(
    "module",
    [
        "main",
        "run.check",
        "run.sweep",
        "config.load",
        "config.schema.root",
        "models.spec",
        "report.page",
        "data.sources",
        "data.reviews",
        "aot.topology",
        "sandbox.parent",
    ],
)
def test_light_modules_do_not_wait_for_heavy_ones(module):
    heavy = "{'jax', 'flax', 'transformers', 'datasets', 'torch', 'orbax', 'matplotlib'}"
    code = f"import sys, sparsepo_jax.{module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_that_a_function_reads_is_there():
    """Ruff's rule for it is off, since it takes the shapes in annotations for names."""
    missing = []
    for path in [*FILES, *(PACKAGE.parent / "benchmarks").rglob("*.py")]:
        module = compile(path.read_text(), str(path), "exec")
        there = names_set(module) | set(dir(builtins)) | {"__file__", "__doc__"}
        missing += [f"{path}: {name}" for name in names_read(module) - there]
    assert not missing


def names_set(module: types.CodeType) -> set[str]:
    """What a module binds, and what its functions declare global."""
    of_module = {step.argval for step in dis.get_instructions(module) if step.opname == "STORE_NAME"}
    return of_module | {
        step.argval
        for code in codes_in(module)
        for step in dis.get_instructions(code)
        if step.opname == "STORE_GLOBAL"
    }


def names_read(module: types.CodeType) -> set[str]:
    return {
        step.argval
        for code in codes_in(module)
        for step in dis.get_instructions(code)
        if step.opname == "LOAD_GLOBAL"
    }


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """All functions and classes within, however deep."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield inner
            yield from codes_in(inner)
