"""Merging from Python: a recipe and an output folder in, a checkpoint and a report out."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from .arguments import size_of, whole
from .devices.names import DEFAULT
from .errors import InvalidInput
from .plan import DEFAULT_SHARD_SIZE, plan_all
from .plan.state import state_of
from .progress import ProgressLike, shown
from .recipe import load
from .recipe.pipeline import load_pipeline
from .sizes import DEFAULT_RAM

if TYPE_CHECKING:
    from .engine import RecipeReport, Report, VerifyReport
    from .plan.types import Plan

__all__ = ["check", "merge", "verify", "verify_recipe"]

_log = logging.getLogger(__name__)

RecipeLike = str | os.PathLike[str] | dict[str, Any]


def merge(
    recipe: RecipeLike,
    out: str | os.PathLike[str],
    *,
    ram: int | str = DEFAULT_RAM,
    threads: int | None = None,
    device: str = DEFAULT,
    vram: int | str | None = None,
    backend: str | None = None,
    semantics: str | None = None,
    seed: int | None = None,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    allow_mixed_types: bool = False,
    truncate_embeddings: bool = False,
    copy_tokenizer: bool = True,
    model_card: bool = True,
    strict: bool = False,
    intermediates: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    report: bool = False,
    format: str = "hf",
    key: str | None = None,
    like: str | os.PathLike[str] | None = None,
    progress: ProgressLike = None,
) -> Report:
    """Merge the models of ``recipe`` into the folder ``out``. An interrupted merge goes on when it is called again.

    Args:
        recipe:     path of a YAML file, YAML text (it contains a newline), or a dict.
        out:        folder of the result; it appears when it is complete.
        ram:        memory budget beyond the interpreter and its packages: bytes, or text such as "4GiB".
        threads:    worker threads; None takes the cores and two more, which wait for the disk meanwhile.
        device:     "cpu", "cuda" (every GPU), GPUs such as "cuda:0,cuda:1", or "auto": every GPU where there is one and
                    the operations have kernels for it, else the processor. Each gives the same bits, except where a
                    method decomposes matrices.
        vram:       memory budget on each GPU, as ``ram``; None takes 90 % of what is free.
        backend:    pin a backend of the operations; None takes the fastest available. Each gives the same bits.
        semantics:  replaces the recipe's own: whose definition of the method.
        seed:       replaces the recipe's own.
        shard_size: bytes of tensor data per output file, or text such as "5GB".
        allow_mixed_types, truncate_embeddings, copy_tokenizer, model_card, strict: as in ``check``.
        intermediates: folder that keeps the results of the other documents, for a recipe of several; None keeps none.
        overwrite:  replace an existing output of fastmerge, where it wrote everything and nothing is needed.
        allow_nonfinite: let NaN and infinity pass; without it inputs that hold them, and results that do, are refused.
        report:     read inputs and output once more, and write what the merge did into ``out``: ``report.html``, one
                    page with pictures, ``report.csv``, and ``report.json``.
        format:     of ``out``: "hf", the hub's layout, or "dcp", a checkpoint of torch.distributed.checkpoint, which
                    has the names that the recipe's ``names`` give, read backwards.
        key:        of a "dcp": what leads to the model in the state, with dots; None is that of ``like``, else "model",
                    "" nothing.
        like:       of a "dcp": a checkpoint of the same model. It says the key, the names and the shapes that are
                    expected; all that it holds beside the model and the states of optimizers is taken over as it is:
                    counters, data loaders, ``common.pt``.
        progress:   None draws a bar in notebooks, True everywhere, False none; or what is called several times a second
                    with the output bytes that are written, and all of them.
    Raises:
        InvalidInput:   the recipe or its models cannot be merged; all problems are in ``problems``.
        Refused:        an input or a result holds NaN or infinity, or a method cannot merge what the inputs hold.
        FastmergeError: a file is corrupt, the disk is full, the budget is too small, ``out`` exists.
    """
    from .engine import RunOptions
    from .engine.targets import prepare
    from .pipelines import merge_all

    options = RunOptions(
        ram=size_of("ram", ram), threads=threads, device=device, vram=None if vram is None else size_of("vram", vram),
        backend=backend, overwrite=overwrite, allow_nonfinite=allow_nonfinite,
    )  # fmt: skip
    prepare(options.device, options.ram)
    with shown(progress, "merging") as call:
        merged = merge_all(
            load_pipeline(recipe, semantics=semantics, seed=seed), out, options, call, intermediates=intermediates,
            shard_size=size_of("shard_size", shard_size), allow_mixed_types=allow_mixed_types,
            truncate_embeddings=truncate_embeddings, copy_tokenizer=copy_tokenizer, model_card=model_card,
            strict=strict, report=report, state=state_of(format, key, like),
        )  # fmt: skip
    found = merged[-1].report
    assert found is not None, "only intermediate results are taken over"
    return found


def check(
    recipe: RecipeLike,
    *,
    semantics: str | None = None,
    seed: int | None = None,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    allow_mixed_types: bool = False,
    truncate_embeddings: bool = False,
    copy_tokenizer: bool = True,
    model_card: bool = True,
    strict: bool = False,
) -> Plan:
    """Check a recipe and its models from headers and configs alone, and return the plan of the merge.

    Of a recipe of several documents all are checked, and the plan is that of the last one.

    Args:
        recipe, semantics, seed, shard_size: as in ``merge``.
        allow_mixed_types: merge models of different types if their tensors agree.
        truncate_embeddings: cut vocabularies of different sizes to the smallest; token ids are not compared.
        copy_tokenizer: take the files of a tokenizer along.
        model_card: write a ``README.md``.
        strict: make every note a problem.
    Raises:
        InvalidInput: with every problem that was found, each with its place and remedy.
    """
    planned = plan_all(
        load_pipeline(recipe, semantics=semantics, seed=seed),
        shard_size=size_of("shard_size", shard_size),
        allow_mixed_types=allow_mixed_types,
        truncate_embeddings=truncate_embeddings,
        copy_tokenizer=copy_tokenizer,
        model_card=model_card,
        strict=strict,
    )
    with planned as plans:
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            _log.info("note: %s", note)
        return plans[-1]


def verify(
    out: str | os.PathLike[str],
    *,
    sample: int | None = None,
    backend: str | None = None,
    seed: int = 0,
    ram: int | str = DEFAULT_RAM,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> VerifyReport:
    """Recompute tensors of the output folder ``out`` from its inputs and compare bits; the rest by checksum.

    Args:
        sample: number of tensors to recompute, chosen at random by ``seed``; None recomputes all.
        progress: as in ``merge``.
    Raises:
        CheckpointError: there is no manifest, or an input is missing or no longer the one of the merge.
    """
    from .pipelines import verify_all

    if problems := [*whole("sample", sample, 0), *whole("threads", threads)]:
        raise InvalidInput(problems)
    with shown(progress, "verifying") as call:
        return verify_all(
            out, sample=sample, backend=backend, seed=seed, ram=size_of("ram", ram), threads=threads, progress=call
        )


def verify_recipe(
    recipe: RecipeLike,
    out: str | os.PathLike[str],
    *,
    backend: str | None = None,
    semantics: str | None = None,
    seed: int | None = None,
    ram: int | str = DEFAULT_RAM,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> RecipeReport:
    """Judge the folder ``out``, whichever tool wrote it, by what ``recipe`` gives: equal, within rounding, different.

    Args:
        recipe, semantics, seed, progress: as in ``merge``.
    Raises:
        InvalidInput:    the recipe or its models cannot be merged.
        CheckpointError: the output cannot be read.
    """
    from .engine import verify_recipe as verify_output

    with shown(progress, "verifying") as call:
        return verify_output(
            load(recipe, semantics=semantics, seed=seed), os.fspath(out), backend=backend, ram=size_of("ram", ram),
            threads=threads, progress=call,
        )  # fmt: skip
