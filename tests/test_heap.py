"""Freed blocks are kept: a step's temporaries do not come page by page again."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sparsepo_jax.core.heap import KEPT_BLOCK_BYTES, KEPT_BYTES, keep_freed_blocks

PAGES_OF_32_MB = 8192

PROGRAM = """
import ctypes, resource, sys
from sparsepo_jax.core.heap import keep_freed_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "keep" and not keep_freed_blocks():
    sys.exit(print("refused"))

def use():
    block = libc.malloc(32 * 2**20)
    ctypes.memset(block, 1, 32 * 2**20)
    libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def faults_a_use(mode: str) -> int:
    command = [sys.executable, "-c", PROGRAM, mode]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if said == "refused":
        pytest.skip("this C library is left as it is")
    return int(said)


def test_freed_blocks_are_used_again():
    assert faults_a_use("keep") < PAGES_OF_32_MB / 100
    assert faults_a_use("give back") > PAGES_OF_32_MB / 2  # else there is nothing to keep


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone gives blocks back so")
@pytest.mark.parametrize("takes", [True, False])
def test_a_library_that_refuses_the_size_is_left_as_it_is(monkeypatch, takes):
    """Older versions of glibc. With the other threshold alone they would give back more than before."""
    told = []

    def mallopt(option: int, value: int) -> int:
        told.append(value)
        return int(takes)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_blocks() is takes
    assert told == ([KEPT_BLOCK_BYTES, KEPT_BYTES] if takes else [KEPT_BLOCK_BYTES])
