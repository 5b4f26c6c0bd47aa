"""Names of devices that are not here.

TPUs by libtpu's names (v5p:4x4x4) and the clouds' (v5p-128), GPUs by card and number (h100x8), and several
slices or hosts of one (2xv5e-16, 2x h100x8). No JAX here.
"""

import math
import re
from typing import NamedTuple

from sparsepo_jax.aot.devices import CARDS, CHIPS, DEVICES, Device
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.run.choices import GPU_SHARE

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
_TPU = re.compile(
    r"(?:(?P<before>[1-9]\d*)x)?(?P<kind>[a-z]\w*?)"
    r"(?:-(?P<size>\d+)(?:x(?P<after>[1-9]\d*))?|:(?P<shape>[1-9]\d*(?:x[1-9]\d*)+))"
)
_GPU = re.compile(
    rf"(?:(?P<hosts>[1-9]\d*)x ?)?(?P<kind>{'|'.join(sorted(CARDS, key=len, reverse=True))})"
    r"(?:x(?P<cards>[1-9]\d*))?"
)
_OTHER_NAMES = {"v5litepod": "v5e"}
MOST_CARDS = 16  # of a host


class Topology(NamedTuple):
    """`groups` slices of TPUs, or hosts of GPUs, of `shape` each."""

    kind: str
    shape: str
    groups: int

    @property
    def device(self) -> Device:
        """The facts of its devices."""
        return DEVICES[self.kind]

    @property
    def platform(self) -> str:
        """tpu or gpu."""
        return "tpu" if self.kind in CHIPS else "gpu"

    @property
    def usable_bytes(self) -> int:
        """Memory of a device that a run lets a program have: of a GPU, without what CUDA and NCCL take."""
        share = 1.0 if self.platform == "tpu" else GPU_SHARE
        return int(share * self.device.memory_bytes)

    @property
    def group_size(self) -> int:
        """Devices of a slice or host."""
        return _count(self.shape)

    @property
    def devices(self) -> int:
        """Devices of all slices or hosts."""
        return self.groups * self.group_size

    def __str__(self) -> str:
        if self.platform == "gpu":
            host = self.kind if self.shape == "1" else f"{self.kind}x{self.shape}"
            return host if self.groups == 1 else f"{self.groups}x {host}"
        return ("" if self.groups == 1 else f"{self.groups}x") + f"{self.kind}:{self.shape}"


def find_topology(name: str) -> Topology:
    """The topology of a name.

        v5p:4x4x4                        kind and shape
        v5p-128, v4-16                   the clouds' count of TensorCores, two a chip
        v5e-16, v5litepod-16             the clouds' count of chips
        2xv5e-16, v5e-16x2, 2xv5e:4x4    two slices
        h100, h100x8, a100-80gx8         one card, eight cards of a host
        2x h100x8, 2xh100x8              two hosts

    Raises:
        UserError: a name that is none of these.
    """
    if match := _GPU.fullmatch(name):
        cards = int(match["cards"] or 1)
        if cards > MOST_CARDS:
            raise UserError(
                f"no topology {name!r}: a host has at most {MOST_CARDS} cards; several hosts are "
                f"2x {match['kind']}x8"
            )
        return Topology(match["kind"], str(cards), int(match["hosts"] or 1))
    match = _TPU.fullmatch(name)
    kind = _OTHER_NAMES.get(match["kind"], match["kind"]) if match else None
    if match is None or kind not in CHIPS or (match["before"] and match["after"]):
        raise UserError(_unknown(name))
    return Topology(kind, _tpu_shape(name, kind, match), int(match["before"] or match["after"] or 1))


def _tpu_shape(name: str, kind: str, match: re.Match[str]) -> str:
    """The shape of a slice. UserError if there is none of that shape or size."""
    shape, sizes, dims = match["shape"], cloud_sizes(kind), CHIPS[kind].dims
    example = f"{kind}:{'x'.join(['4'] * dims)}"
    if shape is None and int(match["size"]) not in sizes:
        raise UserError(
            f"no topology {name!r}; there are {kind}-{', '.join(map(str, sizes))}, and other shapes as "
            f"{example}"
        )
    if shape is not None and shape.count("x") + 1 != dims:
        raise UserError(f"no topology {name!r}: chips of {kind} lie in {dims} dimensions, as in {example}")
    return shape or sizes[int(match["size"])]


def _unknown(name: str) -> str:
    """What a name could have been, in one line."""
    alike = [card for card in CARDS if re.search(rf"(^|x ?){re.escape(card.split('-')[0])}($|x|-)", name)]
    if alike:
        return (
            f"no topology {name!r}; expected {' or '.join(alike)}, or several of a host (x8), of two hosts "
            f"(2x {alike[0]}x8)"
        )
    tpus = "; ".join(f"{kind}-{', '.join(map(str, cloud_sizes(kind)))}" for kind in CHIPS)
    return (
        f"no topology {name!r}; expected GPUs (h100, h100x8, 2x h100x8; cards: {', '.join(CARDS)}), or TPUs "
        f"by kind and shape (v5p:4x4x4), a cloud's name ({tpus}), or several slices of one (2xv5e-16)"
    )


def cloud_sizes(kind: str) -> dict[int, str]:
    """{number in a cloud's name: shape} of a TPU."""
    chip = CHIPS[kind]
    return {chip.cores * _count(shape): shape for shape in _SHAPES[chip.dims]}


def _count(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))
