"""How every test runs, set before JAX or the package is imported.

Eight host devices on CPU, for sharding. No access to the Hub. Annotations of the rooms in
helpers.contracts.ROOMS are checked at each call, shapes included, by beartype through jaxtyping's import
hook. Arrays of different ranks do not broadcast. Programs that a test starts in another process inherit all
of this but the checked annotations.
"""

import gc
import itertools
import os
from pathlib import Path

import jaxtyping
import pytest

from helpers.contracts import ROOMS
from helpers.xla_flags import xla_flags

os.environ.setdefault("XLA_FLAGS", xla_flags(devices=8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# A session ends when its last file does, and xdist takes files in this order: the longest begin first.
LONGEST = [
    "sweep",
    "models",
    "knobs",
    "step",
    "golden",
    "build",
    "run",
    "layer_shapes",
    "lora",
    "processes",
    "faults",
    "best",
    "attention",
    "adapter",
    "experts",
    "evaluation_sets",
    "weigh",
    "rounds",
    "generate",
    "losses",
    "hub_configs",
    "config",
    "comparison",
    "report",
    "warmup",
    "held_types",
    "recipes",
    "logprob_kl",
    "harness",
]

jaxtyping.install_import_hook([f"sparsepo_jax.{room}" for room in ROOMS], "helpers.contracts.checked")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others keep their order."""
    place = {f"test_{name}": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


# Linux lets a process map 65,530 pieces of memory, and each program that XLA compiles for a CPU takes some: a
# session that keeps all of them ends in a segmentation fault. Tests of one file share programs.
MOST_MAPS = 40_000
MOST_MAPS_OF_OTHER_FILES = 10_000
_tests_run = itertools.count(1)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go of compiled programs where there are many: between two files, or at last within one."""
    same_file = nextitem is not None and nextitem.path == item.path
    if next(_tests_run) % 10 and same_file:
        return
    maps = Path("/proc/self/maps")
    most = MOST_MAPS if same_file else MOST_MAPS_OF_OTHER_FILES
    if not maps.exists() or maps.read_bytes().count(b"\n") < most:
        return
    import jax

    jax.clear_caches()
    gc.collect()
