"""Adapters as settings: po.lora as policy.adapter has it, and what `--check` and a run say of adapters. No JAX here."""

from pathlib import Path

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Lora
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.adapter import Adapter, LoraShape
from sparsepo_jax.models.adapter_config import AdapterConfig
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections
from sparsepo_jax.run.resume import trains_adapter_further


def settle_lora(config: Config, spec: DecoderSpec) -> Config:
    """The config with the settings of po.lora that it leaves out taken from policy.adapter, which po trains further.

    Raises:
        UserError: a setting is another than the adapter's, or the adapter is none that po.lora can train.
    """
    shape, lora = Adapter(config.policy.adapter, spec, "policy.adapter").lora, config.po.lora
    wanted = {
        "rank": shape.rank,
        "alpha": shape.alpha,
        "rslora": shape.rslora,
        "targets": [f"^{name}$" for name in shape.targets],
    }
    differing = [
        name for name in wanted if name in lora.model_fields_set and not _agree(name, lora, shape, spec)
    ]
    if differing:
        ours = ", ".join(f"{name} {getattr(lora, name)}" for name in differing)
        theirs = ", ".join(
            f"{name} {getattr(shape, name)}" if name != "targets" else f"targets {', '.join(shape.targets)}"
            for name in differing
        )
        raise UserError(
            f"po.lora: {ours}, but policy.adapter, which po trains further, has {theirs}: leave out po.lora.{' and po.lora.'.join(differing)}"
        )
    kept = {name: getattr(lora, name) for name in wanted if name in lora.model_fields_set}
    settled = lora.model_copy(update=wanted | kept)
    return config.model_copy(update={"po": config.po.model_copy(update={"lora": settled})})


def _agree(name: str, lora: Lora, shape: LoraShape, spec: DecoderSpec) -> bool:
    if name != "targets":
        return getattr(lora, name) == getattr(shape, name)
    try:
        return choose_projections(tuple(lora.targets), spec) == shape.targets
    except SpecError:
        return False


def same_model(base: str, path: str) -> bool:
    """Whether two names mean one model, as far as names tell: equal, the same directory, or the same last part (a Hub id and its copy)."""
    return (
        base == path or Path(base).absolute() == Path(path).absolute() or Path(base).name == Path(path).name
    )


def describe_adapter(adapter: Adapter | AdapterConfig, config: Config, setting: str) -> str:
    """For the line of policy or reference: " + adapter DIR (LoRA rank 16, merged)"."""
    path = getattr(config, setting).adapter
    kind = adapter.describe() if isinstance(adapter, Adapter) else f"LoRA rank {adapter.rank}"
    if setting == "policy" and trains_adapter_further(config):
        use = "trained further by po"
    else:
        use = "merged" if config.po.lora is None or setting == "policy" else "on the policy's base"
    return f" + adapter {path} ({kind}, {use})"
