"""Averages from Python: checkpoints in, a checkpoint and a report out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api import check, merge
from ..arguments import several
from ..checkpoint import locate
from ..checkpoint.distributed import is_distributed_place
from ..engine import Report
from ..engine.folders import real_target
from ..engine.publish import StagingFolder
from ..engine.workplace import intermediates_of
from ..recipe.references import parse_reference
from ..recipe.writing import Table
from .greedy import Greedy, GreedySoup, Trial
from .recipe import average_of
from .scoring import Score, scorer_of
from .window import window_of

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# Options of ``merge`` that say what is made, not how.
_PLANNING = (
    "shard_size", "allow_mixed_types", "truncate_embeddings", "copy_tokenizer", "model_card", "strict",
)  # fmt: skip


def average(
    checkpoints: Names,
    out: str | os.PathLike[str],
    *,
    schedule: str = "uniform",
    weights: Sequence[float] | None = None,
    counts: Sequence[float] | None = None,
    last: int | None = None,
    every: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    base: str | None = None,
    dtype: str | None = None,
    names: Table | None = None,
    config_source: str | None = None,
    **options: Any,
) -> Report:
    """Write the average of checkpoints into the folder ``out``: a merge as any other, resumable and verifiable.

    ``acc = w_0 x_0``, then ``acc = acc + w_k x_k`` in float32, in the order of the checkpoints, multiplication and
    addition rounded separately; rounded once to the dtype of the output. Integer and bool tensors (counters of steps)
    are those of the last checkpoint.

    Args:
        checkpoints: folders, hub ids or patterns such as ``run/checkpoint-*``, oldest first; names that differ only in
                     numbers are put in the order of these, unless there are weights or counts.
        schedule:    uniform, linear, ema:DECAY, swa, lawa:K, warm, 1-sqrt, cosine, decay:F1,F2,..: see ``schedules``.
        weights:     one per checkpoint, in place of a schedule; divided by their sum.
        counts:      of samples, one per checkpoint, in place of a schedule: FedAvg.
        start, stop: the first and the last step that are taken, by the numbers in the names.
        every:       take each so-many-th checkpoint, counted from the last one.
        last:        take so many at the end.
        base:        the model that adapters are added to before they are averaged; for checkpoints that are some.
        dtype:       of the output, such as "float32"; None keeps that of the checkpoints.
        names:       of checkpoints of training: a file with the trainer's names and the hub's, or a mapping; see
                     ``docs/training.md``.
        config_source: folder with config and tokenizer of checkpoints of training that have none.
        options:     of ``merge``.
    Raises:
        InvalidInput: the checkpoints cannot be averaged, or the schedule is none; all problems are in ``problems``.
        FastmergeError: as ``merge``.
    """
    found = average_of(
        several(checkpoints), schedule=schedule, weights=weights, counts=counts, base=base, dtype=dtype,
        last=last, every=every, start=start, stop=stop, names_table=names, config_source=config_source,
    )  # fmt: skip
    report = merge(found.recipe, out, **options)
    return replace(report, notes=(*found.notes, *report.notes))


def greedy_soup(
    checkpoints: Names,
    out: str | os.PathLike[str],
    score: str | Score,
    *,
    minimize: bool = False,
    base: str | None = None,
    dtype: str | None = None,
    names: Table | None = None,
    config_source: str | None = None,
    said: Callable[[Trial], None] | None = None,
    **options: Any,
) -> GreedySoup:
    """Write the greedy soup of checkpoints into ``out`` (Wortsman et al. 2022, arXiv 2203.05482).

    Each checkpoint is scored, then joins the mean, best first, if the score does not fall. Averages that are tried are
    merged into ``.<name>.steps`` beside ``out``, one at a time, and removed once they are scored; the soup is merged in
    the end. With a score that is deterministic so is the soup. An interrupted search goes on when it is called again,
    if ``score`` is text: scores are kept until the soup is there.

    Args:
        checkpoints: as in ``average``.
        score:       a function that takes a folder and returns a number, or text: a command, or ``module:function``.
        minimize:    True where less is better, as with a loss.
        base, dtype, names, config_source: as in ``average``.
        said:        is called with every trial.
        options:     of ``merge``.
    Raises:
        InvalidInput, FastmergeError: as ``average``; a score that is no number.
    """
    models = window_of(several(checkpoints)).models

    def mean(chosen: Sequence[str], title: str = "A trial") -> str:
        # Weights keep the order in which they joined.
        return average_of(
            chosen, weights=[1.0] * len(chosen), base=base, dtype=dtype, title=title, names_table=names,
            config_source=config_source,
        ).recipe  # fmt: skip

    def place(chosen: Sequence[str], folder: str) -> str:
        alone = parse_reference(chosen[0])
        if len(chosen) == 1 and base is None and alone.lora is None:
            found = locate(alone.path, alone.revision)
            if not is_distributed_place(found):  # which what scores models could not load
                return found
        merge(mean(chosen), folder, **{**options, "overwrite": True, "progress": False, "report": False})
        return folder

    plan = check(mean(models), **{name: value for name, value in options.items() if name in _PLANNING})
    StagingFolder(Path(out), plan, options.get("overwrite", False)).check_target()  # before anything is scored
    key = f"{score}, {'least' if minimize else 'greatest'}, {base}, {dtype}" if isinstance(score, str) else None
    with intermediates_of(real_target(out), in_memory=False) as scratch:
        measure = scorer_of(score) if isinstance(score, str) else score
        found = Greedy(measure, place, scratch, minimize, key, said).search(models)
        title = f"Greedy soup of {len(found.models)} of {len(models)} checkpoints, score {found.score:g}"
        report = merge(mean(found.models, title), out, **options)
    return replace(found, report=report)
