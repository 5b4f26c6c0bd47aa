"""The walls of the house: who may import whom, and what must not be imported early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparsepo_jax"
ALLOWED = {  # room -> rooms it may import; a room may always import itself
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
}
TOP = {"__init__.py", "main.py"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere, as dotted names below sparsepo_jax."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.removeprefix("sparsepo_jax.") for name in names if name.startswith("sparsepo_jax.")}
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent != PACKAGE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_room_imports_only_the_rooms_below_it(path):
    room = path.relative_to(PACKAGE).parts[0]
    wrong = {name for name in imports_of(path) if name.split(".")[0] not in ALLOWED[room] | {room}}
    assert not wrong, f"{room} may not import {', '.join(sorted(wrong))}"


def test_every_file_has_its_room():
    assert {path.name for path in FILES if path.parent == PACKAGE} == TOP
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE} == ALLOWED.keys()
    assert not list(PACKAGE.rglob("utils*.py"))


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
    heavy = "{'jax', 'flax', 'transformers', 'datasets', 'torch', 'orbax'}"
    code = f"import sys, sparsepo_jax.{module}; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
