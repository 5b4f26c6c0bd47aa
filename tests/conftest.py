"""How every test runs, set before JAX or the package is imported.

Eight host devices on CPU, for sharding. No access to the Hub. Annotations of the rooms in
helpers.contracts.ROOMS are checked at each call, shapes included, by beartype through jaxtyping's import
hook. Arrays of different ranks do not broadcast. Programs that a test starts in another process inherit all
of this but the checked annotations.
"""

import os

import jaxtyping

from helpers.contracts import ROOMS

# Tiny programs run once or twice: most of a test's time would go into optimising them.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

jaxtyping.install_import_hook([f"sparsepo_jax.{room}" for room in ROOMS], "helpers.contracts.checked")
