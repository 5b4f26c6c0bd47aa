"""What the device is and the most that it does: the rate of a large product and of a large copy.

python ceilings.py bfloat16|float32 [--size N]        size: of the square matrices; default by device
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from serve import serve

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from work import copy_rate, matrix_rate

from sparsepo_jax.build.compute import take_memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dtype")
    parser.add_argument("--size", type=int)
    options = parser.parse_args()
    take_memory()  # as a run does
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    serve(
        lambda: {"matrix_rate": matrix_rate(options.dtype, options.size), "copy_rate": copy_rate()},
        card=device.device_kind,
        memory_bytes=memory,
        versions={name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    )


if __name__ == "__main__":
    main()
