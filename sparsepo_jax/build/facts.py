"""What a training stage works on, for the doctor and the report."""

import math
from typing import Any

from jax.sharding import Mesh

from sparsepo_jax.build.compute import machine_facts
from sparsepo_jax.build.lora import make_lora
from sparsepo_jax.build.models import weight_shapes
from sparsepo_jax.build.weights import trained_shapes
from sparsepo_jax.config.derive import length_limits
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.data.facts import table_facts
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.decoder_spec import DecoderSpec


def stage_facts(
    config: Config, stage: str, table: TokenTable, spec: DecoderSpec, steps: int, mesh: Mesh
) -> dict[str, Any]:
    """What a training stage works on: for the doctor and the report."""
    lora = make_lora(getattr(config, stage), stage, spec)
    max_length, max_prompt_length = length_limits(config.data, spec.max_positions, spec.positions_note)
    return {
        "steps": steps,
        "data": table_facts(table),
        "limits": {
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
            "positions": spec.max_positions,
        },
        "parameters": _count(weight_shapes(spec)),
        "trained_parameters": _count(trained_shapes(spec, lora)),
        "machine": machine_facts(config, mesh),
    }


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
