"""Callbacks for the Trainer of transformers, and for those of TRL, which are some: averages, and merges at every save.

from fastmerge.integrations.transformers import AveragingCallback, MergeAtSaveCallback

trainer = Trainer(model, args, callbacks=[AveragingCallback("ema:0.999")], ...)
AveragingCallback(["ema:0.99", "ema:0.999"]).attach(trainer, evaluate="ema:0.999")
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("fastmerge.integrations.transformers needs: pip install transformers accelerate") from error

from ..api import check, merge
from ..errors import CheckpointError, InvalidInput, Problem
from ..training import Averager
from ..training.saving import is_first_rank

__all__ = ["CHECKPOINT", "AveragingCallback", "MergeAtSaveCallback"]

CHECKPOINT = "CHECKPOINT"
"""In the recipe of ``MergeAtSaveCallback`` the model that was just saved."""

_STATE = "averager"


class AveragingCallback(TrainerCallback):
    """Averages of the model over the optimizer's steps, saved with every checkpoint and as models at the end.

    With each ``checkpoint-N`` the state of the averages is saved into ``checkpoint-N/averager``, by
    torch.distributed.checkpoint, and ``resume_from_checkpoint`` goes on with it to the bit. At the end of training each
    average is saved as a model with its tokenizer into ``averages/NAME`` in the output folder; it replaces what an
    earlier run left there. A window whose last step did not come is left out, with a warning.

    Args:
        schedule:    as in ``Averager``.
        folder:      of the averages at the end; by default ``averages`` in the output folder.
        every_save:  save them as models with each checkpoint too, into ``checkpoint-N/averages/NAME``.
        resume_from: the checkpoint that the run goes on from, where that lies outside the output folder.
        options:     of ``Averager``, such as ``device`` and ``trainable_only``.

    Attributes:
        averager: from the beginning of training on.
    """

    def __init__(
        self,
        schedule: Any = "ema:0.999",
        *,
        folder: str | os.PathLike[str] | None = None,
        every_save: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
        **options: Any,
    ):
        self.averager: Averager | None = None
        self._schedule, self._options = schedule, options
        self._folder, self._every_save, self._resume_from = folder, every_save, resume_from

    def attach(self, trainer: Any, evaluate: str | None = None) -> None:
        """Add the callback to a trainer, and let it evaluate an average in the place of the model.

        Its checkpoints stay those of the model, also those that ``load_best_model_at_end`` chooses by what the average
        scored. Until there is an average, the model itself is evaluated.

        Args:
            evaluate: name of the average, where there are several.
        """
        trainer.add_callback(self)
        plain, inside = trainer.evaluate, False

        def evaluate_average(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            # Of several datasets the trainer evaluates each by another call from inside.
            if inside or self.averager is None or self.averager.why_not_yet(evaluate):
                return plain(*args, **kwargs)
            inside = True
            try:
                with self.averager.swapped(which=evaluate):
                    return plain(*args, **kwargs)
            finally:
                inside = False

        trainer.evaluate = evaluate_average

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        averager = Averager(model, self._schedule, **self._options)
        if state.global_step:
            _load(averager, Path(self._resume_from or _checkpoint(args, state)) / _STATE)
        self.averager = averager

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._made.update(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        model: Any = None, processing_class: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        checkpoint = _checkpoint(args, state)
        _save(self._made, checkpoint / _STATE)
        if self._every_save:
            self._save_models(checkpoint / "averages", model, processing_class)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        model: Any = None, processing_class: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        self._save_models(Path(self._folder or Path(str(args.output_dir)) / "averages"), model, processing_class)

    @property
    def _made(self) -> Averager:
        if self.averager is None:
            raise InvalidInput([Problem("AveragingCallback", "has no averager: training has not begun", "train first")])
        return self.averager

    def _save_models(self, folder: Path, model: Any, tokenizer: Any) -> None:
        averager = self._made
        for name in averager.names:
            if why := averager.why_not_yet(name):
                logging.getLogger(__name__).warning("the average %s is not saved: %s", name, why)
                continue
            target = folder / re.sub(r"[^\w.+-]+", "-", name)
            averager.save_pretrained(target, model, name, tokenizer=tokenizer, overwrite=True)


class MergeAtSaveCallback(TrainerCallback):
    """Merges every saved checkpoint with other models, by any recipe, into a folder inside it.

    Args:
        recipe:  as in ``fastmerge.merge``: a path, YAML text or a dict, with ``CHECKPOINT`` for the saved model.
        folder:  of the result, inside the checkpoint.
        options: of ``fastmerge.merge``, such as ``ram`` and ``device``.

    As training begins the recipe is checked, with one of its other models in the place of the checkpoint, so that
    mistakes show before hours have passed. The first rank merges; checkpoints must be folders in the format of
    transformers. A merge that fails ends training; the checkpoint is saved.

    >>> linear = '''
    ... merge_method: linear
    ... models:
    ...   - {model: CHECKPOINT, parameters: {weight: 0.7}}
    ...   - {model: org/base, parameters: {weight: 0.3}}
    ... '''
    >>> callback = MergeAtSaveCallback(linear)
    """

    def __init__(self, recipe: str | os.PathLike[str] | dict[str, Any], *, folder: str = "merged", **options: Any):
        self._folder, self._options = folder, options
        if isinstance(recipe, dict):
            self._documents = [recipe]
        else:
            text = recipe if isinstance(recipe, str) and "\n" in recipe else Path(recipe).read_text()
            self._documents = list(yaml.safe_load_all(text))
        if CHECKPOINT not in _models(self._documents):
            what = f"names no model {CHECKPOINT}, which stands for the saved one"
            raise InvalidInput([Problem("recipe", what, f"write model: {CHECKPOINT}")])

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        others = [name for name in _models(self._documents) if name != CHECKPOINT]
        if others and is_first_rank():
            check(self._with(others[0]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if is_first_rank():
            checkpoint = _checkpoint(args, state)
            merge(self._with(str(checkpoint)), checkpoint / self._folder, **{"overwrite": True, **self._options})

    def _with(self, model: str) -> str:
        return yaml.safe_dump_all([_replaced(document, model) for document in self._documents], sort_keys=False)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _save(averager: Averager, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with _alone():
        dcp.save({"averager": averager}, checkpoint_id=folder)


def _load(averager: Averager, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    if not folder.is_dir():
        remedy = "say resume_from=CHECKPOINT where it lies elsewhere; an average cannot go on without its state"
        raise CheckpointError(f"{folder}: there is no state of averages ({remedy})")
    with _alone():
        dcp.load({"averager": averager}, checkpoint_id=folder)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep torch from remarking that one process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _models(node: Any) -> Iterator[str]:
    """Return the models that a recipe names, in its order."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("model", "base_model", "source_model") and isinstance(value, str):
                yield value
            else:
                yield from _models(value)
    elif isinstance(node, list):
        for value in node:
            yield from _models(value)


def _replaced(node: Any, model: str) -> Any:
    if isinstance(node, dict):
        return {key: _replaced(value, model) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(value, model) for value in node]
    return model if node == CHECKPOINT else node
