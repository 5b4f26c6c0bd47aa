"""Lets go of compiled programs before a process holds more than the system allows.

Linux lets a process map a number of pieces of memory (vm.max_map_count, 65,530 by default), and each program
that XLA compiles for a CPU takes some. One piece too many ends the process with a segmentation fault, so a
sweep over many objectives must not keep all of their programs.
"""

import gc
from pathlib import Path

MAPS, MOST_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
SHARE = 3  # the next run's programs need room, too


def free_programs() -> bool:
    """Drops JAX's compiled programs if they may have taken a third of the pieces of memory; True if so."""
    import jax

    if not (MAPS.exists() and MOST_MAPS.exists()):  # not Linux
        return False
    if SHARE * MAPS.read_bytes().count(b"\n") < int(MOST_MAPS.read_text()):
        return False
    jax.clear_caches()
    gc.collect()
    return True
