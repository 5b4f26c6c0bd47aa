"""The modules that Pallas hands to Triton, checked where there is no GPU that would compile them."""

import contextlib
from collections.abc import Iterator

from jax._src.pallas.triton import lowering  # nothing public shows a kernel's module


@contextlib.contextmanager
def verified_triton_modules() -> Iterator[list[str]]:
    """Verifies each module that is lowered within; the list gets their texts.

    Lowering alone does not: a loop whose bound has another type than its counter becomes text all the same,
    and fails on the GPU.
    """
    texts: list[str] = []
    lower = lowering.lower_jaxpr_to_triton_module

    def lower_and_verify(*args, **kwargs):
        result = lower(*args, **kwargs)
        assert result.module.operation.verify()
        texts.append(str(result.module))
        return result

    lowering.lower_jaxpr_to_triton_module = lower_and_verify
    try:
        yield texts
    finally:
        lowering.lower_jaxpr_to_triton_module = lower
