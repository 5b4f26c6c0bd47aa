"""A lower bound of a step's time, from operations, bytes and a device's figures."""

import math
from typing import NamedTuple

from sparsepo_jax.aot.footprint import Footprint
from sparsepo_jax.aot.topology import Topology
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.operations import Passes, Tokens


class Bound(NamedTuple):
    """What a step takes at least, in seconds.

    Attributes:
        operations: of matrix products, on all devices.
        products_s: they at the devices' matrix rate.
        memory_s: all other kernels' bytes at the memory's bandwidth; None where those are not known.
        exchange_s: what devices send each other, at the rate of their links.
    """

    operations: float
    products_s: float
    memory_s: float | None
    exchange_s: float

    @property
    def seconds(self) -> float:
        """Products and other kernels one after the other; devices can exchange meanwhile."""
        return max(self.products_s + (self.memory_s or 0.0), self.exchange_s)


def lower_bound(topology: Topology, operations: float, footprint: Footprint) -> Bound | None:
    """The bound of a compiled step; None of one that the compiler refused.

    Args:
        operations: of its matrix products, on all devices.
    """
    device, collectives = topology.device, footprint.collectives
    if collectives is None:
        return None
    sent_bytes = sum(collective.sent_bytes for collective in collectives.values())
    network_bytes = sum(collective.network_bytes for collective in collectives.values())
    memory_s = None
    if footprint.traffic is not None:
        moved_bytes = sum(
            traffic.bytes
            for kind, traffic in footprint.traffic.items()
            if kind not in ("product", "attention")
        )
        memory_s = moved_bytes / device.bandwidth
    return Bound(
        operations=operations,
        products_s=operations / topology.devices / device.matrix_rate,
        memory_s=memory_s,
        exchange_s=max(sent_bytes / device.link, network_bytes / device.network),
    )


def tokens_of(batch: PairBatch, table: TokenTable) -> Tokens:
    """What a step of a batch works on.

    Padding runs through the blocks as tokens do. What tokens see is counted of the table's mean row.

    Args:
        batch: abstract, with micro-steps.
    """
    prompt_N, response_NP = table.prompt_lengths_N.astype(float), table.laid_lengths_NP.astype(float)
    run_NP = response_NP - 1
    seen_N = prompt_N**2 / 2 + (run_NP * (prompt_N[:, None] + run_NP / 2)).sum(axis=1)
    return Tokens(
        positions=math.prod(batch.packing.ids_RS.shape),
        seen=float(seen_N.mean()) * math.prod(batch.row_B.shape),
        responses=math.prod(batch.packing.at_RM.shape),
    )


def passes_of(config: Config, stage: str, remat: str) -> Passes:
    """How often a stage's step goes through blocks and head.

    Args:
        remat: what the backward pass computes again.
    """
    training = getattr(config, stage)
    models = 2 if stage == "po" and not config.reference.cached else 1
    gradients = 1 if training.lora is not None else 2  # of activations, and of weights
    recomputed = 1 if remat == "everything" else 0
    logits = models if config.compute.head.keep_logits else 2 * models
    return Passes(blocks=models + gradients + recomputed, head=logits + gradients)
