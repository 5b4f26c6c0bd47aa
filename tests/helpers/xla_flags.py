"""XLA_FLAGS of every process that tests start: simulated devices, and programs that are compiled quickly.

Tiny programs run once or twice: most of a test's time would go into optimising them.
"""

from importlib.metadata import version

# With the emitters of fusions that jaxlib 0.10 has by default, a step takes twice as long to compile as with
# the ones before them. jaxlib 0.12 has no such choice, and ends a process that is given an unknown flag.
_EMITTERS = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""


def xla_flags(devices: int) -> str:
    """The variable's value for so many simulated CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0" + _EMITTERS
