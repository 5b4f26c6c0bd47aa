"""Weights between Hugging Face's safetensors and our arrays, by the rules of the family.

Errors are collected: a checkpoint with three wrong tensors gives one message that lists all three.
"""

import itertools
import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.families import family_rules, stored_rules
from sparsepo_jax.models.field_tables import TAKE_UNQUANTISED
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.tensor_names import (
    HEADS,
    embedding_name,
    may_carry,
    note_of_tensors,
    stored_names,
    unread_names,
)
from sparsepo_jax.models.weight_rules import Rule

_LISTED = 12  # tensors that a message names
# Ends of the names of what GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors store.
_PACKED = (".qweight", ".qzeros", ".absmax", ".SCB", ".weight_packed", ".weight_scale", ".weight_scale_inv")

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
    places, spare_heads = _places(spec, tensors, expected, where)
    _refuse_another_head(tensors, spare_heads, stored_names(spec, shapes)(embedding_name(spec)), where)
    for name, tensor in tensors.read(places):
        parts = list(parts_of(spec, places[name], tensor))
        del tensor  # let go of what was handed over before the next tensor is read: it may be gigabytes
        while parts:
            yield parts.pop(0)


def check_tensors(spec: DecoderSpec, tensors: SafeTensors, where: str) -> str | None:
    """Checks that names, sizes and types of a checkpoint's tensors fit its config.json. Needs no JAX.

    Args:
        spec: the decoder.
        tensors: those of the checkpoint.
        where: the checkpoint's name, for messages.

    Returns:
        A line on tensors that are left out; None if there are none.

    Raises:
        UserError: they do not, see `stream_hf`, which compares each shape.
    """
    shapes = tensors.shapes()
    places, _ = _places(spec, tensors, None, where)
    tensors.check_types(places)
    embedding = stored_names(spec, shapes)(embedding_name(spec))
    rows, _ = shapes[embedding]
    if rows != spec.vocab_size:
        raise UserError(
            f"{where}: {embedding} has {rows:,} rows, and vocab_size in config.json is {spec.vocab_size:,}: "
            "mend the wrong one"
        )
    stored, meant = sum(math.prod(shapes[name]) for name in places), spec.parameter_count()
    if stored != meant:
        raise UserError(f"{where}: the tensors hold {stored:,} numbers, and config.json means {meant:,}")
    return note_of_tensors(spec, shapes, where)


def _places(
    spec: DecoderSpec,
    tensors: Tensors,
    expected: Mapping[str, tuple[int, ...]] | None,
    where: str,
) -> tuple[dict[str, Place], set[str]]:
    """(what each stored tensor is, tied heads beside the embedding).

    Args:
        spec: the decoder.
        tensors: those of the checkpoint.
        expected: the shape of each of our arrays, by path; None: shapes are not compared.
        where: the checkpoint's name, for messages.

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
    """
    shapes = tensors.shapes()
    places, faults = _match(spec, shapes, expected)
    tied_heads = set(HEADS) if spec.tied_head else set()
    unread, _ = unread_names(spec, shapes)
    for name in sorted(shapes.keys() - places.keys() - tied_heads - unread):
        faults.append(f"{name} is not part of this architecture ({spec.family})")
    # MLX turns or shifts filters and norms of delta nets, and filters of towers.
    if isinstance(tensors, SafeTensors) and tensors.is_mlx() and (faults or may_carry(spec)):
        raise UserError(
            f"{where}: the weights are in MLX's form, in which tensors of this model have other names or "
            "shapes than in transformers: take the checkpoint that they were made from"
        )
    if faults:
        raise UserError(f"{where}: {_described(faults, shapes, embedding_name(spec))}")
    return places, tied_heads & shapes.keys() - places.keys()


def _described(faults: Sequence[str], names: Collection[str], embedding: str) -> str:
    """What does not fit, and why if the names show it.

    names: of the stored tensors.
    embedding: the full name of one that every model has.
    """
    if (packed := next((name for name in names if name.endswith(_PACKED)), None)) is not None:
        return f"the weights are quantised, as {packed} shows: {TAKE_UNQUANTISED}"
    stored = next((name for name in names if name.endswith("." + embedding)), None)
    if stored is not None:
        return (
            f"tensors have names as {stored}, which a wrapper around the model leaves (torch.compile, DDP, "
            "PEFT) and transformers does not find: save the model within the wrapper"
        )
    if any(".lora_A." in name for name in names):
        return "adapters lie among the weights: merge them (PEFT: merge_and_unload) and save the model again"
    if len(faults) == 1 and any(faults[0].startswith(f"{head} is missing") for head in HEADS):
        return (
            f"1 tensor(s) do not fit config.json: {faults[0]}: a model saved without its head (AutoModel, an "
            "embedding model) writes no text; if the embedding is the head, set tie_word_embeddings to true"
        )
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f"{len(faults)} tensor(s) do not fit config.json: {'; '.join(faults[:_LISTED])}{more}"


def _match(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]] | None,
) -> tuple[dict[str, Place], list[str]]:
    """What each stored tensor is, and which tensors are missing or have another shape."""
    stored_name = stored_names(spec, shapes)
    places: dict[str, Place] = {}
    faults = []
    for rule in stored_rules(spec, shapes):
        wanted = None if expected is None else _shape_of(rule, spec, expected)
        for layer, full_name in full_names(rule, spec):
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


def full_names(rule: Rule, spec: DecoderSpec) -> list[tuple[LayerPlace, str]]:
    """(layer, name) of the tensors of a rule.

    Args:
        rule: which tensors are which arrays.
        spec: the decoder.
    """
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
        yield TensorPart(*array_place(spec, path, layer), value)


def array_place(spec: DecoderSpec, path: str, layer: LayerPlace) -> tuple[str, LayerPlace]:
    """Where a tensor's share of an array lies: (path, place in it), see `TensorPart`.

    Args:
        spec: the decoder.
        path: of the array, in a layer of its own.
        layer: the tensor's.
    """
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
    return {name: (rule, layer) for rule in rules for layer, name in full_names(rule, spec)}


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
        for layer, name in full_names(rule, spec):
            parts = (array_place(spec, path, layer) for path in rule.ours)
            arrays = (weights[path] if place is None else weights[path][place] for path, place in parts)
            yield name, rule.join(*map(np.asarray, arrays))
