"""Low-rank adapters as the configuration asks for them."""

from sparsepo_jax.build.models import checkpoint_config, read_spec
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.adapter import Adapter, LoraShape
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.run.adapters import settle_lora
from sparsepo_jax.run.mixture import adapter_mistakes
from sparsepo_jax.run.resume import trains_adapter_further


def with_adapter_settings(config: Config) -> Config:
    """The config with po.lora as policy.adapter has it, where po goes on training that."""
    if not trains_adapter_further(config):
        return config
    return settle_lora(
        config, read_spec(checkpoint_config(config.policy, "policy"), config.policy.path, None)
    )


def as_lora(shape: LoraShape) -> Lora:
    return Lora(shape.targets, shape.rank, shape.alpha, 0.0, shape.rslora)


def make_reference_lora(config: Config, spec: DecoderSpec, lora: Lora | None) -> Lora | None:
    """The adapters that the reference keeps on the base that it shares with an adapted policy.

    None: the reference is the base alone, or it shares no base.

    Args:
        lora: the policy's adapters.
    """
    if lora is None:
        return None
    if config.reference.adapter is not None:
        return as_lora(Adapter(config.reference.adapter, spec, "reference.adapter").lora)
    return lora if trains_adapter_further(config) and config.reference.path is None else None


def make_lora(training: Training, name: str, spec: DecoderSpec) -> Lora | None:
    """The adapters of a stage, or None. UserError: a pattern that fits no projection."""
    chosen = training.lora
    if chosen is None:
        return None
    try:
        targets = choose_projections(tuple(chosen.targets), spec)
    except SpecError as error:
        raise UserError(f"{name}.lora.targets: {error}") from error
    for mistake in adapter_mistakes(name, targets, chosen.dropout):
        raise UserError(mistake)
    return Lora(targets, chosen.rank, chosen.alpha, chosen.dropout, chosen.rslora)
