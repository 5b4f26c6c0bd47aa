"""Adapters as settings: po.lora as policy.adapter has it, and the words of `--check` and a run for adapters.

No JAX here.
"""

from pathlib import Path

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import LoraSettings
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.adapter import Adapter, LoraShape
from sparsepo_jax.models.adapter_config import AdapterConfig
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections
from sparsepo_jax.run.resume import trains_adapter_further


def settle_lora(config: Config, spec: DecoderSpec) -> Config:
    """The config whose po.lora is that of policy.adapter, which po trains further.

    Settings of po.lora that the config leaves out are taken from the adapter.

    Args:
        spec: of the policy.

    Raises:
        UserError: a setting differs from the adapter's, or po.lora cannot train such an adapter.
    """
    lora = config.po.lora
    if config.policy.adapter is None or lora is None:
        return config
    shape = Adapter(config.policy.adapter, spec, "policy.adapter").lora
    from_adapter = {
        "rank": shape.rank,
        "alpha": shape.alpha,
        "rslora": shape.rslora,
        "targets": [f"^{name}$" for name in shape.targets],
    }
    chosen = [name for name in from_adapter if name in lora.model_fields_set]
    differing = [name for name in chosen if not _agree(name, lora, shape, spec)]
    if differing:
        ours = ", ".join(f"{name} {getattr(lora, name)}" for name in differing)
        theirs = ", ".join(_describe_setting(name, shape) for name in differing)
        raise UserError(
            f"po.lora: {ours}, but policy.adapter, which po trains further, has {theirs}: leave out "
            f"po.lora.{' and po.lora.'.join(differing)}"
        )
    settled = lora.model_copy(update=from_adapter | {name: getattr(lora, name) for name in chosen})
    return config.model_copy(update={"po": config.po.model_copy(update={"lora": settled})})


def _agree(name: str, lora: LoraSettings, shape: LoraShape, spec: DecoderSpec) -> bool:
    if name != "targets":
        return getattr(lora, name) == getattr(shape, name)
    try:
        return choose_projections(tuple(lora.targets), spec) == shape.targets
    except SpecError:
        return False


def _describe_setting(name: str, shape: LoraShape) -> str:
    return f"targets {', '.join(shape.targets)}" if name == "targets" else f"{name} {getattr(shape, name)}"


def same_model(base: str, path: str) -> bool:
    """Whether two names mean one model, as far as names tell.

    They do if they are equal, name the same directory, or end in the same part (a Hub id and its copy).
    """
    if base == path or Path(base).absolute() == Path(path).absolute():
        return True
    return Path(base).name == Path(path).name


def describe_adapter(adapter: Adapter | AdapterConfig, config: Config, setting: str) -> str:
    """For the line of policy or reference: " + adapter DIR (LoRA rank 16, merged)"."""
    path = getattr(config, setting).adapter
    kind = adapter.describe() if isinstance(adapter, Adapter) else f"LoRA rank {adapter.rank}"
    if setting == "policy" and trains_adapter_further(config):
        use = "trained further by po"
    else:
        use = "merged" if config.po.lora is None or setting == "policy" else "on the policy's base"
    return f" + adapter {path} ({kind}, {use})"
