"""The type checker that jaxtyping's import hook applies to the package in tests.

beartype looks at arguments and results. It does not look into NamedTuples, which carry most of our arrays
(TokenStats, PairBatch, Places, ...), so their fields are checked here as well. All arrays of one call share
one table of sizes: T of a batch and T of a mask must be the same number.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jaxtyping import AbstractArray

ROOMS = ("core", "losses", "masks", "ops", "models", "train", "sharding")
# The tower: an int is a float as far as annotations go, as PEP 484 says and mypy believes.
_CONF = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable) -> Callable:
    """The function with its annotations checked at each call; as it is if it has none."""
    hints = {name: hint for name, hint in function.__annotations__.items() if hint is not Any}
    if not hints:
        return function
    on_types = beartype(conf=_CONF)(function)
    of_tuples = {name: hint for name, hint in hints.items() if _named_tuples(hint)}
    if not of_tuples:
        return on_types
    result_hint = of_tuples.pop("return", None)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def on_fields(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        result = on_types(*args, **kwargs)
        for name, hint in of_tuples.items():
            _check(arguments.get(name), hint, name)
        if result_hint is not None:
            _check(result, result_hint, "result")
        return result

    return on_fields


@functools.cache
def _named_tuples(hint: Any) -> tuple[type, ...]:
    """The NamedTuples of ours that a value of this type can be or, in a tuple of known length, hold.

    An Annotated type counts as something else, which is how a batch with a leading axis of micro-steps says
    so.
    """
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return (hint,) if hint.__module__.startswith("sparsepo_jax.") else ()
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return tuple(found for inner in typing.get_args(hint) for found in _named_tuples(inner))
    return ()


@functools.cache
def _fields(named_tuple: type) -> dict[str, Any]:
    return typing.get_type_hints(named_tuple, include_extras=True)


@functools.cache
def _is_shaped(hint: Any) -> bool:
    """Whether a type speaks of an array's shape; only such fields are checked."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_is_shaped(inner) for inner in typing.get_args(hint) if inner.__hash__ is not None)


def _check(value: Any, hint: Any, name: str) -> None:
    """TypeError: a field of a NamedTuple in the value is not what its annotation says."""
    if typing.get_origin(hint) is tuple:
        for number, (inner, inner_hint) in enumerate(zip(value, typing.get_args(hint), strict=False)):
            _check(inner, inner_hint, f"{name}[{number}]")
    elif type(value) in _named_tuples(hint):
        for field, field_hint in _fields(type(value)).items():
            inner = getattr(value, field)
            if _is_shaped(field_hint) and not is_bearable(inner, field_hint, conf=_CONF):
                raise TypeError(f"{name}.{field} is {_described(inner)}, which is not {field_hint}")
            _check(inner, field_hint, f"{name}.{field}")


def _described(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else repr(value)
