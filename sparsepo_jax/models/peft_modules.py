"""Our adapters as PEFT has them: one module of Hugging Face's model at a time."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.families import peft_rules
from sparsepo_jax.models.weight_rules import Rule
from sparsepo_jax.models.weights import LayerPlace, array_place, full_names


def adapted_kernels(adapters: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The adapters of each kernel.

    Args:
        adapters: arrays of adapters by path (others are ignored).

    Returns:
        Path of the base's kernel -> (A [L, in, R], B [L, R, out]).
    """
    end = ".lora.lora_a"
    return {
        path.removesuffix(end) + ".kernel": (a, adapters[path[:-1] + "b"])
        for path, a in adapters.items()
        if path.endswith(end)
    }


class PeftModule(NamedTuple):
    """An adapted Hugging Face module of one layer, or an adapted stack of the matrices of its experts.

    Attributes:
        full_name: what its tensors are named after: the module's name in the model.
        name: its name within a layer; of an expert's module the last part; of a parameter that PEFT knows as
            such, the parameter's.
        rank: R.
        a: lora_A [R, in]; of a stack [E * R, in].
        b: lora_B [out, R]; of a stack [out, R * E].
        is_parameter: whether PEFT knows it as a parameter of a module instead of as a module.
        is_of_expert: whether it is a module of one expert, of which PEFT makes a part of a stack.
    """

    full_name: str
    name: str
    rank: int
    a: np.ndarray
    b: np.ndarray
    is_parameter: bool
    is_of_expert: bool


def to_peft(spec: DecoderSpec, adapters: Mapping[str, Any]) -> Iterator[PeftModule]:
    """Adapters as PEFT has them, one module at a time.

    Args:
        spec: the decoder.
        adapters: our adapters' arrays by path, on any device.
    """
    kernels = adapted_kernels(adapters)

    def is_adapted(rule: Rule, layer: LayerPlace) -> bool:
        return any(array_place(spec, path, layer)[0] in kernels for path in rule.ours)

    rules = [rule for rule in peft_rules(spec) if rule.per_layer]
    for number, rule in enumerate(rules):
        for layer, full_name in full_names(rule, spec):
            if not is_adapted(rule, layer):
                continue
            if rule.stacked:  # PEFT wraps the module once for each parameter, the last one outermost
                others = (other for other in rules[number + 1 :] if other.layers == rule.layers)
                around = sum(other.stacked and is_adapted(other, layer) for other in others)
                full_name = full_name.rsplit(".", 1)[0] + ".base_layer" * around
            yield _peft_module(spec, rule, (layer, full_name), kernels)


def _peft_module(
    spec: DecoderSpec, rule: Rule, weight: tuple[LayerPlace, str], kernels: Mapping[str, tuple[Any, Any]]
) -> PeftModule:
    """One adapter for a module that may hold several of our projections.

    Its rank is the sum of theirs: rows of A one after the other, B in blocks, so that B A is exactly theirs.

    Args:
        spec: the decoder.
        rule: of the module's weight.
        weight: where it lies, and the module's name.
        kernels: the adapters of each kernel.
    """
    layer, full_name = weight
    number = layer[0] if isinstance(layer, tuple) else layer
    assert number is not None
    sizes = {f"blocks.{name}.kernel": size for name, size in spec.of_layer(number).projections().items()}
    stacks = [array_place(spec, path, layer) for path in rule.ours]
    total_rank = sum(kernels[path][0].shape[-1] for path, _ in stacks if path in kernels)
    experts = (spec.mixture.experts,) if rule.stacked and spec.mixture is not None else ()
    rows_of_a: list[np.ndarray] = []
    columns_of_b: list[np.ndarray] = []
    begin = 0
    for name, (path, place) in zip(rule.ours, stacks, strict=True):
        _, outputs = sizes[name]
        block = np.zeros((*experts, total_rank, outputs), np.float32)
        if path in kernels:
            a, b = (np.asarray(x[place]) for x in kernels[path])  # [.., D, R] and [.., R, F]
            rows_of_a.append(a.swapaxes(-2, -1))
            rank = a.shape[-1]
            block[..., begin : begin + rank, :] = b
            begin += rank
        columns_of_b.append(block)
    a, b = np.concatenate(rows_of_a, axis=-2), rule.join(*columns_of_b)  # b: of a kernel from the ranks
    if rule.stacked:
        a, b = a.reshape(-1, a.shape[-1]), b.transpose(2, 1, 0).reshape(b.shape[-1], -1)
    elif spec.family == "gpt2":  # whose modules store [in, out]
        b = b.T
    module = rule.theirs.removesuffix(".weight")
    last = module.rsplit(".", 1)[1]
    is_parameter = rule.stacked or (not rule.per_expert and last in _of_experts(spec))
    return PeftModule(
        full_name=full_name.removesuffix(".weight"),
        # Of an expert's module PEFT makes what transformers 5 has in its place, if it is named so.
        name=last if rule.per_expert else (rule.theirs if is_parameter else module).split("{i}.")[1],
        rank=total_rank,
        a=a,
        b=np.ascontiguousarray(b),
        is_parameter=is_parameter,
        is_of_expert=rule.per_expert,
    )


def _of_experts(spec: DecoderSpec) -> set[str]:
    """The last names of modules that PEFT takes for those of experts, wherever in a layer they are.

    A dense layer's `mlp.up_proj` and a shared expert's are among them where experts have an `up_proj`.
    """
    return {rule.theirs.split(".")[-2] for rule in peft_rules(spec) if rule.per_expert}
