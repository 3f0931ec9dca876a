"""What an analysis finds and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..results import Result, counted
from .experts import Choice
from .family import Family
from .matrices import Directions, Ranks, Spectra
from .measures import Measure
from .theorem import Collapse


@dataclass
class Analysis:
    """What was found.

    Attributes:
        family:     the models; None for the demonstration of the theorem alone.
        beta:       of the boosted spectra.
        measures:   by tensor.
        ranks:      by matrix.
        spectra:    of the chosen matrices.
        directions: of the matrices of some layers; empty without HO-GSVD.
        choice:     the models that have least in common; None where none were to be chosen.
        theorem:    the demonstration; None without it.
    """

    family: Family | None = None
    beta: float = 0.2
    measures: dict[str, Measure] = field(default_factory=dict)
    ranks: dict[str, Ranks] = field(default_factory=dict)
    spectra: list[Spectra] = field(default_factory=list)
    directions: list[Directions] = field(default_factory=list)
    choice: Choice | None = None
    theorem: Collapse | None = None


@dataclass(frozen=True, repr=False)
class AnalysisReport(Result):
    """Attributes:
    folder:  of the report.
    files:   in it.
    summary: the most important numbers, as plain values.
    notes:   what the user should know, one sentence each.
    """

    folder: str
    files: tuple[str, ...]
    summary: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def page(self) -> str:
        """Path of the page."""
        return f"{self.folder}/report.html"

    @property
    def recipe(self) -> str:
        """Path of the recipe to try first."""
        return f"{self.folder}/recipe.yml"

    def __str__(self) -> str:
        models = self.summary.get("models", ())
        return f"analysis of {counted(len(models), 'model')}: {self.page}, {counted(len(self.files), 'file')}"

    @property
    def advice(self) -> str:
        """What to try first, and why; empty without models."""
        return self.summary.get("advice", {}).get("first", "")

    def facts(self) -> list[tuple[str, str]]:
        what = self.advice.removeprefix("Try first: ")
        first = [("try first", f"{what} The recipe is in {self.recipe}.")] if what else []
        return first + [
            (model["label"], f"{100 * model['relative_norm']:.3g} % of the base's norm away from it, "
             f"{100 * model['density']:.3g} % of the elements changed")
            for model in self.summary.get("models", ())
        ]  # fmt: skip
