"""Bytes that a training stage holds on each device from step to step, counted from the shape of its model."""

import math
from typing import NamedTuple

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.run.held import (
    BYTES,
    HeldNumbers,
    base_bytes,
    gradient_bytes,
    moment_bytes,
    numbers_of,
    trained_numbers,
)
from sparsepo_jax.run.model_facts import Model


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
        "optimizer": _optimizer_text(writer, training, trained, policy),
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


def _numbers(model: Model) -> HeldNumbers | None:
    return None if model.parameters is None or model.spec is None else numbers_of(model.spec)


def _trained(training: Training, policy: Model, masks: int) -> HeldNumbers | None:
    if policy.spec is None or (training.lora is None and policy.parameters is None):
        return None
    return trained_numbers(training, policy.spec, masks)


def _gradient_text(writer: _Sizes, training: Training, trained: HeldNumbers | None, weights: str) -> str:
    if trained is None:
        return "unknown"
    if training.accumulation > 1:  # sums are float32
        return writer.text(trained.bytes("float32"))
    return writer.by_device(*(gradient_bytes(trained, weights, dtype) for dtype in _types(writer.config)))


def _types(config: Config) -> tuple[str, str]:
    """The type of activations on CPU, and that on GPU and TPU."""
    dtype = config.compute.dtype
    return ("float32", "bfloat16") if dtype == "auto" else (dtype, dtype)


def _optimizer_text(writer: _Sizes, training: Training, trained: HeldNumbers | None, policy: Model) -> str:
    if trained is None or policy.spec is None:
        return "unknown"
    about = "about " if training.optimizer.kind == "adafactor" else ""
    return about + writer.text(moment_bytes(training, trained, policy.spec))


def _reference_text(writer: _Sizes, reference: Model) -> str:
    numbers, config = _numbers(reference), writer.config
    if numbers is None:
        return "unknown"
    held = config.reference.dtype
    if held == "auto" and config.compute.weights == "bfloat16":
        held = "bfloat16"
    types = _types(config) if held == "auto" else (held, held)
    return writer.by_device(*map(numbers.bytes, types))


def _base_text(writer: _Sizes, base: str, policy: Model) -> str:
    numbers = _numbers(policy)
    if numbers is None:
        return "unknown"
    return ("" if base in BYTES else "about ") + writer.text(base_bytes(base, numbers))


def _sharding(config: Config) -> str:
    mesh = config.compute.mesh
    if mesh.fsdp is None or mesh.tensor is None:
        return f" (as if {'fsdp' if mesh.fsdp is None else 'tensor'}, which is free, were 1)"
    return f" (sharded over fsdp x tensor = {mesh.fsdp * mesh.tensor})" if mesh.fsdp * mesh.tensor > 1 else ""
