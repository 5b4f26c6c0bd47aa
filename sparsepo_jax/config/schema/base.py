"""What all sections of the configuration stand on: the closed model, unions told apart by `kind`, and types
of numbers."""

import dataclasses
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema


def _no_truth_value(value: Any) -> Any:
    """Python takes True for 1; in a config (`steps: true`) it is a mistake."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


IsNumber = BeforeValidator(_no_truth_value)
Number = Annotated[float, IsNumber]
Positive = Annotated[int, Field(gt=0, lt=2**31), IsNumber]
Natural = Annotated[int, Field(ge=0, lt=2**31), IsNumber]
Share = Annotated[float, Field(ge=0, le=1), IsNumber]
NonNegative = Annotated[float, Field(ge=0), IsNumber]
PositiveFloat = Annotated[float, Field(gt=0), IsNumber]
Rate = Annotated[float, Field(ge=0, lt=1), IsNumber]
Megabytes = Annotated[int, Field(ge=64, lt=2**31), IsNumber]  # no program begins in less
LearningRate = Annotated[float, Field(ge=0, le=10), IsNumber]  # 5e7 is 5e-7, mistyped
# Written out: editors need no definition of JSON values.
Json = Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object", "additionalProperties": True})]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    own: ClassVar[tuple[str, ...]] = ()
    """Fields that other kinds have, too, but that do not follow when an override changes the kind to one that
    does not list them."""


@dataclasses.dataclass(frozen=True)
class ByKind:
    """Annotates a union of sections: `kind` tells them apart, and a mapping without `kind` means
    `default`."""

    default: str

    def kind_of(self, mapping: dict[Any, Any]) -> Any:
        return mapping.get("kind", self.default)

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        by_tag = handler.generate_schema(Annotated[union, Field(discriminator="kind")])
        return core_schema.no_info_before_validator_function(self._with_kind, by_tag)

    def _with_kind(self, value: Any) -> Any:
        return {**value, "kind": self.kind_of(value)} if isinstance(value, dict) else value


def members(union: Any) -> dict[str, type[Section]]:
    """The sections of a union annotated with ByKind, by their kind."""
    sections = get_args(get_args(union)[0])
    return {get_args(section.model_fields["kind"].annotation)[0]: section for section in sections}
