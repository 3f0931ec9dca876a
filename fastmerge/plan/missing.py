"""Tensors that some models lack: the base's, merged from those that have them, left out, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import Problem
from ..steps.inputs import Inputs
from .findings import Findings, listed
from .models import OpenModel, is_head
from .slices import Members
from .types import InputTensor


@dataclass
class Missing:
    """Decides what becomes of tensors that some models lack, and says so, once per model."""

    findings: Findings
    dropped: dict[tuple[int, str], str]
    _known: dict[tuple[int, tuple[bool, ...]], Members | None] = field(default_factory=dict)
    _names: dict[tuple[str, int, int], list[str]] = field(default_factory=dict)
    _models: dict[int, OpenModel] = field(default_factory=dict)

    def settle(
        self, name: str, members: Members, tensors: Sequence[InputTensor | None]
    ) -> tuple[Members, Inputs[InputTensor]] | None:
        """Return what ``name`` is merged from, of ``tensors`` in the members' order; None where it is left out."""
        models = members.models.every
        present = tuple(tensor is not None for tensor in tensors)
        policy = members.part.missing
        absent = next(model for model, there in zip(models, present, strict=True) if not there)
        having = next((model for model, there in zip(models, present, strict=True) if there), None)
        if having is None:
            self._report_rule(name, members)
            return None
        self._models |= {model.index: model for model in models}
        if policy == "error" or (is_head(name) and absent.says_tied is False):
            self._note("error", having, absent, name)
            return None
        if policy == "drop":
            self._drop(tensors, f"{absent} does not have it, and the recipe says missing: drop")
            self._note("drop", having, absent, name)
            return None
        if policy == "base" and not present[0]:
            self._drop(tensors, f"{models[0]} does not have it")
            self._note("extra", having, absent, name)
            return None
        key = (id(members), present)
        if key not in self._known:
            self._known[key] = self._reduced(members, present, policy)
        reduced = self._known[key]
        if reduced is None:
            what = f"{name}: {members.part.method.name} cannot merge it without {absent}, which lacks it"
            self.findings.problem(members.part.where, what, "write missing: base, or a rule for it")
            return None
        self._note(policy, having, absent, name)
        kept = tensors[:1] if policy == "base" else [tensor for tensor in tensors if tensor is not None]
        return reduced, reduced.models.like([tensor for tensor in kept if tensor is not None])

    def _report_rule(self, name: str, members: Members) -> None:
        """Refuse a rule that takes a tensor from models which do not have it."""
        if members.part.by_rule:
            what = f"{name} is taken from {listed([str(model) for model in members.models.every])}: it is not there"
            self.findings.problem(members.part.where, what, "let the rule match fewer tensors, or name another model")

    def report(self) -> None:
        """Add what was decided to the findings."""
        for (policy, first, second), names in self._names.items():
            having, absent = self._models[first], self._models[second]
            some = f"{len(names)} tensors of {having} are not in {absent}: {listed(names)}"
            if policy == "error":
                self.findings.problems.append(Problem(absent.checkpoint.folder, *_refusal(having, names)))
            else:
                self.findings.note(f"{some}; {_OUTCOMES[policy]}")

    def _note(self, policy: str, having: OpenModel, absent: OpenModel, name: str) -> None:
        self._names.setdefault((policy, having.index, absent.index), []).append(name)

    def _drop(self, tensors: Sequence[InputTensor | None], reason: str) -> None:
        for tensor in tensors:
            if tensor is not None:
                self.dropped[tensor.model, tensor.name] = reason

    def _reduced(self, members: Members, present: tuple[bool, ...], policy: str) -> Members | None:
        """Return the members that merge what is there; None where the method cannot."""
        part, models = members.part, members.models
        if policy == "base":
            return Members(part.copying(part.inputs.every[0]), Inputs(None, models.every[:1]))
        sources = [s for s, there in zip(part.inputs.every, present, strict=True) if there]
        opened = [m for m, there in zip(models.every, present, strict=True) if there]
        if len(sources) == 1:
            return Members(part.copying(sources[0]), Inputs(None, (opened[0],)))
        if part.inputs.base is None:
            reduced = members.only(Inputs(None, tuple(sources)), Inputs(None, tuple(opened)))
        elif present[0]:
            reduced = members.only(Inputs(sources[0], tuple(sources[1:])), Inputs(opened[0], tuple(opened[1:])))
        else:
            return None
        return reduced if len(reduced.models.tensors) >= part.method.inputs[0] else None


_OUTCOMES = {
    "base": "they are copied as they are",
    "merge": "they are merged from the models that have them",
    "drop": "they are left out",
    "extra": "they are left out, because the result has the tensors of the base (or of the first model)",
}


def _refusal(having: OpenModel, names: Sequence[str]) -> tuple[str, str]:
    what = f"{len(names)} tensors of {having} are missing: {listed(sorted(names))}"
    if any(is_head(name) for name in names):
        return what, "its config says that the head is not tied to the embedding: the checkpoint is incomplete"
    return what, "merge models of one architecture, or say what becomes of them with missing:"
