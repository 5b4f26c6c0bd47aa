"""What the cached log-probs of the reference depend on, and where they lie."""

from pathlib import Path
from typing import Any

from sparsepo_jax.config.derive import length_limits
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.cache import cache_directory
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.train.reference_cache import sha256_of_weights


def reference_key(config: Config, spec: DecoderSpec, reference: Weights, table: TokenTable) -> dict[str, Any]:
    """What the reference's log-probs and masks depend on.

    That is its weights and shape, the tokens, the truncation, and the mask that is read off its activations.
    """
    mask = config.objective.mask
    max_length, max_prompt_length = length_limits(config.data, spec.max_positions, spec.positions_note)
    reads = mask is not None and mask.kind == "activation"
    return {
        "reference": sha256_of_weights(reference),
        "shape": repr(spec),
        "tokens": table.digest(),
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "mask": mask.model_dump(mode="json") if reads else None,
    }


def reference_cache_dir(config: Config) -> Path:
    return Path(config.reference.cache_dir) if config.reference.cache_dir else cache_directory("reference")
