"""Bytes that a training stage holds on each device from step to step, counted from the shape of its model."""

import math
from typing import NamedTuple

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Optimizer, Training
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections
from sparsepo_jax.run.model_facts import Model

_BYTES = {"float32": 4, "bfloat16": 2}


class Numbers(NamedTuple):
    """How many numbers a stage trains or holds, by how they may be held.

    Attributes:
        blocks: of the matrices of blocks, or of adapters.
        head: of a head of its own.
        tables: of the embeddings.
        vectors: of norms, biases and mask nets, which are float32 always.
    """

    blocks: int
    head: int
    tables: int
    vectors: int

    def bytes(self, held: str) -> int:
        """Args: held: the type of matrices."""
        return _BYTES[held] * (self.blocks + self.head + self.tables) + 4 * self.vectors


def memory_text(
    config: Config, training: Training, policy: Model, masks: int | None, reference: Model | None = None
) -> str:
    """Bytes per device of what a stage holds, for a person. Args: see held_sizes."""
    sizes = held_sizes(config, training, policy, masks, reference)
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return f"bytes per device: {parts}{_sharding(config)}"


def held_sizes(
    config: Config, training: Training, policy: Model, masks: int | None, reference: Model | None = None
) -> dict[str, str]:
    """Bytes per device, with units, of weights, gradient, optimizer, and reference or base.

    Args:
        masks: parameters of the mask nets; None: unknown.
        reference: whose weights are held beside them; None: no reference is.
    """
    trained = None if masks is None else _trained(training, policy, masks)
    # Adapters are float32 always.
    weights = "float32" if training.lora is not None else config.compute.weights
    writer = _Sizes(config)
    sizes = {
        "weights": writer.text(None if trained is None else trained.bytes(weights)),
        "gradient": _gradient_text(writer, training, trained, weights),
        "optimizer": _optimizer_text(writer, training.optimizer, trained, policy.spec),
    }
    if training.lora is not None:
        sizes[f"base ({training.lora.base})"] = _base_text(writer, training.lora.base, policy)
    elif reference is not None:
        sizes["reference"] = _reference_text(writer, reference)
    offload = config.compute.offload
    for name in ("optimizer", "reference"):
        if name in sizes and offload in (name, "both"):
            sizes[name] += " (on the host" + (" but embeddings and head)" if name == "reference" else ")")
    return sizes


class _Sizes(NamedTuple):
    """Writes bytes that are cut over fsdp and tensor."""

    config: Config

    def text(self, size: int | None) -> str:
        if size is None:
            return "unknown"
        mesh = self.config.compute.mesh
        size = math.ceil(size / ((mesh.fsdp or 1) * (mesh.tensor or 1)))
        if size >= 1e9:
            return f"{size / 1e9:,.2f} GB"
        return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"

    def by_device(self, on_cpu: int | None, elsewhere: int | None) -> str:
        """Where the type is the device's own: that on CPU, and that of GPU and TPU if it differs."""
        text = self.text(on_cpu)
        return text if on_cpu == elsewhere else f"{text} (GPU, TPU: {self.text(elsewhere)})"


def _numbers(model: Model, masks: int = 0) -> Numbers | None:
    """All numbers of a model, and of mask nets beside it."""
    if model.parameters is None or model.spec is None:
        return None
    blocks, matrices = model.spec.block_matrix_count(), model.spec.matrix_count()
    head = 0 if model.spec.tied_head else model.spec.vocab_size * model.spec.width
    return Numbers(blocks, head, matrices - blocks - head, model.parameters - matrices + masks)


def _trained(training: Training, policy: Model, masks: int) -> Numbers | None:
    """What a stage trains."""
    if training.lora is None:
        return _numbers(policy, masks)
    if policy.spec is None:
        return None
    projections = choose_projections(tuple(training.lora.targets), policy.spec)
    return Numbers(policy.spec.adapter_parameter_count(projections, training.lora.rank), 0, 0, masks)


def _gradient_text(writer: _Sizes, training: Training, trained: Numbers | None, weights: str) -> str:
    """Sums over micro-steps are float32. The gradient of a single batch has the type of the activations,
    in which a step holds the matrices that products read; that of embeddings has the type of the weights."""
    if trained is None:
        return "unknown"
    if training.accumulation > 1:
        return writer.text(trained.bytes("float32"))

    def of_type(dtype: str) -> int:
        return trained._replace(tables=0).bytes(dtype) + _BYTES[weights] * trained.tables

    dtype = writer.config.compute.dtype
    return writer.by_device(*map(of_type, ("float32", "bfloat16") if dtype == "auto" else (dtype, dtype)))


def _optimizer_text(
    sizes: _Sizes, optimizer: Optimizer, trained: Numbers | None, spec: DecoderSpec | None
) -> str:
    if trained is None or spec is None:
        return "unknown"
    match optimizer.kind:
        case "adamw":  # mean and mean square
            return sizes.text(2 * trained.bytes(optimizer.moments))
        case "lion" | "rmsprop":
            return sizes.text(trained.bytes(optimizer.moments))
        case "muon":  # one mean of the matrices of blocks, Adam's two of all else
            others = trained._replace(blocks=0)
            size = trained.bytes(optimizer.moments) + others.bytes(optimizer.moments)
            return sizes.text(size)
    # Adafactor has a row and a column for each matrix, in optax for those of at least 128 rows and columns.
    count = sum(trained)
    return "about " + sizes.text(4 * (count if spec.width < 128 else 2 * count // spec.width))


def _reference_text(sizes: _Sizes, reference: Model) -> str:
    numbers, compute = _numbers(reference), sizes.config.compute
    if numbers is None:
        return "unknown"
    full, half = numbers.bytes("float32"), numbers.bytes("bfloat16")
    chosen = sizes.config.reference.dtype
    if chosen != "auto":
        return sizes.text(numbers.bytes(chosen))
    if "bfloat16" in (compute.weights, compute.dtype):
        return sizes.text(half)
    return sizes.by_device(full, half if compute.dtype == "auto" else full)


def _base_text(sizes: _Sizes, base: str, policy: Model) -> str:
    """Bytes of frozen weights; int8 and nf4 hold the blocks' matrices, without their small scales."""
    numbers = _numbers(policy)
    if numbers is None:
        return "unknown"
    if base in _BYTES:
        return sizes.text(numbers.bytes(base))
    return "about " + sizes.text(
        numbers._replace(blocks=0).bytes("float32") + numbers.blocks // {"int8": 1, "nf4": 2}[base]
    )


def _sharding(config: Config) -> str:
    mesh = config.compute.mesh
    if mesh.fsdp is None or mesh.tensor is None:
        return f" (as if {'fsdp' if mesh.fsdp is None else 'tensor'}, which is free, were 1)"
    return f" (sharded over fsdp x tensor = {mesh.fsdp * mesh.tensor})" if mesh.fsdp * mesh.tensor > 1 else ""
