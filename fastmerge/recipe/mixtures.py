"""Recipes of mixtures of experts that are built from dense models, as mergekit-moe has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from .document import Findings, KeyPath
from .document_schema import ConfigSource, DType, Keys, Names, Reference, Whole
from .faults import report
from .filters import NameFilter
from .names import did_you_mean
from .types import Branch, Module, Recipe, Setting, SliceSpec, SourceSpec

GateMode = Literal["hidden", "cheap_embed", "random", "uniform_random"]
"""Where the weights of routers come from: hidden states of prompts, embeddings of their tokens, or random numbers."""

_DOWN = NameFilter("regex", r"\.(w2|down_proj)\.")

Prompts = list[str]


class ExpertItem(Keys):
    """A dense model whose feed-forward blocks become one expert of every layer."""

    source_model: Reference
    positive_prompts: Prompts | None = Field(None, description="what the expert is for")
    negative_prompts: Prompts | None = Field(None, description="what it is not for")
    residual_scale: float | None = Field(None, description="factor of what the expert adds: of its down projection")
    noise_scale: Annotated[float, Field(ge=0)] | None = Field(None, description="deviation of noise that is added")


class MixtureFile(Keys):
    """A recipe of mergekit-moe."""

    base_model: Reference
    experts: Annotated[list[ExpertItem], Field(min_length=1)]
    shared_experts: list[ExpertItem] | None = None
    gate_mode: GateMode = "hidden"
    experts_per_token: Annotated[Whole, Field(ge=1)] = 2
    architecture: str | None = Field(None, description="mixtral, deepseek, qwen or qwen3; else by the base")
    dtype: DType | None = None
    seed: Annotated[Whole, Field(ge=0, lt=2**64)] | None = None
    names: Names = None
    config_source: ConfigSource = None
    name: Any = None


@dataclass(frozen=True)
class Expert:
    """What a recipe says of an expert beside its model.

    Attributes:
        positive, negative: prompts that the router sends to it, and keeps from it.
        noise: standard deviation of the noise that is added to its weights.
        where: place in the recipe.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    noise: float
    where: str


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts. The slices of its recipe are the base, the experts, and the shared ones, in this order.

    Attributes:
        architecture: as the recipe names it; None takes what fits the base.
        gate_mode:    where the weights of routers come from.
        per_token:    experts that work on a token.
        experts, shared: at least one; those that work on every token.
    """

    architecture: str | None
    gate_mode: GateMode
    per_token: int
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...]


def is_mixture(data: Mapping[str, Any]) -> bool:
    """True for the keys of a recipe of mergekit-moe."""
    return "experts" in data


def load_mixture(findings: Findings, data: Mapping[str, Any], card: Mapping[str, Any]) -> Recipe:
    """Make a recipe of the keys of a document; what is wrong or has no effect is added to ``findings``."""
    file = _validated(findings, data)
    findings.stop()
    assert file is not None
    document = findings.document
    shared = file.shared_experts or []
    sources = [
        SourceSpec(file.base_model, where=document.where(("base_model",))),
        *(_source(findings, ("experts", i), item) for i, item in enumerate(file.experts)),
        *(_source(findings, ("shared_experts", i), item) for i, item in enumerate(shared)),
    ]
    slices = tuple(SliceSpec((source,), where=source.where) for source in sources)
    mixture = Mixture(
        file.architecture,
        file.gate_mode,
        file.experts_per_token,
        tuple(_expert(findings, ("experts", i), item) for i, item in enumerate(file.experts)),
        tuple(_expert(findings, ("shared_experts", i), item) for i, item in enumerate(shared)),
    )
    _check(findings, mixture)
    return Recipe(
        path=document.name,
        text=document.text,
        method="passthrough",
        modules=(Module("", (), slices),),
        name=file.name if isinstance(file.name, str) else "",
        dtype=file.dtype,
        names=file.names,
        config_source=file.config_source,
        seed=file.seed or 0,
        card=card,
        mixture=mixture,
        document=document,
    )


def _validated(findings: Findings, data: Mapping[str, Any]) -> MixtureFile | None:
    known = {key: value for key, value in data.items() if key in MixtureFile.model_fields}
    for key in data.keys() - known.keys():
        if key == "merge_method" and data[key] != "moe":
            what = "a recipe with experts: builds a mixture of them, by no merge method"
            findings.problem((key,), what, "delete it, or write models: in place of experts:")
        else:
            _unknown(findings, (key,), MixtureFile)
    for name in ("experts", "shared_experts"):
        items = data.get(name)
        if isinstance(items, list) and all(isinstance(item, dict) for item in items):
            for i, item in enumerate(items):
                for key in item.keys() - ExpertItem.model_fields.keys():
                    _unknown(findings, (name, i, str(key)), ExpertItem)
            known[name] = [{k: v for k, v in item.items() if k in ExpertItem.model_fields} for item in items]
    try:
        return MixtureFile.model_validate(known)
    except ValidationError as error:
        for fault in error.errors():
            report(findings, fault)
        return None


def _unknown(findings: Findings, path: KeyPath, level: type[Keys]) -> None:
    name = str(path[-1])
    if name.startswith("x-"):
        return
    if close := did_you_mean(name, level.model_fields):
        findings.problem(path, "unknown key", close)
    else:
        findings.note(path, "is no key of a mixture of experts; it has no effect")


def _source(findings: Findings, path: KeyPath, item: ExpertItem) -> SourceSpec:
    where = findings.document.where(path)
    if item.residual_scale is None:
        return SourceSpec(item.source_model, where=where)
    place = findings.document.where((*path, "residual_scale"))
    setting = Setting((Branch(item.residual_scale, _DOWN, place),), place)
    return SourceSpec(item.source_model, None, {"scale": setting}, where)


def _expert(findings: Findings, path: KeyPath, item: ExpertItem) -> Expert:
    positive, negative = tuple(item.positive_prompts or ()), tuple(item.negative_prompts or ())
    return Expert(positive, negative, item.noise_scale or 0.0, findings.document.where(path))


def _check(findings: Findings, mixture: Mixture) -> None:
    if len(mixture.experts) < mixture.per_token:
        what = f"is {mixture.per_token}, but there are {len(mixture.experts)} experts"
        findings.problem(("experts_per_token",), what, "list more experts, or choose fewer per token")
    asks = mixture.gate_mode in ("hidden", "cheap_embed")
    for i in [i for i, expert in enumerate(mixture.experts) if asks and not expert.positive]:
        what = f"has no positive_prompts, of which gate_mode {mixture.gate_mode} makes its router"
        findings.problem(("experts", i), what, "write some, or gate_mode: random for a model that will be trained")
    if not asks and any(expert.positive or expert.negative for expert in (*mixture.experts, *mixture.shared)):
        findings.note(("gate_mode",), f"is {mixture.gate_mode}, so prompts have no effect")
