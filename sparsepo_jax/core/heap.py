"""What the process does with memory that it has freed."""

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BLOCK_BYTES, KEPT_BYTES = 64 * 2**20, 256 * 2**20


def keep_freed_blocks() -> bool:
    """Keeps freed blocks of up to KEPT_BLOCK_BYTES for the next use, KEPT_BYTES of them.

    glibc gives large blocks back to the system when they are freed. On CPU those are a step's temporaries, so
    that each step gets them again page by page: 8,400 page faults in one of the quickstart's, a third of its
    time (benchmarks/page_faults.py; in some processes part of them stays). Larger blocks are given back as
    before: their pages cost little beside the computing, and what is kept may not fit what comes next.

    Returns:
        Whether the C library does so. Others than glibc, and one that refuses blocks of this size, are left
        as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # In this order: the second alone would end glibc's own raising of the first, and all blocks above 128 KB
    # would be given back. An older glibc takes no more than 32 MB for the first.
    return bool(mallopt(_MMAP_THRESHOLD, KEPT_BLOCK_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
