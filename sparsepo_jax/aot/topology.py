"""Names of TPU topologies: libtpu's (v5p:4x4x4), the clouds' (v5p-128), several slices (2xv5e-16).

No JAX here.
"""

import math
import re
from typing import NamedTuple

from sparsepo_jax.core.errors import UserError


class Chip(NamedTuple):
    """A kind of chip.

    Attributes:
        dims: of the torus or mesh that chips form.
        cores: TensorCores of a chip; the clouds count by them.
    """

    dims: int
    cores: int
    memory_gib: int


CHIPS = {"v4": Chip(3, 2, 32), "v5e": Chip(2, 1, 16), "v5p": Chip(3, 2, 95), "v6e": Chip(2, 1, 32)}
_SHAPES = {
    2: ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    3: [
        "2x2x1",
        "2x2x2",
        "2x2x4",
        "2x4x4",
        "4x4x4",
        "4x4x8",
        "4x8x8",
        "8x8x8",
        "8x8x16",
        "8x16x16",
        "16x16x16",
    ],
}
_NAME = re.compile(
    r"(?:(?P<before>[1-9]\d*)x)?(?P<kind>[a-z]\w*?)"
    r"(?:-(?P<size>\d+)(?:x(?P<after>[1-9]\d*))?|:(?P<shape>[1-9]\d*(?:x[1-9]\d*)+))"
)


class Topology(NamedTuple):
    """`slices` slices of `shape` each."""

    kind: str
    shape: str
    slices: int

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * _count(self.shape)

    @property
    def chip_bytes(self) -> int:
        """Memory of a chip."""
        return CHIPS[self.kind].memory_gib * 2**30

    def __str__(self) -> str:
        return ("" if self.slices == 1 else f"{self.slices}x") + f"{self.kind}:{self.shape}"


def find_topology(name: str) -> Topology:
    """The topology of a name.

        v5p:4x4x4                        kind and shape
        v5p-128, v4-16                   the clouds' count of TensorCores, two a chip
        v5e-16, v5litepod-16             the clouds' count of chips
        2xv5e-16, v5e-16x2, 2xv5e:4x4    two slices

    Raises:
        UserError: a name that is none of these.
    """
    match = _NAME.fullmatch(name)
    kind = {"v5litepod": "v5e"}.get(match["kind"], match["kind"]) if match else None
    if kind not in CHIPS or (match["before"] and match["after"]):
        known = "; ".join(f"{kind}-{', '.join(map(str, cloud_sizes(kind)))}" for kind in CHIPS)
        raise UserError(
            f"no TPU topology {name!r}; expected a kind and its shape (v5p:4x4x4, v5e:4x4), a cloud's name "
            f"({known}), or several slices of one (2xv5e-16)"
        )
    shape, sizes, dims = match["shape"], cloud_sizes(kind), CHIPS[kind].dims
    if shape is not None and shape.count("x") + 1 != dims:
        raise UserError(
            f"no TPU topology {name!r}: chips of {kind} lie in {dims} dimensions, as in "
            f"{kind}:{'x'.join(['4'] * dims)}"
        )
    if shape is None:
        if int(match["size"]) not in sizes:
            raise UserError(
                f"no TPU topology {name!r}; there are {kind}-{', '.join(map(str, sizes))}, and other "
                f"shapes as {kind}:{'x'.join(['4'] * dims)}"
            )
        shape = sizes[int(match["size"])]
    return Topology(kind, shape, int(match["before"] or match["after"] or 1))


def cloud_sizes(kind: str) -> dict[int, str]:
    """{number in a cloud's name: shape}."""
    chip = CHIPS[kind]
    return {chip.cores * _count(shape): shape for shape in _SHAPES[chip.dims]}


def _count(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))
