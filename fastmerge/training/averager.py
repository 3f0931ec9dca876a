"""Averages of a model while it trains."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..errors import InvalidInput, Problem
from ..sharded import like_shard, local
from . import memory, saving
from .kept import Average
from .rules import Schedule, rules_of
from .shards import reshard
from .tracked import Buffers, Named, Source, Tracked

__all__ = ["Averager"]

_STATES = (torch.float32, torch.bfloat16)


class Averager:
    """Averages of parameters over the steps of a run: a ``Stateful`` of torch.distributed.checkpoint.

    Each rank averages what lies on it: of a DTensor its own shard. An update is one launch a device for all tensors
    and all averages, without a collective and without memory of its own. The arithmetic stands in ``rules``.

    Parameters are known by themselves, as an optimizer knows them: groups do not matter, and tied ones are averaged
    once. One that is frozen is averaged too, and its average is what it is. Parameters of integers, which quantized
    models have, and with ``trainable_only`` those that are frozen, are the model's own in every average.

    Args:
        model_or_params: a model, or parameters (float32, bfloat16, float16): by name, or in an order that stays.
        schedule: a rule such as ``ema(0.999)`` or "ema:0.999", or several: a list, or by name.
        dtype:    of running averages, float32 or bfloat16. In bfloat16 each step is computed in float32 and rounded to
                  nearest: a weight stays where a step moves it by less than 1/512 of itself, or 1/256.
        device:   None keeps averages where the parameters lie, "cpu" in host memory, pinned for parameters on a GPU;
                  then an update copies these to the host, 64 MiB at a time, and averages there.
        buffers:  "copy" leaves buffers to the model; "average" averages the float ones of its state, and leaves those
                  of integers.
        trainable_only: leave out parameters that are frozen now. To unfreeze one of them later is an error.
        backend:  pin a backend of ``weighted_sum``; all give the same bits.
    Raises:
        InvalidInput: a rule or a parameter is none that can be averaged; all of them are named.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> averager = Averager(model, "swa")
    >>> for value in (1.0, 3.0):
    ...     with torch.no_grad():
    ...         _ = model.weight.fill_(value)
    ...     averager.update()
    >>> with averager.swapped():
    ...     model.weight.item()
    2.0
    >>> model.weight.item()
    3.0
    """

    def __init__(
        self,
        model_or_params: Source,
        schedule: Schedule | Sequence[Schedule] | Mapping[str, Schedule] = "ema:0.999",
        *,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
        buffers: Buffers = "copy",
        trainable_only: bool = False,
        backend: str | None = None,
    ):
        if buffers not in ("copy", "average") or device not in (None, "cpu") or dtype not in _STATES:
            what = (
                f"are {buffers!r}, {device!r} and {dtype}; expected copy or average, None or cpu, float32 or bfloat16"
            )
            raise InvalidInput([Problem("buffers, device, dtype", what)])
        self._tracked = Tracked(model_or_params, buffers, trainable_only)
        self._on_host, self._backend = device == "cpu", backend
        self._step = 0
        self._swaps = 0
        values = self._tracked.values()
        self._averages = {
            name: Average.of(rule, values, dtype, self._on_host) for name, rule in rules_of(schedule).items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the averages."""
        return tuple(self._averages)

    @property
    def step(self) -> int:
        """The last step that ``update`` was called for; 0 before the first."""
        return self._step

    @property
    def nbytes(self) -> int:
        """Bytes of all averages on this rank."""
        return sum(average.nbytes for average in self._averages.values())

    def count(self, which: str | None = None) -> int:
        """Return how many steps an average took in."""
        return self._find(which).count

    def why_not_yet(self, which: str | None = None) -> str | None:
        """Return why an average is not there yet, or None where it is."""
        average = self._find(which)
        return average.rule.why_not_yet(average.count)

    @torch.no_grad()
    def update(self, step: int | None = None) -> None:
        """Let the averages take in the parameters as they are; call it after the optimizer's step.

        Args:
            step: of the run, larger at every call; by default the one after the last.
        Raises:
            InvalidInput: the step is not larger, a parameter was replaced, changed its shape or was unfrozen, a window
                          missed a step, or the parameters are swapped. The averages are as before.
        """
        step = self._step + 1 if step is None else step
        if self._swaps:
            raise InvalidInput([Problem("update", "is called while the averages are in the model", "leave the block")])
        if step <= self._step:
            what = f"is {step}, and the last one was {self._step}: a step counts once"
            raise InvalidInput([Problem("step", what, "load the averager's state with the model's")])
        if self._tracked.unfrozen:
            what = "was unfrozen since the averager was made, which does not know it"
            raise InvalidInput([Problem("a parameter", what, "unfreeze it before, or leave trainable_only out")])
        taking = [average for average in self._averages.values() if average.rule.takes(step, average.count)]
        if taking:
            values = self._tracked.values()
            self._check_shapes(values)
            memory.meet(
                values,
                self._on_host,
                lambda name, value: [a.rule.meet(a.count, a.tensors(name), value) for a in taking],
                self._backend,
            )
        for average in taking:
            average.count += 1
        self._step = step

    def weights(self, which: str | None = None, dtype: torch.dtype | None = None) -> Named:
        """Return an average as new tensors by name, DTensors where the parameters are; ``dtype`` None keeps theirs."""
        with torch.no_grad():
            made = {
                name: torch.empty_like(value, dtype=dtype, requires_grad=False)
                for name, value in self._tracked.values().items()
            }
            self._write(self._find(which), made)
        return {name: like_shard(part, self._tracked.named[name]) for name, part in made.items()}

    def copy_to(self, model: Source | None = None, which: str | None = None) -> None:
        """Overwrite the parameters of a model with an average, rounded once to their dtypes.

        Args:
            model: with the names, shapes and shards of the one that is averaged; None is that one itself. Another model
                   gets its buffers as well, of the average where they are averaged, else as they are.
            which: name of the average, where there are several.
        """
        average, target = self._find(which), self._tracked.target(model)
        targets = self._tracked.targets(target)
        with torch.no_grad():
            self._write(average, {name: local(tensor) for name, tensor in targets.items()})
            self._tracked.copy_buffers(target)

    @contextlib.contextmanager
    def swapped(self, model: Source | None = None, which: str | None = None) -> Iterator[Any]:
        """Put an average into a model for a block, and what was there back at its end, to the bit.

        Exceptions change nothing of that. The parameters are kept beside them meanwhile: memory of one copy of what is
        averaged. Buffers that are not averaged stay as the block leaves them: evaluate in ``model.eval()``.

        Args:
            model, which: as in ``copy_to``; buffers of another model are left alone.
        """
        average, target = self._find(which), self._tracked.target(model)
        targets = self._tracked.targets(target)
        mine = target is self._tracked.model
        with torch.no_grad():
            before = {name: local(tensor).clone() for name, tensor in targets.items()}
        self._swaps += mine
        try:
            with torch.no_grad():
                self._write(average, {name: local(tensor) for name, tensor in targets.items()})
            yield target if model is None else model
        finally:
            with torch.no_grad():
                # What the block gathered of the average is not what training goes on with.
                reshard(target)
                for name, tensor in targets.items():
                    local(tensor).copy_(before[name])
            self._swaps -= mine

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        model: Any = None,
        which: str | None = None,
        *,
        tokenizer: Any = None,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        """Save a model by its own ``save_pretrained`` with an average in the place of its weights.

        The folder appears when it is complete. Of several ranks the first one writes; where parameters are DTensors all
        must call, for they are gathered.

        Args:
            folder:    a new or an empty one.
            model:     as in ``copy_to``.
            tokenizer: or a processor, saved beside the model.
            overwrite: replace the folder, with everything in it.
            options:   of ``save_pretrained``.
        """
        target = self._tracked.target(model)
        if not hasattr(target, "save_pretrained"):
            what = f"is a {type(target).__name__}, which has no save_pretrained"
            raise InvalidInput([Problem("model", what, "save averager.weights(), or copy_to a model")])
        with self.swapped(target, which):
            saving.save_pretrained(target, folder, tokenizer, overwrite, options)

    def state_dict(self) -> dict[str, Any]:
        """Return the state: steps, counts, rules, and the tensors of the averages themselves, as DTensors of the model.

        Saved and loaded by torch.distributed.checkpoint, or by torch.save on each rank, a run goes on with the bits of
        one that was not stopped.
        """
        return {
            "step": self._step,
            "averages": {name: average.state(self._tracked.named) for name, average in self._averages.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over.

        Raises:
            InvalidInput: it is one of other averages, rules or tensors; the averager is as before.
        """
        if problems := saving.state_problems(self.state_dict(), state_dict):
            raise InvalidInput(problems)
        for name, average in self._averages.items():
            average.load(state_dict["averages"][name])
        self._step = state_dict["step"]

    def _find(self, which: str | None) -> Average:
        if which is None and len(self._averages) == 1:
            return next(iter(self._averages.values()))
        if which not in self._averages:
            what = f"is {which!r}; the averages are {', '.join(self._averages)}"
            raise InvalidInput([Problem("which", what, "name one of them")])
        return self._averages[which]

    def _write(self, average: Average, targets: Named) -> None:
        if why := average.rule.why_not_yet(average.count):
            raise InvalidInput([Problem(average.rule.text, f"has no average yet: {why}", "update first")])
        memory.write(
            targets,
            self._on_host,
            lambda name: average.rule.result(average.count, average.tensors(name)),
            self._backend,
        )

    def _check_shapes(self, values: Named) -> None:
        kept = next(iter(self._averages.values())).kept[0]
        for name in (name for name, value in values.items() if value.shape != kept[name].shape):
            what = f"has shape {tuple(values[name].shape)}, and had {tuple(kept[name].shape)}"
            raise InvalidInput([Problem(name, what, "make a new averager")])
