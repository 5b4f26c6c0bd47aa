"""Freed blocks are kept: a step's temporaries do not come page by page again."""

import subprocess
import sys

import pytest

PAGES_OF_32_MB = 8192

PROGRAM = """
import ctypes, resource, sys
from sparsepo_jax.core.heap import keep_freed_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "keep":
    assert keep_freed_blocks()

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
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone gives blocks back so")
def test_freed_blocks_are_used_again():
    assert faults_a_use("keep") < PAGES_OF_32_MB / 100
    assert faults_a_use("give back") > PAGES_OF_32_MB / 2  # else there is nothing to keep
