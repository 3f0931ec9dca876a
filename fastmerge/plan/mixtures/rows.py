"""The rows of a mixture of experts: attention, norms and embeddings of the base, feed-forward blocks of the experts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...methods import get_method
from ...recipe.mixtures import Expert, Mixture
from ...recipe.parts import Part, parts_of
from ...recipe.types import Branch, ModelRef, Recipe, Setting, SourceSpec
from ...steps.inputs import Inputs
from ..findings import Findings, listed
from ..models import OpenModel, is_computed
from ..rows import Row, Rows
from ..slices import Members
from ..types import InputTensor, Made
from .families import Family, Shape, family_of
from .routers import Given, Routers

_DENSE = re.compile(r"(.*\blayers\.(\d+)\.)mlp\.(gate|up|down)_proj\.weight")
_BIAS = re.compile(r".*\blayers\.\d+\.(mlp|self_attn)\..*\.bias")


def pair_mixture(recipe: Recipe, models: Mapping[ModelRef, OpenModel], given: Given | None, findings: Findings) -> Rows:
    """Return the rows of a mixture. ``given`` are router weights that need not be made; see ``Routers``."""
    assert recipe.mixture is not None
    found = Rows(findings)
    opened = [models[slice_.sources[0].model] for slice_ in recipe.slices]
    family = family_of(recipe, recipe.mixture, opened[0], findings)
    if family is not None:
        _Builder(recipe, recipe.mixture, family, opened, given, found).build()
    return found


@dataclass
class _Builder:
    recipe: Recipe
    mixture: Mixture
    family: Family
    models: list[OpenModel]
    given: Given | None
    found: Rows
    parts: list[Part] = field(init=False)

    def __post_init__(self) -> None:
        (module,) = self.recipe.modules
        self.parts = [parts_of(self.recipe, module, slice_).default for slice_ in module.slices]

    def build(self) -> None:
        base = self.models[0]
        dense = {name: match for name in base.tensors if (match := _DENSE.fullmatch(name))}
        if not any(match[3] == "gate" for match in dense.values()):
            what = "has no feed-forward blocks like model.layers.0.mlp.gate_proj.weight"
            self.found.findings.problem(base.checkpoint.folder, what, "use dense models")
            return
        if not self._fit(base, dense):
            return
        routers = Routers(self.recipe, self.mixture, self.family, base, self.given, self.found.findings)
        gate = next(tensor for name, tensor in base.tensors.items() if name in dense and dense[name][3] == "gate")
        columns, layers = gate.shape[1], set[str]()
        for name, tensor in base.tensors.items():
            match = dense.get(name)
            if is_computed(tensor):
                self.found.dropped[base.index, name] = "a buffer that is computed from the config"
            elif match is None:
                self.found.rows.append(Row(name, 0.0, *self._one(0, tensor)))
            else:
                if match[1] not in layers:
                    layers.add(match[1])
                    for made in routers.of_layer(match[1], int(match[2]), columns):
                        self.found.rows.append(Row(made.name, 0.0, *self._one(0, made)))
                self._experts(name, match)
                self.found.dropped[base.index, name] = "the experts stand in its place"
        widths = [model.tensors[gate.name].shape[0] for model in (self.models[1], self.models[-1])]
        self.found.mixture = Shape(self.family, self.mixture, *widths)

    def _fit(self, base: OpenModel, dense: Mapping[str, re.Match]) -> bool:
        """Check that every expert has the feed-forward blocks and the vocabulary of the base."""
        findings, before = self.found.findings, len(self.found.findings.problems)
        biases = [name for name in base.tensors if (match := _BIAS.fullmatch(name))
                  and (match[1] == "mlp" or not self.family.attention_bias)]  # fmt: skip
        if biases:
            what = f"has biases, which {self.family.name} has no place for: {listed(biases, 3)}"
            findings.problem(base.checkpoint.folder, what, "choose another base or architecture")
        for model in {model.index: model for model in self.models[1:]}.values():
            missing = [name for name in dense if name not in model.tensors]
            if missing:
                what = f"{len(missing)} tensors of the base {base} are missing: {listed(missing, 3)}"
                findings.problem(model.checkpoint.folder, what, "use fine-tunes of one dense model")
                continue
            routed = {m.index for m in self.models[1 : 1 + len(self.mixture.experts)]}
            wrong = [n for n in dense if model.index in routed and model.tensors[n].shape != base.tensors[n].shape]
            if wrong:
                here, there = (list(m.tensors[wrong[0]].shape) for m in (model, base))
                what = f"shape {here}, but {there} in the base {base}"
                findings.problem(f"{model.checkpoint.folder}: {wrong[0]}", what, "use models of one size")
            one, other = model.embedding, base.embedding
            if one is not None and other is not None and one.shape[0] != other.shape[0]:
                what = f"the vocabulary has {one.shape[0]} rows, that of the base {base} has {other.shape[0]}"
                findings.problem(f"{model.checkpoint.folder}: {one.name}", what, "use models of one vocabulary")
        return len(findings.problems) == before

    def _one(self, index: int, tensor: InputTensor) -> tuple[Members, Inputs[InputTensor]]:
        return Members(self.parts[index], Inputs(None, (self.models[index],))), Inputs(None, (tensor,))

    def _experts(self, name: str, match: re.Match) -> None:
        """Add the rows of one projection of all experts of a layer."""
        routed = len(self.mixture.experts)
        projection = self.family.projections[match[3]]
        for i, expert in enumerate((*self.mixture.experts, *self.mixture.shared)):
            pattern = self.family.experts if i < routed else self.family.shared
            own = match[1] + pattern.format(expert=i, projection=projection)
            self._expert(own, i + 1, expert, self.models[i + 1].tensors[name])

    def _expert(self, name: str, index: int, expert: Expert, tensor: InputTensor) -> None:
        members, inputs = self._one(index, tensor)
        if expert.noise:
            made = Made("normal", name=name, seed=self.recipe.seed)
            noise = replace(
                tensor, path=f"noise of {name}", offset=0, nbytes=tensor.numel * tensor.value_dtype.itemsize,
                dtype=tensor.value_dtype, coded=None, adapters=(), rounded=None, made=made,
            )  # fmt: skip
            members, inputs = _noisy(members, expert), Inputs(None, (tensor, noise))
        self.found.rows.append(Row(name, 0.0, members, inputs))


def _noisy(members: Members, expert: Expert) -> Members:
    """Return the members of ``scale * (weight + noise)``: a weighted sum of a tensor and of random numbers."""
    (source,), (model,) = members.part.inputs.tensors, members.models.tensors
    branches = source.parameters["scale"].branches if "scale" in source.parameters else ()
    scales = (*branches, Branch(1.0, None, source.where))
    noises = tuple(replace(branch, value=expert.noise * float(branch.value)) for branch in scales)  # type: ignore[arg-type]
    sources = (
        replace(source, parameters={"weight": Setting(scales, source.where)}),
        SourceSpec(source.model, None, {"weight": Setting(noises, expert.where)}, expert.where),
    )
    method = get_method("linear")
    unscaled = {"normalize": Setting((Branch(False, None, expert.where),), expert.where)}
    part = replace(
        members.part, method=method, inputs=Inputs(None, sources), weaker=(unscaled,), semantics=method.semantics[0]
    )
    return Members(part, Inputs(None, (model, model)))
