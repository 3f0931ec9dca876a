"""The keys of a recipe and their types (pydantic). What they mean together is decided in ``loading`` and ``checks``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
)

from .references import parse_dtype, parse_reference, parse_tokenizer
from .types import ModelRef, TokenizerSpec

_REFERENCE_SCHEMA = {"type": ["string", "object"], "description": "path[@revision][+lora[@revision]]"}

Reference = Annotated[ModelRef, PlainValidator(parse_reference), WithJsonSchema(_REFERENCE_SCHEMA)]

TokenizerSource = Annotated[TokenizerSpec, PlainValidator(parse_tokenizer), WithJsonSchema(_REFERENCE_SCHEMA)]

DType = Annotated[str, AfterValidator(parse_dtype)]

# Read by ``settings``: scalar, gradient list, {filter, value}, or a list of those.
ParameterTable = Annotated[dict[str, Any], BeforeValidator(lambda table: {} if table is None else table)]


def _refuse_empty(table: Any) -> Any:
    if table is None:
        raise ValueError("is empty; write {} to take the defaults, or delete the key")
    return table


# A change of merged deltas; keys and values are read like parameters.
BlockTable = Annotated[dict[str, Any] | None, BeforeValidator(_refuse_empty)]


class Keys(BaseModel):
    """A mapping of the recipe that has exactly these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_model(item: Any) -> Any:
    return {"model": item} if isinstance(item, str) else item


class ModelItem(Keys):
    """An input that takes part with all its layers."""

    model: Reference
    parameters: ParameterTable = {}


class SourceItem(Keys):
    """An input of a slice."""

    model: Reference
    layer_range: Annotated[list[StrictInt], Field(min_length=2, max_length=2)] | None = None
    parameters: ParameterTable = {}


class SliceItem(Keys):
    """A run of output layers."""

    sources: Annotated[list[Annotated[SourceItem, BeforeValidator(_as_model)]], Field(min_length=1)]
    base_model: Reference | None = None
    parameters: ParameterTable = {}
    lines: BlockTable = None
    boost: BlockTable = None
    residual_weight: Any = Field(None, description="accepted, without effect")


def _refuse_tokens(tokens: dict[str, Any] | None) -> None:
    if tokens:
        raise ValueError("sources of single tokens are not supported yet; delete tokens to take one tokenizer as it is")


def _refuse_padding(multiple: int | None) -> None:
    if multiple is not None:
        raise ValueError("padding the vocabulary is not supported yet; delete the key to keep the vocabulary's size")


class TokenizerItem(Keys):
    """The long form of ``tokenizer_source``."""

    source: TokenizerSource
    tokens: Annotated[dict[str, Any] | None, AfterValidator(_refuse_tokens)] = None
    pad_to_multiple_of: Annotated[int | None, AfterValidator(_refuse_padding)] = None


class RecipeFile(Keys):
    """A recipe."""

    merge_method: str
    models: list[Annotated[ModelItem, BeforeValidator(_as_model)]] | None = None
    slices: list[SliceItem] | None = None
    base_model: Reference | None = None
    parameters: ParameterTable = {}
    lines: BlockTable = Field(None, description="LiNeS: scales merged deltas by the depth of their layer")
    boost: BlockTable = Field(None, description="Subspace Boosting of merged deltas")
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerItem | None = None
    chat_template: str | None = None
    semantics: str | None = Field(None, description="the tool whose definition of the method is followed")
    seed: Annotated[StrictInt, Field(ge=0, lt=2**64)] | None = Field(None, description="seed of the random methods")
    name: Any = Field(None, description="accepted, without effect")


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe."""
    return RecipeFile.model_json_schema()
