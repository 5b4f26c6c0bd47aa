"""What a config may not ask of mixtures of experts, or of models without experts. No JAX here."""

from collections.abc import Iterator

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.models.decoder_spec import DecoderSpec


def training_mistakes(stage: str, training: Training, policy: DecoderSpec) -> Iterator[str]:
    """What a stage that trains asks of experts that it cannot have."""
    if training.router_aux_coefficient and policy.mixture is None:
        yield f"{stage}.router_aux_coefficient: {policy.family} has no experts; set it to 0"


def adapter_mistakes(stage: str, targets: tuple[str, ...], dropout: float) -> Iterator[str]:
    """Adapters of experts that PEFT could not load, for it holds gate and up as one.

    targets: names of the adapted projections.
    """
    if dropout and any(target.startswith("experts.") for target in targets):
        yield f"{stage}.lora.dropout: adapters of experts have none; set it to 0"
    if ("experts.gate" in targets) != ("experts.up" in targets):
        yield (
            f"{stage}.lora.targets: experts.gate and experts.up get adapters together, for PEFT holds them "
            "as one; name both, as by 'experts'"
        )


def replay_mistakes(config: Config, policy: DecoderSpec, reference: DecoderSpec) -> Iterator[str]:
    """Why the policy cannot send tokens where the reference does, if that is asked for."""
    if not config.po.replay_routing:
        return
    if config.reference.cached:
        yield (
            "po.replay_routing: a cached reference does not say which experts it chose; set "
            "reference.cached=false"
        )
    ours, theirs = (
        (spec.layers_with_experts(), spec.mixture and (spec.mixture.experts, spec.mixture.chosen))
        for spec in (policy, reference)
    )
    if policy.mixture is None or ours != theirs:
        shapes = " and ".join(f"{spec.family} with {_experts(spec)}" for spec in (policy, reference))
        yield (
            "po.replay_routing: expected policy and reference with the same layers and experts, got "
            f"{shapes}; set it to false"
        )


def _experts(spec: DecoderSpec) -> str:
    """How many there are, in words."""
    if spec.mixture is None:
        return "none"
    counts = f"{spec.mixture.chosen} of {spec.mixture.experts}"
    return f"{counts} in {len(spec.layers_with_experts())} of {spec.num_layers} layers"
