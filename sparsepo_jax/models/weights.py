"""Weights between Hugging Face's safetensors and our arrays, by the rules of the family.

Errors are collected: a checkpoint with three wrong tensors gives one message that lists all three.
"""

import itertools
import math
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.families import family_rules, peft_rules, stored_rules
from sparsepo_jax.models.stored_tensors import BUFFERS, SafeTensors, is_mask_tensor
from sparsepo_jax.models.weight_rules import Rule
from sparsepo_jax.models.wrappers import carried_names, name_in

_HEADS = ("lm_head.weight", "embed_out.weight", "language_model.lm_head.weight")

# Qwen's heads that predict later tokens, which transformers leaves out, too.
_LATER_TOKENS = ("mtp.",)

_LISTED = 12  # tensors that a message names

# Of a tensor: a layer, or a layer and an expert; None: it is the only one.
LayerPlace = int | tuple[int, int] | None
Place = tuple[Rule, LayerPlace]  # what a tensor is


class TensorPart(NamedTuple):
    """A tensor's share of one of our arrays.

    Its place is None (all of the array), that of a layer in its stack, or (that, number of an expert).
    """

    path: str
    place: LayerPlace
    value: np.ndarray


@runtime_checkable
class Tensors(Protocol):
    """Named arrays whose shapes are known before they are read."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by name."""

    def read(self, names: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of those of the names that there are, in any order.

        Args:
            names: of tensors; others are not read.
        """


# ---------------------------------------------------------------- theirs to ours


def stream_hf(
    spec: DecoderSpec, tensors: Tensors, expected: Mapping[str, tuple[int, ...]], where: str
) -> Iterator[TensorPart]:
    """Parts of our arrays from Hugging Face tensors, each tensor read once, in the order of their files.

    Tensors of the mask nets are left out. So is a tied head, if it equals the embedding.

    Args:
        spec: the decoder.
        tensors: those of the checkpoint.
        expected: the shape of each of our arrays, by path.
        where: the checkpoint's name, for messages.

    Raises:
        UserError: before anything is read, a list of every missing, unexpected and wrongly shaped tensor;
            or a head that config.json ties to the embedding and that is not equal to it.
    """
    shapes = tensors.shapes()
    places, spare_heads = _places(spec, shapes, expected, where)
    _refuse_another_head(tensors, spare_heads, _stored_names(spec, shapes)(_embedding_name(spec)), where)
    for name, tensor in tensors.read(places):
        parts = list(parts_of(spec, places[name], tensor))
        del tensor  # let go of what was handed over before the next tensor is read: it may be gigabytes
        while parts:
            yield parts.pop(0)


def check_tensors(spec: DecoderSpec, tensors: SafeTensors, where: str) -> None:
    """Checks that names, sizes and types of a checkpoint's tensors fit its config.json. Needs no JAX.

    Args:
        spec: the decoder.
        tensors: those of the checkpoint.
        where: the checkpoint's name, for messages.

    Raises:
        UserError: they do not, see `stream_hf`, which compares each shape.
    """
    shapes = tensors.shapes()
    places, _ = _places(spec, shapes, None, where)
    tensors.check_types(places)
    embedding = _stored_names(spec, shapes)(_embedding_name(spec))
    rows, _ = shapes[embedding]
    if rows != spec.vocab_size:
        raise UserError(
            f"{where}: {embedding} has {rows:,} rows, and vocab_size in config.json is {spec.vocab_size:,}: "
            "mend the wrong one"
        )
    stored, meant = sum(math.prod(shapes[name]) for name in places), spec.parameter_count()
    if stored != meant:
        raise UserError(f"{where}: the tensors hold {stored:,} numbers, and config.json means {meant:,}")


def _places(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]] | None,
    where: str,
) -> tuple[dict[str, Place], set[str]]:
    """(what each stored tensor is, tied heads beside the embedding).

    Args:
        spec: the decoder.
        shapes: of the stored tensors, by name.
        expected: the shape of each of our arrays, by path; None: shapes are not compared.
        where: the checkpoint's name, for messages.

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
    """
    places, faults = _match(spec, shapes, expected)
    tied_heads = set(_HEADS) if spec.tied_head else set()
    spare = _LATER_TOKENS if any(kind.shape.delta is not None for kind in spec.kinds) else ()
    carried = set(carried_names(spec.wrapping, shapes))
    for name in sorted(shapes.keys() - places.keys() - tied_heads):
        if name in carried or name.startswith(spare):
            continue
        if not name.endswith(BUFFERS) and not is_mask_tensor(name):
            faults.append(f"{name} is not part of this architecture ({spec.family})")
    if faults:
        raise UserError(f"{where}: {_described(faults, shapes, _embedding_name(spec))}")
    return places, tied_heads & shapes.keys() - places.keys()


def _described(faults: Sequence[str], names: Collection[str], embedding: str) -> str:
    """What does not fit, and why if the names show it.

    names: of the stored tensors.
    embedding: the full name of one that every model has.
    """
    stored = next((name for name in names if name.endswith("." + embedding)), None)
    if stored is not None:
        return (
            f"tensors have names as {stored}, which a wrapper around the model leaves (torch.compile, DDP, "
            "PEFT) and transformers does not find: save the model within the wrapper"
        )
    if any(".lora_A." in name for name in names):
        return "adapters lie among the weights: merge them (PEFT: merge_and_unload) and save the model again"
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f"{len(faults)} tensor(s) do not fit config.json: {'; '.join(faults[:_LISTED])}{more}"


def _match(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]] | None,
) -> tuple[dict[str, Place], list[str]]:
    """What each stored tensor is, and which tensors are missing or have another shape."""
    stored_name = _stored_names(spec, shapes)
    places: dict[str, Place] = {}
    faults = []
    for rule in stored_rules(spec, shapes):
        wanted = None if expected is None else _shape_of(rule, spec, expected)
        for layer, full_name in _names_of(rule, spec):
            name = stored_name(full_name)
            places[name] = rule, layer
            if name not in shapes:
                shape = "" if wanted is None else f" (expected shape {list(wanted)})"
                faults.append(f"{full_name} is missing{shape}")
            elif wanted is not None and shapes[name] != wanted:
                faults.append(f"{name} has shape {list(shapes[name])}, expected {list(wanted)}")
    return places, faults


def _shape_of(rule: Rule, spec: DecoderSpec, expected: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the tensors of a rule."""
    leading = rule.per_layer + rule.per_expert
    first = _layers_of(rule, spec)[0]
    paths = [spec.place(path, first)[0] if rule.per_layer else path for path in rule.ours]
    return rule.join(*(np.empty(expected[path][leading:], bool) for path in paths)).shape


def _names_of(rule: Rule, spec: DecoderSpec) -> list[tuple[LayerPlace, str]]:
    """(layer, name) of the tensors of a rule."""
    if not rule.per_layer:
        return [(None, rule.theirs)]
    if rule.per_expert:
        assert spec.mixture is not None
        pairs = itertools.product(_layers_of(rule, spec), range(spec.mixture.experts))
        return [((layer, expert), rule.theirs.format(i=layer, e=expert)) for layer, expert in pairs]
    return [(layer, rule.theirs.format(i=layer)) for layer in _layers_of(rule, spec)]


def _layers_of(rule: Rule, spec: DecoderSpec) -> Sequence[int]:
    """The layers that have a tensor of a rule."""
    return range(spec.num_layers) if rule.layers is None else rule.layers


def parts_of(spec: DecoderSpec, place: Place, tensor: np.ndarray) -> Iterator[TensorPart]:
    """What a Hugging Face tensor is of our arrays.

    Args:
        spec: the decoder.
        place: what the tensor is.
        tensor: its numbers.
    """
    rule, layer = place
    for path, value in zip(rule.ours, rule.split(tensor), strict=True):
        yield TensorPart(*_place(spec, path, layer), value)


def _place(spec: DecoderSpec, path: str, layer: LayerPlace) -> tuple[str, LayerPlace]:
    """Where a tensor's share of an array lies: (path, place in it), see `Part`."""
    if layer is None:
        return path, None
    if isinstance(layer, int):
        return spec.place(path, layer)
    stack, place = spec.place(path, layer[0])
    return stack, (place, layer[1])


def tensor_places(spec: DecoderSpec, rules: Sequence[Rule] | None = None) -> dict[str, Place]:
    """What each Hugging Face tensor of a decoder is, by its full name.

    Args:
        spec: the decoder.
        rules: of its tensors; None: as its family stores them.
    """
    rules = family_rules(spec) if rules is None else rules
    return {name: (rule, layer) for rule in rules for layer, name in _names_of(rule, spec)}


def _embedding_name(spec: DecoderSpec) -> str:
    return next(rule.theirs for rule in family_rules(spec) if rule.ours == ("embed.embedding",))


def _stored_names(spec: DecoderSpec, shapes: Collection[str]) -> Callable[[str], str]:
    """A function from a tensor's full name to its name in a checkpoint.

    A checkpoint of the bare trunk lacks the first part of the names, one of a wrapper may have another. A
    tied embedding may be stored under the name of the head alone.
    """
    embedding, placed_name = _embedding_name(spec), name_in(spec.wrapping, shapes)

    def stored_name(full_name: str) -> str:
        name = placed_name(full_name)
        name = name if name in shapes else name.split(".", 1)[1]
        if full_name == embedding and spec.tied_head and name not in shapes:
            return next((head for head in _HEADS if head in shapes), name)
        return name

    return stored_name


def _refuse_another_head(tensors: Tensors, heads: Container[str], embedding: str, where: str) -> None:
    """UserError if config.json ties a head that is not the embedding: transformers would use that head."""
    for name, head in tensors.read(heads):
        ((_, embedded),) = tensors.read({embedding})
        if not np.array_equal(head, embedded):
            raise UserError(
                f"{where}: {name} is not {embedding}, though config.json ties them (transformers would not "
                "tie them either): set tie_word_embeddings to false in its config.json"
            )


# ---------------------------------------------------------------- ours to theirs


def to_hf(spec: DecoderSpec, weights: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face tensors from our arrays, one at a time.

    Args:
        spec: the decoder.
        weights: our arrays by path, on any device.

    Yields:
        (name, tensor). A tied head is left out, as transformers does.
    """
    for rule in family_rules(spec):
        for layer, name in _names_of(rule, spec):
            parts = (_place(spec, path, layer) for path in rule.ours)
            arrays = (weights[path] if place is None else weights[path][place] for path, place in parts)
            yield name, rule.join(*map(np.asarray, arrays))


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
        name: its name within a layer; of an expert's module the last part.
        rank: R.
        a: lora_A [R, in]; of a stack [E * R, in].
        b: lora_B [out, R]; of a stack [out, R * E].
        is_stack: whether PEFT knows it as a parameter of a module instead of as a module.
    """

    full_name: str
    name: str
    rank: int
    a: np.ndarray
    b: np.ndarray
    is_stack: bool


def to_peft(spec: DecoderSpec, adapters: Mapping[str, Any]) -> Iterator[PeftModule]:
    """Adapters as PEFT has them, one module at a time.

    Args:
        spec: the decoder.
        adapters: our adapters' arrays by path, on any device.
    """
    kernels = adapted_kernels(adapters)

    def is_adapted(rule: Rule, layer: LayerPlace) -> bool:
        return any(_place(spec, path, layer)[0] in kernels for path in rule.ours)

    rules = [rule for rule in peft_rules(spec) if rule.per_layer]
    for number, rule in enumerate(rules):
        for layer, full_name in _names_of(rule, spec):
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
    stacks = [_place(spec, path, layer) for path in rule.ours]
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
    return PeftModule(
        full_name=full_name.removesuffix(".weight"),
        # Of an expert's module PEFT makes what transformers 5 has in its place, if it is named so.
        name=module.rsplit(".", 1)[1] if rule.per_expert else module.split("{i}.")[1],
        rank=total_rank,
        a=a,
        b=np.ascontiguousarray(b),
        is_stack=rule.stacked,
    )
