"""Which Hugging Face tensor is which of our arrays: the kinds of rules that a family's table is made of.

A rule pairs the name of a Hugging Face tensor with paths of ours and says how one becomes the other, in both
directions. A name with {i} stands for the tensors of all layers, one with {e} for those of all experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sparsepo_jax.models.decoder_spec import DecoderSpec

Split = Callable[[np.ndarray], tuple[np.ndarray, ...]]
Join = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Rule:
    """One row of a family's table.

    Attributes:
        theirs: name of the Hugging Face tensor.
        ours: paths of the arrays that it holds.
        split: turns the tensor (of one layer, of one expert) into an array for each path.
        join: the inverse of `split`: arrays in the order of `ours` become the tensor.
        layers: those that have such a tensor, by number; None: all.
        stacked: it holds the matrices of all experts of a layer, [E, ..].
    """

    theirs: str
    ours: tuple[str, ...]
    split: Split
    join: Join
    layers: tuple[int, ...] | None = None
    stacked: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether there is such a tensor in each of several layers."""
        return "{i}" in self.theirs

    @property
    def per_expert(self) -> bool:
        """Whether there is such a tensor for each expert of each layer."""
        return "{e}" in self.theirs


# ---------------------------------------------------------------- kinds of rules


def same(theirs: str, ours: str) -> Rule:
    """A tensor that is one of our arrays as it stands.

    Args:
        theirs: its name.
        ours: the array's path.
    """
    return Rule(theirs, (ours,), lambda x: (x,), lambda x: x)


def transposed(theirs: str, ours: str) -> Rule:
    """A matrix that is stored as [out, in]; ours is [in, out].

    Args:
        theirs: its name.
        ours: the array's path.
    """
    return Rule(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def with_offset(theirs: str, ours: str, offset: float) -> Rule:
    """A scale that is stored as what it lacks to `offset` (1 in Gemma).

    Args:
        theirs: its name.
        ours: the array's path.
        offset: added to what is stored.
    """
    if not offset:
        return same(theirs, ours)
    added = np.float32(offset)
    return Rule(theirs, (ours,), lambda x: (x + added,), lambda x: x - added)


def interleaved(spec: DecoderSpec, theirs: str, ours: str, *, bias: bool = False) -> list[Rule]:
    """A projection to queries or keys of which neighbouring dims of a head are rotated together.

    Ours rotates the two halves of the rotated dims. Dims are put in our order, in queries and keys alike,
    which does not change their products.

    Args:
        spec: the decoder.
        theirs: the module's name; its weight is stored as [out, in].
        ours: the projection's path.
        bias: whether it has one.
    """
    put, order, inverse = _dims_of_heads(spec)

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (put(x, order).T,)

    def join(x: np.ndarray) -> np.ndarray:
        return put(x.T, inverse)

    rules = [Rule(f"{theirs}.weight", (f"{ours}.kernel",), split, join)]
    if bias:
        rules.append(Rule(f"{theirs}.bias", (f"{ours}.bias",), split, join))
    return rules


def interleaved_norms(spec: DecoderSpec, theirs: str, ours: str) -> Rule:
    """Factors [heads, H] of norms of such queries or keys.

    Args:
        spec: the decoder.
        theirs: the tensor's name.
        ours: the array's path.
    """
    _, order, inverse = _dims_of_heads(spec)
    return Rule(theirs, (ours,), lambda x: (x[:, order],), lambda x: x[:, inverse])


def _dims_of_heads(
    spec: DecoderSpec,
) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray, np.ndarray]:
    """(a function that puts the dims of [heads * H, ...] in an order, our order of them, its inverse)."""
    H = spec.head_dim
    # Layers without positions may be in any order: theirs.
    rotary_dim = max((kind.rotation.dim for kind in spec.kinds if kind.rotation is not None), default=0)
    order = np.concatenate(
        [np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2), np.arange(rotary_dim, H)]
    )

    def put(x: np.ndarray, dims: np.ndarray) -> np.ndarray:
        return x.reshape(-1, H, *x.shape[1:])[:, dims].reshape(x.shape)

    return put, order, np.argsort(order)


def norm(theirs: str, ours: str) -> list[Rule]:
    """Scale and bias of a layer norm.

    Args:
        theirs: the module's name.
        ours: the norm's path.
    """
    return [same(f"{theirs}.weight", f"{ours}.scale"), same(f"{theirs}.bias", f"{ours}.bias")]


def linear(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """A projection stored as [out, in]; ours is [in, out].

    Args:
        theirs: the module's name.
        ours: the projection's path.
        bias: whether it has one.
    """
    rules = [transposed(f"{theirs}.weight", f"{ours}.kernel")]
    if bias:
        rules.append(same(f"{theirs}.bias", f"{ours}.bias"))
    return rules


def conv(theirs: str, ours: str) -> list[Rule]:
    """A projection stored as [in, out], with a bias: GPT-2's Conv1D.

    Args:
        theirs: the module's name.
        ours: the projection's path.
    """
    return [same(f"{theirs}.weight", f"{ours}.kernel"), same(f"{theirs}.bias", f"{ours}.bias")]


def head(spec: DecoderSpec, theirs: str) -> list[Rule]:
    """The head, if it is not the embedding.

    Args:
        spec: the decoder.
        theirs: the tensor's name.
    """
    return [] if spec.tied_head else [same(theirs, "head.embedding")]


# ---------------------------------------------------------------- experts


def stacked_experts(theirs: str, *names: str, turned: bool) -> Rule:
    """Stacks [E, in, out] of experts, those of several projections one after the other in `out`.

    Args:
        theirs: the tensor's name.
        names: of the projections.
        turned: the stacks are [E, out, in].
    """

    def turn(x: np.ndarray) -> np.ndarray:
        return x.swapaxes(1, 2) if turned else x

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(turn(x), len(names), axis=2))

    def join(*parts: np.ndarray) -> np.ndarray:
        return turn(np.concatenate(parts, axis=2))

    paths = tuple(f"blocks.experts.{name}.kernel" for name in names)
    return Rule(theirs, paths, split, join, stacked=True)


def interleaved_experts(theirs: str, part: str, *names: str) -> Rule:
    """Stacks [E, .., out] of experts, whose features alternate between projections.

    Args:
        theirs: the tensor's name.
        part: kernel or bias.
        names: of the projections.
    """

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(x[..., number :: len(names)] for number in range(len(names)))

    def join(*parts: np.ndarray) -> np.ndarray:
        stacked = np.stack(parts, axis=-1)
        return stacked.reshape(*stacked.shape[:-2], -1)

    paths = tuple(f"blocks.experts.{name}.{part}" for name in names)
    return Rule(theirs, paths, split, join, stacked=part == "kernel")


# ---------------------------------------------------------------- fused projections


def fused(theirs: str, split: Split, join: Join, *, bias: bool = True) -> list[Rule]:
    """Queries, keys and values in one module.

    Args:
        theirs: its name.
        split: turns a tensor of it into those of queries, keys and values.
        join: the inverse.
        bias: whether it has one.
    """
    rules = [Rule(f"{theirs}.weight", _query_key_value("kernel"), split, join)]
    if bias:
        rules.append(Rule(f"{theirs}.bias", _query_key_value("bias"), split, join))
    return rules


def side_by_side(spec: DecoderSpec, theirs: str, ours: tuple[str, ...]) -> Rule:
    """The weight of a module that holds several projections, the outputs of one after those of another.

    Args:
        spec: the decoder.
        theirs: the module's name; its weight is stored as [out, in].
        ours: names of the projections (see `DecoderSpec.projections`).
    """
    sizes = spec.projections()
    split, join = one_after_another(tuple(sizes[name][1] for name in ours), 0, transposed=True)
    return Rule(f"{theirs}.weight", tuple(f"blocks.{name}.kernel" for name in ours), split, join)


def queries_and_gates(spec: DecoderSpec, theirs: str, ours: tuple[str, str]) -> list[Rule]:
    """A module that holds, head after head, queries and then the gates of what they attend to.

    Args:
        spec: the decoder.
        theirs: the module's name; its weight is stored as [out, in].
        ours: paths of the two projections.
    """
    N, H = spec.num_heads, spec.head_dim

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:  # [N * 2 * H, ...]
        parts = x.reshape(N, 2, H, *x.shape[1:])
        return tuple(parts[:, part].reshape(N * H, *x.shape[1:]).T for part in (0, 1))

    def join(*parts: np.ndarray) -> np.ndarray:
        stacked = np.stack([part.T.reshape(N, H, *part.T.shape[1:]) for part in parts], axis=1)
        return stacked.reshape(2 * N * H, *stacked.shape[3:])

    def rule(end: str, part: str) -> Rule:
        return Rule(f"{theirs}.{end}", tuple(f"{path}.{part}" for path in ours), split, join)

    return [rule("weight", "kernel"), *([rule("bias", "bias")] if spec.qkv_bias else [])]


def by_groups(theirs: str, ours: Mapping[str, int], groups: int) -> Rule:
    """The weight of a module that holds, group after group, the outputs of several projections.

    Args:
        theirs: the module's name; its weight is stored as [out, in].
        ours: path -> outputs of a group.
        groups: how many there are.
    """
    ends = np.cumsum(list(ours.values()))[:-1]

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = np.split(x.reshape(groups, -1, x.shape[1]), ends, axis=1)
        return tuple(part.reshape(-1, x.shape[1]).T for part in parts)

    def join(*parts: np.ndarray) -> np.ndarray:
        grouped = [part.T.reshape(groups, -1, part.shape[0]) for part in parts]
        return np.concatenate(grouped, axis=1).reshape(-1, parts[0].shape[0])

    return Rule(f"{theirs}.weight", tuple(ours), split, join)


def filters_of_channels(theirs: str, ours: tuple[str, ...], sizes: tuple[int, ...]) -> Rule:
    """A convolution of each channel alone, stored as [channels, 1, tokens], the token itself last.

    Ours are [tokens, channels], the token itself first.

    Args:
        theirs: the tensor's name.
        ours: paths of the filters, whose channels lie one after another.
        sizes: channels of each.
    """
    ends = np.cumsum(sizes)[:-1]

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(x[:, 0, ::-1].T, ends, axis=1))

    def join(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate(parts, axis=1).T[:, None, ::-1]

    return Rule(theirs, ours, split, join)


def _query_key_value(part: str) -> tuple[str, ...]:
    return tuple(f"blocks.attention.{name}.{part}" for name in ("query", "key", "value"))


def by_head(spec: DecoderSpec) -> tuple[Split, Join]:
    """(split, join) of rows that hold q, k and v of one head after the other, N x (q | k | v).

    A weight [3 D, D] becomes three kernels [D, D], a bias [3 D] three biases [D].

    Args:
        spec: the decoder.
    """
    N, H = spec.num_heads, spec.head_dim

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        features = x.shape[1:]
        parts = np.moveaxis(x.reshape(N, 3, H, *features), 1, 0)
        return tuple(part.reshape(N * H, *features).T for part in parts)

    def join(*parts: np.ndarray) -> np.ndarray:
        stacked = np.stack([part.T.reshape(N, H, *part.T.shape[1:]) for part in parts], axis=1)
        return stacked.reshape(3 * N * H, *stacked.shape[3:])

    return split, join


def one_after_another(sizes: tuple[int, ...], axis: int, *, transposed: bool) -> tuple[Split, Join]:
    """(split, join) of projections that lie one after another along an axis.

    Args:
        sizes: outputs of each.
        axis: of the Hugging Face tensor.
        transposed: whether it is stored as [out, in].
    """
    ends = np.cumsum(sizes)[:-1]

    def turned(x: np.ndarray) -> np.ndarray:
        return x.T if transposed else x

    def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(turned(part) for part in np.split(x, ends, axis=axis))

    def join(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([turned(part) for part in parts], axis=axis)

    return split, join
