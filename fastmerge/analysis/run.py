"""The driver of an analysis: a pass over all tensors on every core, a few matrices whole, then the report."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

from ..arguments import several, size_of
from ..engine.folders import appearing, free_target
from ..engine.reading import DeltaReader, reading_bytes
from ..errors import BudgetError, InvalidInput, Problem
from ..progress import Progress, ProgressLike, of_bytes, shown
from ..recipe.writing import Table, of_training
from ..sizes import DEFAULT_RAM
from .experts import choose, mean_alignment
from .family import Family, Matched, open_family
from .journal import Journal, journal_of
from .matrices import directions, directions_bytes, spectra, spectra_bytes
from .report import write_report
from .spreading import workers_within
from .surveying import delta_nbytes, nbytes_of_survey, needs_of, survey
from .theorem import rank_collapse
from .types import Analysis, AnalysisReport

__all__ = ["analyze"]

_log = logging.getLogger(__name__)

# Layers in which directions are compared: each matrix costs an eigendecomposition in float64.
SAMPLED_LAYERS = 4


def analyze(
    models: Sequence[str],
    base: str | None,
    out: str | os.PathLike[str],
    *,
    beta: float = 0.2,
    show: Sequence[str] = (),
    ho_gsvd: bool = False,
    choose_models: int | None = None,
    theorem: bool = False,
    exact: bool = False,
    names: Table | None = None,
    config_source: str | None = None,
    ram: int | str = DEFAULT_RAM,
    progress: ProgressLike = None,
) -> AnalysisReport:
    """Compare fine-tuned models with their base and with each other, and write a report into the folder ``out``.

    Args:
        models, base:  folders, hub ids or ``model+adapter``, as recipes name models.
        out:           folder of the report (``report.html``, tables, a recipe); it appears when it is complete.
        beta:          of Subspace Boosting, in the pictures of singular values.
        show:          parts of names: singular values of these matrices are shown. By default of an attention and
                       an MLP matrix in the middle.
        ho_gsvd:       compare the directions that the models use, in matrices of a few layers.
        choose_models: find so many models that have least in common; implies ``ho_gsvd``.
        theorem:       demonstrate rank collapse on synthetic task vectors; then there may be no models.
        exact:         decompose every matrix in full; else leading singular values are searched for, and how much
                       too large a stable rank may be is known (``Ranks.missed``).
        names, config_source: of checkpoints of training, as in ``average``.
        ram:           memory budget beyond the interpreter and its packages.
        progress:      None draws a bar in notebooks, True everywhere, False none; or what is called with the input
                       bytes that were read, and all of them.
    Raises:
        InvalidInput:   models do not match the base, or an argument does not match the models; all is named.
        FastmergeError: a file is corrupt, a delta is not finite, the budget is too small, ``out`` exists.
    """
    if not (isinstance(beta, float | int) and 0 <= beta <= 1):
        raise InvalidInput([Problem("beta", f"is {beta!r}", "give a share from 0 to 1")])
    models = several(models or ())
    analysis = Analysis(beta=beta)
    target = free_target(out)
    with contextlib.ExitStack() as stack:
        if models or base is not None or show or ho_gsvd or choose_models is not None or not theorem:
            if base is None:
                raise InvalidInput([Problem("base", "is missing", "name the model that the others were tuned from")])
            if choose_models is not None and not 2 <= choose_models <= len(models):
                raise InvalidInput([Problem("choose", f"is {choose_models}", f"there are {len(models)} models")])
            family = open_family(base, models, of_training(names, config_source))
            work = _Work(family, show, ho_gsvd or choose_models is not None, exact, size_of("ram", ram))
            call = stack.enter_context(shown(progress, "reading"))
            _analyze(analysis, work, stack.enter_context(journal_of(target, work.family, exact)), call)
            if choose_models is not None:
                analysis.choice = choose(mean_alignment(analysis.directions), choose_models)
        if theorem:
            analysis.theorem = rank_collapse()
        with appearing(target) as folder:
            summary = write_report(folder, analysis)
            files = tuple(sorted(path.name for path in folder.iterdir()))
    of_models = analysis.family.notes if analysis.family else ()
    report = AnalysisReport(os.path.abspath(os.path.expanduser(out)), files, summary, of_models)
    _log.info("%s", report)
    return report


class _Work:
    """What is to be done, checked against the models and the budget."""

    def __init__(self, family: Family, show: Sequence[str], ho_gsvd: bool, exact: bool, ram: int):
        self.family, self.exact = family, exact
        self.shown = _shown(family, show)
        self.sampled = _sampled(family) if ho_gsvd else []
        if ho_gsvd and len(family.models) < 2:
            raise InvalidInput([Problem("--ho-gsvd", "there is one model", "directions are compared between models")])
        self.workers = workers_within(needs_of(family, exact), ram)
        _check_budget(self.shown, self.sampled, ram)

    @property
    def nbytes(self) -> int:
        """Bytes that will be read."""
        read = sum(nbytes_of_survey(tensor) for tensor in self.family.tensors)
        return read + sum(delta_nbytes(tensor) for tensor in (*self.shown, *self.sampled))


def _analyze(analysis: Analysis, work: _Work, journal: Journal, progress: Progress | None) -> None:
    family, total = work.family, work.nbytes
    analysis.family = family
    with DeltaReader(family.files, of_bytes(progress, total)) as reader:
        found = survey(family, reader, journal, work.exact, work.workers)
        analysis.measures = {name: known.measure for name, known in found.items()}
        analysis.ranks = {name: known.ranks for name, known in found.items() if known.ranks is not None}
        analysis.spectra = [spectra(reader, tensor, analysis.beta, work.exact) for tensor in work.shown]
        compared = (directions(reader, tensor) for tensor in work.sampled)
        analysis.directions = [item for item in compared if item is not None]
    if work.sampled and not analysis.directions:
        what = "the models change no attention or MLP matrix in the layers that are compared"
        raise InvalidInput([Problem("--ho-gsvd", what, "leave it out")])


def _shown(family: Family, parts: Sequence[str]) -> list[Matched]:
    """Return the matrices whose singular values are shown."""
    if parts:
        unknown = [part for part in parts if not any(part in tensor.name for tensor in family.matrices)]
        if unknown:
            example = f"one is {family.matrices[0].name}" if family.matrices else "there are none"
            what = "is in the name of no attention or MLP matrix"
            raise InvalidInput([Problem(f"--show {part}", what, example) for part in unknown])
        return [tensor for tensor in family.matrices if any(part in tensor.name for part in parts)]
    middle = [tensor for tensor in family.matrices if tensor.layer == family.layers // 2]
    blocks = {tensor.module.rpartition(".")[0]: tensor for tensor in reversed(middle)}
    return sorted(blocks.values(), key=lambda tensor: tensor.module)


def _sampled(family: Family) -> list[Matched]:
    """Return the matrices of a few layers, evenly spread, both ends among them."""
    last, count = family.layers - 1, min(SAMPLED_LAYERS, family.layers)
    layers = {round(i * last / max(count - 1, 1)) for i in range(count)}
    return [tensor for tensor in family.matrices if tensor.layer in layers]


def _check_budget(shown: Sequence[Matched], sampled: Sequence[Matched], ram: int) -> None:
    reading = reading_bytes(tensor.group for tensor in (*shown, *sampled))
    steps = {"singular values": spectra_bytes(shown), "comparing directions (HO-GSVD)": directions_bytes(sampled)}
    step = max(steps, key=lambda name: steps[name])
    needed = reading + steps[step]
    if needed > ram:
        raise BudgetError(f"the memory budget of {ram} bytes is too small: {step} takes up to {needed} (--ram)")
