"""Facts of accelerators that `--aot` compiles for: TPU chips and GPUs. No JAX here.

Figures are the vendors' own. Rates are of dense bfloat16 products that are summed in float32; bandwidths of
links and networks are of one direction.
"""

from dataclasses import dataclass

GIB, TB, GB = 2**30, 1e12, 1e9


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of accelerator.

    Attributes:
        memory_bytes: what programs can allocate, before the runtime takes its share.
        bandwidth: of its memory, bytes/s.
        matrix_rate: of products, operations/s; a multiply-add is two.
        link: to the other devices of its host or slice, bytes/s that it sends.
        network: to those of other hosts or slices, bytes/s that it sends.
        source: where the figures stand.
    """

    memory_bytes: int
    bandwidth: float
    matrix_rate: float
    link: float
    network: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Chip(Device):
    """A TPU.

    Attributes:
        dims: of the torus or mesh that chips form.
        cores: TensorCores of a chip; the clouds count by them.
    """

    dims: int
    cores: int


@dataclass(frozen=True, kw_only=True)
class Card(Device):
    """A GPU. What is not here is the same for all of them, or follows from the compute capability.

    Attributes:
        name: as the driver says it.
        multiprocessors: of the card.
        capability: compute capability, (major, minor).
        clock_ghz: the fastest.
        l2_bytes: of the cache that all multiprocessors share.
        pcie: to the host, bytes/s.
    """

    name: str
    multiprocessors: int
    capability: tuple[int, int]
    clock_ghz: float
    l2_bytes: int
    pcie: float = 32 * GB


# Links of a chip: what Google gives for both directions, halved. Networks: of a pod, divided by its chips.
CHIPS = {
    "v4": Chip(
        memory_bytes=32 * GIB,
        bandwidth=1.2 * TB,
        matrix_rate=275 * TB,
        link=300 * GB,
        network=6.25 * GB,
        source="cloud.google.com/tpu/docs/v4",
        dims=3,
        cores=2,
    ),
    "v5e": Chip(
        memory_bytes=16 * GIB,
        bandwidth=0.819 * TB,
        matrix_rate=197 * TB,
        link=200 * GB,
        network=3.125 * GB,
        source="cloud.google.com/tpu/docs/v5e",
        dims=2,
        cores=1,
    ),
    "v5p": Chip(
        memory_bytes=95 * GIB,
        bandwidth=2.765 * TB,
        matrix_rate=459 * TB,
        link=600 * GB,
        network=6.25 * GB,
        source="cloud.google.com/tpu/docs/v5p",
        dims=3,
        cores=2,
    ),
    "v6e": Chip(
        memory_bytes=32 * GIB,
        bandwidth=1.64 * TB,
        matrix_rate=918 * TB,
        link=400 * GB,
        network=12.5 * GB,
        source="cloud.google.com/tpu/docs/v6e",
        dims=2,
        cores=1,
    ),
}

# Memory is what CUDA reports on the card. Networks are those of NVIDIA's own systems, one adapter a card (DGX
# A100 and HGX: 200 and 400 Gbit/s), and 100 Gbit/s for a server of eight where there is no such system. A
# link without NVLink is the card's PCIe.
CARDS = {
    "a10": Card(
        memory_bytes=22_731 * 2**20,
        bandwidth=0.6 * TB,
        matrix_rate=125 * TB,
        link=32 * GB,
        network=1.5625 * GB,
        source="NVIDIA A10 datasheet",
        name="NVIDIA A10",
        multiprocessors=72,
        capability=(8, 6),
        clock_ghz=1.695,
        l2_bytes=6 * 2**20,
    ),
    "a100-40g": Card(
        memory_bytes=42_331_013_120,
        bandwidth=1.555 * TB,
        matrix_rate=312 * TB,
        link=300 * GB,
        network=25 * GB,
        source="NVIDIA A100 datasheet, SXM4 40 GB",
        name="NVIDIA A100-SXM4-40GB",
        multiprocessors=108,
        capability=(8, 0),
        clock_ghz=1.41,
        l2_bytes=40 * 2**20,
    ),
    "a100-80g": Card(
        memory_bytes=85_100_068_864,
        bandwidth=2.039 * TB,
        matrix_rate=312 * TB,
        link=300 * GB,
        network=25 * GB,
        source="NVIDIA A100 datasheet, SXM4 80 GB",
        name="NVIDIA A100-SXM4-80GB",
        multiprocessors=108,
        capability=(8, 0),
        clock_ghz=1.41,
        l2_bytes=40 * 2**20,
    ),
    "a6000": Card(
        memory_bytes=51_041_271_808,
        bandwidth=0.768 * TB,
        matrix_rate=154.8 * TB,
        link=56.25 * GB,
        network=1.5625 * GB,
        source="NVIDIA RTX A6000 datasheet; GA102 whitepaper",
        name="NVIDIA RTX A6000",
        multiprocessors=84,
        capability=(8, 6),
        clock_ghz=1.8,
        l2_bytes=6 * 2**20,
    ),
    "b200": Card(
        memory_bytes=191_514_411_008,
        bandwidth=8 * TB,
        matrix_rate=2250 * TB,
        link=900 * GB,
        network=50 * GB,
        source="NVIDIA Blackwell architecture brief, HGX B200",
        name="NVIDIA B200",
        multiprocessors=148,
        capability=(10, 0),
        clock_ghz=1.965,
        l2_bytes=132_644_864,
        pcie=64 * GB,
    ),
    "h100": Card(
        memory_bytes=84_942_979_072,
        bandwidth=3.352 * TB,
        matrix_rate=989.4 * TB,
        link=450 * GB,
        network=50 * GB,
        source="NVIDIA H100 datasheet and Hopper whitepaper, SXM5",
        name="NVIDIA H100 80GB HBM3",
        multiprocessors=132,
        capability=(9, 0),
        clock_ghz=1.98,
        l2_bytes=50 * 2**20,
        pcie=64 * GB,
    ),
    "h100-pcie": Card(
        memory_bytes=84_942_979_072,
        bandwidth=2.039 * TB,
        matrix_rate=756 * TB,
        link=64 * GB,
        network=25 * GB,
        source="NVIDIA H100 datasheet and Hopper whitepaper, PCIe",
        name="NVIDIA H100 PCIe",
        multiprocessors=114,
        capability=(9, 0),
        clock_ghz=1.755,
        l2_bytes=50 * 2**20,
        pcie=64 * GB,
    ),
    "h200": Card(
        memory_bytes=150_109_880_320,
        bandwidth=4.8 * TB,
        matrix_rate=989.4 * TB,
        link=450 * GB,
        network=50 * GB,
        source="NVIDIA H200 datasheet, SXM",
        name="NVIDIA H200",
        multiprocessors=132,
        capability=(9, 0),
        clock_ghz=1.98,
        l2_bytes=50 * 2**20,
        pcie=64 * GB,
    ),
    "l4": Card(
        memory_bytes=22_563 * 2**20,
        bandwidth=0.3 * TB,
        matrix_rate=121 * TB,
        link=32 * GB,
        network=1.5625 * GB,
        source="NVIDIA L4 datasheet",
        name="NVIDIA L4",
        multiprocessors=58,
        capability=(8, 9),
        clock_ghz=2.04,
        l2_bytes=48 * 2**20,
    ),
    "l40s": Card(
        memory_bytes=45_589 * 2**20,
        bandwidth=0.864 * TB,
        matrix_rate=362 * TB,
        link=32 * GB,
        network=1.5625 * GB,
        source="NVIDIA L40S datasheet",
        name="NVIDIA L40S",
        multiprocessors=142,
        capability=(8, 9),
        clock_ghz=2.52,
        l2_bytes=96 * 2**20,
    ),
    "rtx3090": Card(
        memory_bytes=24_260 * 2**20,
        bandwidth=0.936 * TB,
        matrix_rate=71 * TB,
        link=32 * GB,
        network=1.5625 * GB,
        source="NVIDIA GA102 whitepaper",
        name="NVIDIA GeForce RTX 3090",
        multiprocessors=82,
        capability=(8, 6),
        clock_ghz=1.695,
        l2_bytes=6 * 2**20,
    ),
    "rtx4090": Card(
        memory_bytes=24_210 * 2**20,
        bandwidth=1.008 * TB,
        matrix_rate=165.2 * TB,
        link=32 * GB,
        network=1.5625 * GB,
        source="NVIDIA Ada whitepaper",
        name="NVIDIA GeForce RTX 4090",
        multiprocessors=128,
        capability=(8, 9),
        clock_ghz=2.52,
        l2_bytes=72 * 2**20,
    ),
    "rtx5090": Card(
        memory_bytes=32_110 * 2**20,
        bandwidth=1.792 * TB,
        matrix_rate=209.5 * TB,
        link=64 * GB,
        network=1.5625 * GB,
        source="NVIDIA RTX Blackwell whitepaper",
        name="NVIDIA GeForce RTX 5090",
        multiprocessors=170,
        capability=(12, 0),
        clock_ghz=2.407,
        l2_bytes=96 * 2**20,
        pcie=64 * GB,
    ),
}
DEVICES: dict[str, Device] = {**CHIPS, **CARDS}
