"""Eight host devices for sharding tests, no rank promotion, small shared models. Set before JAX starts."""

import os

# Tiny programs run once or twice: most of a test's time would go into optimising them.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
