"""Values of a config's fields, as the readers of several families need them. No JAX here."""

from typing import Any

from sparsepo_jax.models.config_fields import SpecError, shown
from sparsepo_jax.models.decoder_spec import Activation

FamilyFields = dict[str, Any]  # the fields that a family reads, under the family's names

# Several names for one function: they differ in how it is computed.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


def activation_of(config: FamilyFields, family: str, key: str, default: str) -> Activation:
    """The activation function that a field names.

    Args:
        config: the fields that the family reads.
        family: its `model_type`.
        key: the field.
        default: its value where it is absent.

    Raises:
        SpecError: we do not have that function.
    """
    name = config.get(key, default)
    if name not in _ACTIVATIONS:
        raise SpecError(
            f"{family}: {key}: unknown activation {shown(name)}; known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def refuse_unless(config: FamilyFields, family: str, key: str, only: int) -> None:
    """Refuses a field that is there and holds anything but what follows from the others.

    Args:
        config: the fields that the family reads.
        family: its `model_type`.
        key: the field.
        only: the value that it may have.

    Raises:
        SpecError: it has another one.
    """
    if config.get(key) is not None and config[key] != only:
        raise SpecError(f"{family}: {key}: {shown(config[key])} is not supported, only {only!r}")


def head_dim_of(family: str, width: int, heads: int) -> int:
    """Dims of a head where no field says them.

    Args:
        family: the `model_type`.
        width: features of the residual stream.
        heads: query heads.

    Raises:
        SpecError: the heads do not divide the width.
    """
    if width % heads:
        raise SpecError(f"{family}: the width {width} is no multiple of the {heads} heads")
    return width // heads


def flag(config: FamilyFields, key: str, default: bool = False) -> bool:
    """Whether a field is true.

    Args:
        config: the fields that the family reads.
        key: the field.
        default: its value where it is absent.
    """
    return bool(config.get(key, default))
