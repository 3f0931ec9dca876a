"""The keys of a recipe and their types (pydantic). What they mean together is decided in ``loading`` and ``checks``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from ..checkpoint.distributed.tables import NameTable, table_of
from .references import parse_dtype, parse_reference, parse_revision, parse_tensor_source, parse_tokenizer
from .types import ModelRef

_REFERENCE_SCHEMA = {"type": ["string", "object"], "description": "path[@revision][+lora[@revision]]"}

Reference = Annotated[ModelRef, PlainValidator(parse_reference), WithJsonSchema(_REFERENCE_SCHEMA)]

TokenizerSource = Annotated[
    ModelRef | str,
    PlainValidator(parse_tokenizer),
    WithJsonSchema({"type": ["string", "object"], "description": "union, base, or a model of the recipe"}),
]

DType = Annotated[str, AfterValidator(parse_dtype)]

Revision = Annotated[str, BeforeValidator(parse_revision)]

TrainerNames = Annotated[
    NameTable,
    PlainValidator(table_of),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"]}}),
]


def _whole(value: Any) -> Any:
    """Let whole numbers be written as text or with a point, as mergekit does."""
    if isinstance(value, bool):
        raise ValueError(f"is {value!r}, expected a whole number")
    if isinstance(value, str | float):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


Whole = Annotated[int, BeforeValidator(_whole)]

# Read by ``settings``: scalar, gradient list, {filter, value}, or a list of those.
ParameterTable = Annotated[dict[str, Any], BeforeValidator(lambda table: {} if table is None else table)]


def _refuse_empty(table: Any) -> Any:
    if table is None:
        raise ValueError("is empty; write {} to take the defaults, or delete the key")
    return table


# A change of merged deltas; keys and values are read like parameters.
BlockTable = Annotated[dict[str, Any] | None, BeforeValidator(_refuse_empty)]


def _parts_of_names(value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError(f"is {value!r}, expected true, false, or a list of parts of tensor names")


Names = Annotated[
    TrainerNames | None,
    Field(
        description="of checkpoints of training: the trainer's names of tensors: the hub's; null leaves one out",
    ),
]
ConfigSource = Annotated[
    str | None, Field(description="folder with config.json and tokenizer of checkpoints of training that have none")
]

PartsOfNames = Annotated[
    bool | tuple[str, ...],
    PlainValidator(_parts_of_names),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Keys(BaseModel):
    """A mapping of the recipe that has exactly these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _as_model(item: Any) -> Any:
    return {"model": item} if isinstance(item, str) else item


class ModelItem(Keys):
    """An input that takes part with all its layers."""

    model: Reference
    revision: Revision | None = Field(None, description="as in model: path@revision")
    lora: Reference | None = Field(None, description="as in model: path+lora")
    parameters: ParameterTable = {}


class SourceItem(ModelItem):
    """An input of a slice."""

    layer_range: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[first, end]: the end is not included"
    )


class SliceItem(Keys):
    """A run of output layers."""

    sources: Annotated[list[Annotated[SourceItem, BeforeValidator(_as_model)]], Field(min_length=1)]
    base_model: Reference | None = None
    parameters: ParameterTable = {}
    lines: BlockTable = None
    svc: BlockTable = None
    boost: BlockTable = None
    merge_method: str | None = Field(None, description="its own method; mergekit takes the recipe's")
    residual_weight: Any = Field(None, description="accepted, without effect")


class Filtered(Keys):
    """Something for the tensors that match."""

    filter: str | None = Field(None, description="a part of the name")
    glob: str | None = Field(None, description="a pattern for the whole name; * goes over dots")
    regex: str | None = Field(None, description="a regular expression that is searched in the name")


Models = list[Annotated[ModelItem, BeforeValidator(_as_model)]]

Missing = Annotated[Literal["base", "merge", "drop", "error"], Field(description="tensors that some models lack")]


class ModuleItem(Filtered):
    """A part of a model with its own models or slices."""

    models: Models | None = None
    slices: list[SliceItem] | None = None
    parameters: ParameterTable = {}


class RuleItem(Filtered):
    """How some tensors are merged in another way."""

    merge_method: str | None = None
    models: Models | None = None
    source: Annotated[
        ModelRef | str | None,
        PlainValidator(parse_tensor_source),
        WithJsonSchema({"type": ["string", "object"], "description": "base or a model: its tensors as they are"}),
    ] = None
    missing: Missing | None = None
    parameters: ParameterTable = {}


class TokenItem(Keys):
    """Where the embedding of one token comes from."""

    source: Any = Field(None, description="a model, {kind: zero} or {kind: model_token, model, token or token_id}")
    force: bool = Field(False, description="also in models that know the token")


class TokenizerItem(Keys):
    """The long form of ``tokenizer_source``."""

    source: TokenizerSource = "union"
    tokens: dict[str, TokenItem] | None = None
    pad_to_multiple_of: Annotated[Whole, Field(ge=1)] | None = None


class RecipeFile(Keys):
    """A recipe."""

    merge_method: str
    models: Models | None = None
    slices: list[SliceItem] | None = None
    modules: dict[str, ModuleItem] | None = Field(None, description="parts of a model by name")
    base_model: Reference | None = None
    parameters: ParameterTable = {}
    rules: list[RuleItem] | None = Field(None, description="exceptions for single tensors; the first match counts")
    missing: Missing = "base"
    integers: Annotated[
        Literal["equal", "first", "last"],
        Field(description="integer and bool tensors: equal in all inputs, or those of the first or last one"),
    ] = "equal"
    lines: BlockTable = Field(None, description="LiNeS: scales merged deltas by the depth of their layer")
    svc: BlockTable = Field(None, description="singular value calibration of merged deltas")
    boost: BlockTable = Field(None, description="Subspace Boosting of merged deltas")
    dtype: DType | None = None
    out_dtype: DType | None = None
    keep_float32: PartsOfNames = Field(
        False, description="parts of names of tensors that stay float32 in spite of dtype; true for all that are"
    )
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerItem | None = None
    chat_template: str | None = None
    semantics: str | None = Field(None, description="the tool whose definition of the method is followed")
    seed: Annotated[Whole, Field(ge=0, lt=2**64)] | None = Field(None, description="seed of the random methods")
    names: Names = None
    config_source: ConfigSource = None
    name: Any = Field(None, description="how later documents of the file call the result; the title of its card")


CARD_KEYS = (
    "author", "authors", "comment", "datasets", "description", "language", "license", "licence", "model_name", "notes",
    "pipeline_tag", "tags", "title", "version",
)  # fmt: skip
"""Keys of the top level that say something about the result, and nothing about the merge."""
