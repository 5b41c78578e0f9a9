"""An entry of `measures` in benchmark files."""

from typing import Annotated, Any, Self

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from omnitune.config.base import PathText, Section
from omnitune.config.choices import MEASURES, OneOf

NAMED = [name for name, entry in MEASURES.items() if entry.function]  # those that a benchmark can name


class MeasureEntry(Section):
    """A measure of a benchmark: its name alone, or with the model that it needs."""

    name: Annotated[Annotated[str, OneOf(NAMED)], Field(description="Which measure.")]
    model: Annotated[
        PathText | None,
        Field(
            min_length=1,
            description="Of clip, siglip, dino, preference, aesthetic, fid and kid: folder of a model in the layout of "
            "transformers, or id on the hub. Where there is none, the report says so in place of a figure.",
        ),
    ] = None
    label: Annotated[
        str | None,
        Field(
            min_length=1,
            exclude_if=lambda label: label is None,  # so that entries without one are what they were
            description="Of aesthetic: the label of the model whose probability is the figure. null: the model has "
            "one output, which is the figure.",
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_the_model_that_it_needs(self) -> Self:
        needed = MEASURES[self.name].model is not None
        if needed != (self.model is not None):
            wanted = f"{{name: {self.name}, model: FOLDER}}" if needed else self.name
            raise ValueError(
                f"model: {self.name} {'needs' if needed else 'takes'} {'one' if needed else 'none'}; write {wanted}"
            )
        if self.label is not None and not MEASURES[self.name].has_label:
            raise ValueError(f"label: {self.name} takes none; take it out")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": [name for name in NAMED if MEASURES[name].model is None]}, handler(schema)]}
