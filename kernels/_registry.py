"""Operations and their backends: who can run what, which one is taken, and why.

An operation is declared once by its reference (PyTorch, any device). Backends add themselves by
name; the registry takes the fastest one that is available on the device of the tensors, unless
one is pinned by ``use_backend``, by an argument, or by ``FASTMERGE_BACKEND``. What is fastest on GPUs differs
between operations, so that each states its own order, as it was measured; or as it is expected, and then says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ._checks import device_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Fastest first, on kinds of devices where that is the same for every operation. A backend that is not in the row of a
# device never runs there.
PREFERENCE = {"cpu": ("cpu", "reference")}
BACKENDS = ("reference", "cpu", "triton", "cuda")
GPU_BACKENDS = ("triton", "cuda")

_pinned: list[str] = []


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why and what to do."""


class Order(NamedTuple):
    """Backends of an operation on GPUs, fastest first, and why in that order."""

    backends: tuple[str, ...]
    because: str


@dataclass
class Implementation:
    """One backend of one operation. ``probe`` returns the reason why it cannot run, or None.

    ``many`` runs a list of jobs together, where the operation takes a job; None calls ``run`` on each.
    """

    run: Callable
    probe: Callable[[], str | None]
    many: Callable | None = None


@dataclass
class Operation:
    """A callable that sends its arguments to the chosen backend. See the module of the operation for the contract.

    Attributes:
        gpu:      the order of backends on GPUs.
        gpu_many: that of several calls at a time; None is ``gpu``.
    """

    name: str
    reference: Callable
    gpu: Order
    gpu_many: Order | None = None
    implementations: dict[str, Implementation] = field(default_factory=dict)
    # What was chosen, by kind of device and pin: merges of thousands of tiny tensors ask again and again.
    _chosen: dict[tuple[str, str], Callable] = field(default_factory=dict)

    def backend(
        self, name: str, probe: Callable[[], str | None], many: Callable | None = None
    ) -> Callable[[Callable], Callable]:
        """Register a backend of this operation (decorator)."""
        if name not in BACKENDS:
            raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(BACKENDS)}")

        def add(run: Callable) -> Callable:
            self.implementations[name] = Implementation(run, probe, many)
            self._chosen.clear()
            return run

        return add

    def choose(self, device: torch.device | str, backend: str | None = None, many: bool = False) -> tuple[str, str]:
        """Return ``(backend, reason)`` for tensors on ``device``; BackendError for a pinned one that cannot run.

        ``many`` asks for what runs several calls at a time.
        """
        order = self._order(_kind(device), many)
        pinned = _pin(backend)
        if pinned == "auto":
            missing: list[str] = []
            for name in order.backends:
                why = self._unavailable(name)
                if why is None:
                    return name, "; ".join(["fastest available", *missing]) if missing else order.because
                missing.append(f"{name}: {why}")
            raise AssertionError("the reference backend is always available")
        if pinned not in BACKENDS:
            raise BackendError(f"unknown backend {pinned!r}; expected one of auto, {', '.join(BACKENDS)}")
        why = self._unavailable(pinned)
        if why is None and pinned not in order.backends:
            why = f"it does not run on {_kind(device)} tensors"
        if why is not None:
            raise BackendError(f"{self.name}: backend {pinned!r} was asked for but cannot run: {why}")
        return pinned, "pinned"

    def can_run(self, device: torch.device | str, backend: str) -> bool:
        """Return whether a backend has this operation for tensors on ``device``, here."""
        return backend in self._order(_kind(device), False).backends and self._unavailable(backend) is None

    def _order(self, kind: str, many: bool) -> Order:
        """Return what can run on a kind of device, fastest first; the reference runs everywhere."""
        if kind in PREFERENCE:
            return Order(PREFERENCE[kind], "fastest available")
        order = (self.gpu_many if many and self.gpu_many else self.gpu) if kind == "cuda" else Order((), "the only one")
        return Order((*order.backends, "reference"), order.because)

    def _unavailable(self, name: str) -> str | None:
        if name == "reference":
            return None
        implementation = self.implementations.get(name)
        return "not implemented for this operation" if implementation is None else implementation.probe()

    def many(self, jobs: Sequence[Sequence[Any]], backend: str | None = None) -> None:
        """Run the operation on each job, its only argument, all on one device: together where the backend can."""
        if not jobs:
            return
        name, _ = self.choose(device_of(jobs[0]), backend, many=len(jobs) > 1)
        together = None if name == "reference" else self.implementations[name].many
        if together is not None:
            together(jobs)
            return
        for job in jobs:
            self(job, backend=name)

    def __call__(self, first: Tensor | Sequence[Any], *args, backend: str | None = None):
        device = device_of(first)
        key = device.type, _pin(backend)
        run = self._chosen.get(key)
        if run is None:
            name, _ = self.choose(device, backend)
            run = self._chosen[key] = self.reference if name == "reference" else self.implementations[name].run
        return run(first, *args)


def _kind(device: torch.device | str) -> str:
    return device.partition(":")[0] if isinstance(device, str) else device.type


def _pin(backend: str | None) -> str:
    """Return the backend that is asked for: by argument, the innermost ``use_backend``, the environment, or "auto"."""
    return backend or (_pinned[-1] if _pinned else None) or os.environ.get("FASTMERGE_BACKEND") or "auto"


def permitted(backend: str, device: torch.device) -> bool:
    """Return whether a backend may run on a device: its kind has that backend, and no other one is pinned."""
    kind = _kind(device)
    known = GPU_BACKENDS if kind == "cuda" else PREFERENCE.get(kind, ())
    return backend in known and _pin(None) in ("auto", backend)


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, *, gpu: Order, gpu_many: Order | None = None) -> Callable[[Callable], Operation]:
    """Declare an operation by its reference implementation and its order of backends on GPUs (decorator)."""

    def declare(reference: Callable) -> Operation:
        op = Operation(name, reference, gpu, gpu_many)
        OPERATIONS[name] = op
        return op

    return declare


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Pin the backend of every operation inside the block; "auto" chooses by availability, None changes nothing."""
    if name is None:
        yield
        return
    _pinned.append(name)
    try:
        yield
    finally:
        _pinned.pop()
