"""Weight rules of mixtures of experts; see weight_rules."""

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.weight_rules import Rule, interleaved_experts, same, stacked_experts, transposed

_LAYER = "model.layers.{i}"
_PROJECTIONS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}  # ours -> theirs


def expert_rules(spec: DecoderSpec) -> list[Rule]:
    """A mixture of experts as it is stored: a tensor for each projection of each expert.

    Within Qwen3-VL it is two tensors for all experts of a layer.

    Args:
        spec: the decoder.
    """
    if spec.wrapping is not None and spec.wrapping.row.stacked_experts:
        return stacked_expert_rules(turned=False)
    mlp, names = f"{_LAYER}.mlp", _PROJECTIONS
    if spec.family == "mixtral":
        mlp, names = f"{_LAYER}.block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}
    return [
        transposed(f"{mlp}.gate.weight", "blocks.experts.router.weight"),
        *(
            transposed(f"{mlp}.experts.{{e}}.{theirs}.weight", f"blocks.experts.{ours}.kernel")
            for ours, theirs in names.items()
        ),
        *_shared_expert_rules(spec),
    ]


def _shared_expert_rules(spec: DecoderSpec) -> list[Rule]:
    """The expert that all tokens are sent to, and its gate, if there is one."""
    if spec.mixture is None or not spec.mixture.shared:
        return []
    theirs = f"{_LAYER}.mlp.shared_expert"
    projections = (
        transposed(f"{theirs}.{name}.weight", f"blocks.shared.{ours}.kernel")
        for ours, name in _PROJECTIONS.items()
    )
    return [*projections, transposed(f"{theirs}_gate.weight", "blocks.shared.share.kernel")]


def gpt_oss_expert_rules() -> list[Rule]:
    """The experts of gpt-oss: stacks, with biases, in which gate and up alternate."""
    mlp = f"{_LAYER}.mlp"
    return [
        transposed(f"{mlp}.router.weight", "blocks.experts.router.weight"),
        same(f"{mlp}.router.bias", "blocks.experts.router.bias"),
        interleaved_experts(f"{mlp}.experts.gate_up_proj", "kernel", "gate", "up"),
        interleaved_experts(f"{mlp}.experts.gate_up_proj_bias", "bias", "gate", "up"),
        interleaved_experts(f"{mlp}.experts.down_proj", "kernel", "down"),
        same(f"{mlp}.experts.down_proj_bias", "blocks.experts.down.bias"),
    ]


def stacked_expert_rules(*, turned: bool) -> list[Rule]:
    """A mixture of experts in two tensors for all experts of a layer.

    Args:
        turned: as transformers 5 holds it in memory, [E, out, in]; else [E, in, out].
    """
    mlp = f"{_LAYER}.mlp"
    return [
        transposed(f"{mlp}.gate.weight", "blocks.experts.router.weight"),
        stacked_experts(f"{mlp}.experts.gate_up_proj", "gate", "up", turned=turned),
        stacked_experts(f"{mlp}.experts.down_proj", "down", turned=turned),
    ]
