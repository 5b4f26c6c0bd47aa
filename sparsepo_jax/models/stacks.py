"""In which stack a layer's weights lie, where blocks differ in shape. No JAX here.

Layers run one after another, as the config orders them. Where the order repeats, a scan runs over the
repetitions, and its body holds the blocks of one of them. Each place in that body has a stack of its own,
named after the first layer in it, so that a scan reads whole arrays and writes whole gradients:

    kinds of the layers     0 0 1 0 0 1 0
    scans                   (0 0 1) twice, then (0) once
    stacks                  layers_0 [0, 3]    layers_1 [1, 4]    layers_2 [2, 5]    layers_6 [6]

Paths of weights depend on this order, so that a change here would make older checkpoints unreadable.
"""

import functools
from typing import NamedTuple

LONGEST = 16  # layers in a scan's body


class Stack(NamedTuple):
    """Layers of one kind at one place of a scan's body.

    Attributes:
        path: the beginning of the paths of their weights.
        layers: their numbers, in order.
        kind: number of their kind; None: the only stack, whose layers have one shape but may differ else.
    """

    path: str
    layers: range
    kind: int | None


Scan = tuple[Stack, ...]  # run one after another, again and again; all have the same number of layers


def one_scan(layers: int) -> tuple[Scan, ...]:
    """That of a decoder whose blocks have one shape.

    Args:
        layers: how many.
    """
    return ((Stack("blocks", range(layers), None),),)


@functools.cache
def scans_of(kind_of_layer: tuple[int, ...]) -> tuple[Scan, ...]:
    """The scans that run layers of several shapes in order, with as few blocks in their bodies as can be.

    Args:
        kind_of_layer: the number of each layer's kind.
    """
    scans, first = [], 0
    for width, times in _bodies(kind_of_layer):
        end = first + width * times
        scans.append(
            tuple(
                Stack(f"blocks.layers_{layer}", range(layer, end, width), kind_of_layer[layer])
                for layer in range(first, first + width)
            )
        )
        first = end
    return tuple(scans)


def _bodies(kinds: tuple[int, ...]) -> list[tuple[int, int]]:
    """(layers in its body, times that it runs) of each scan."""
    end = len(kinds)
    # Of the layers from each one on: the cost of running them, and their first scan. A scan costs its blocks
    # and one more.
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * (end + 1)
    repeats = [0] * (LONGEST + 1)  # by width: how many layers from here on are like the one so much later
    for first in reversed(range(end)):
        choices = []
        for width in range(1, min(LONGEST, end - first) + 1):
            alike = first + width < end and kinds[first] == kinds[first + width]
            repeats[width] = repeats[width] + 1 if alike else 0
            times = 1 + repeats[width] // width
            choices.append((width + 1 + best[first + width * times][0], width, times))
        best[first] = min(choices)
    bodies, first = [], 0
    while first < end:
        _, width, times = best[first]
        bodies.append((width, times))
        first += width * times
    return bodies


@functools.cache
def places_of(scans: tuple[Scan, ...]) -> dict[int, tuple[Stack, int]]:
    """Of each layer its stack, and its place in it.

    Args:
        scans: of the decoder.
    """
    return {
        layer: (stack, place) for scan in scans for stack in scan for place, layer in enumerate(stack.layers)
    }
