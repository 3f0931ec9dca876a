"""Where a run computes: in the host's memory, or on devices that have their own."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .. import kernels
from ..devices.names import parse_devices
from ..errors import FastmergeError
from ..plan.types import OutputTensor
from .arena import Arena, Slot
from .needs import why_not_compiled, why_torch
from .report import Meter
from .ring import Ring
from .sizing import PINNED_BYTES, Budget, Sizes

if TYPE_CHECKING:
    import torch

    from .devices import Driver

# Share of a device's free memory that is taken where no budget is given.
SHARE = 0.9


class Target(ABC):
    """Where a run computes.

    Attributes:
        names: the devices.
        why:   why they were taken.
    """

    names: tuple[str, ...]
    why: str

    @abstractmethod
    def budget(self, ram: int) -> Budget:
        """Return what there is to divide."""

    @abstractmethod
    def arena(self, nbytes: int, strips: bool) -> contextlib.AbstractContextManager[Arena]:
        """Return a context that yields the host's memory of a run; ``strips`` as ``Arena`` takes it."""

    @abstractmethod
    def slots(self, arena: Arena, sizes: Sizes, meter: Meter) -> contextlib.AbstractContextManager[list[Slot]]:
        """Return a context that yields the scratch of tasks."""

    def why_torch(self, outputs: Sequence[OutputTensor]) -> str | None:
        """Return why torch's tensors are needed for a merge of outputs here, or None where strips will do."""
        return f"{', '.join(self.names)} computes"

    def peak_bytes(self) -> int:
        """Return the most bytes that one device held in the last ``slots``; 0 for the host."""
        return 0


class Host(Target):
    """The processor, in the memory that files are read into."""

    names = ("cpu",)

    def __init__(self, why: str = ""):
        self.why = why

    def budget(self, ram: int) -> Budget:
        return Budget(ram)

    def why_torch(self, outputs: Sequence[OutputTensor]) -> str | None:
        return why_torch(outputs)

    def arena(self, nbytes: int, strips: bool) -> contextlib.AbstractContextManager[Arena]:
        return contextlib.nullcontext(Arena(nbytes, strips))

    @contextlib.contextmanager
    def slots(self, arena: Arena, sizes: Sizes, meter: Meter) -> Iterator[list[Slot]]:
        yield [Slot(arena, _part(arena, sizes.slot), sizes.slot) for _ in range(sizes.slots)]


class Accelerators(Target):
    """Devices with memories of their own. Their workers share the host's arena, which is pinned."""

    def __init__(self, devices: Sequence[torch.device], driver: Driver, ring: Ring, vram: int | None, why: str):
        self._devices, self._driver, self._ring, self._vram = devices, driver, ring, vram
        self.names, self.why = tuple(str(device) for device in devices), why
        self._peak = 0

    def budget(self, ram: int) -> Budget:
        vram = self._vram or int(SHARE * min(self._driver.free_bytes(device) for device in self._devices))
        return Budget(ram, vram, len(self._devices), self._devices[0].type)

    def peak_bytes(self) -> int:
        return self._peak

    def pinned(self, ram: int) -> tuple[torch.device, int]:
        """Return the most bytes that a run pins in a budget, and through which device."""
        return self._devices[0], min(ram, len(self._devices) * PINNED_BYTES)

    @contextlib.contextmanager
    def arena(self, nbytes: int, strips: bool) -> Iterator[Arena]:
        with self._ring.taken(self._devices[0], nbytes) as arena:
            yield arena

    @contextlib.contextmanager
    def slots(self, arena: Arena, sizes: Sizes, meter: Meter) -> Iterator[list[Slot]]:
        from .devices import failures_of

        with failures_of(*self._devices):
            yield from self._slots(arena, sizes, meter)

    def _slots(self, arena: Arena, sizes: Sizes, meter: Meter) -> Iterator[list[Slot]]:
        from .devices import DeviceMemory, DeviceSlot

        slots: list[DeviceSlot] = []
        try:
            each = sizes.slots // len(self._devices)
            for device in self._devices:
                self._driver.begin_peak(device)
                memory = DeviceMemory(device, each * sizes.slot + sizes.regions)
                for _ in range(each):
                    start = _part(arena, sizes.slot)
                    slots.append(DeviceSlot(arena, start, sizes.slot, memory, self._driver, meter))
            self._wait()  # the memory may have been another stream's a moment ago
            yield list(slots)
            self._wait()
            self._peak = max(self._driver.peak_bytes(device) for device in self._devices)
        except BaseException:
            # Copies may still be under way. A device that failed fails here again: the first error counts.
            with contextlib.suppress(RuntimeError, FastmergeError):
                self._wait()
                for slot in slots:
                    slot.give_back()
            raise

    def _wait(self) -> None:
        for device in self._devices:
            self._driver.synchronize(device)


def _part(arena: Arena, nbytes: int) -> int:
    start = arena.take(nbytes)
    assert start is not None, "the slots are part of the arena"
    return start


def choose(device: str, vram: int | None) -> Target:
    """Return where a run computes that asked for ``device`` (see ``RunOptions``).

    Raises:
        FastmergeError: a GPU was asked for and cannot be used.
    """
    wanted = parse_devices(device)
    if wanted == "cpu":
        return Host("--device cpu")
    from ..devices import gpus

    why_not = gpus.why_none()
    if wanted == "auto" and why_not is None:
        why_not = _why_no_kernels()
    if wanted == "auto" and why_not:
        return Host(f"no GPU is used: {why_not}")
    if why_not:
        raise FastmergeError(f"--device {device}: {why_not}; take --device cpu or auto")
    import torch

    present = gpus.visible()
    devices = present if isinstance(wanted, str) else [torch.device("cuda", index) for index in wanted]
    if missing := [str(item) for item in devices if item not in present]:
        found = ", ".join(map(str, present))
        raise FastmergeError(f"--device {device}: there is no {', '.join(missing)}; this process sees {found}")
    why = f"--device {device}" if wanted != "auto" else "GPUs that have kernels for every operation"
    return Accelerators(devices, *_driver_and_ring(), vram, why)


@functools.cache
def _driver_and_ring() -> tuple[Driver, Ring]:
    """Return those of the GPUs, of which this process has one."""
    from ..devices import gpus

    driver = gpus.Cuda()
    return driver, Ring(driver)


def prepare(device: str, ram: int) -> None:
    """Begin on a thread what GPUs need before they can work, where ``device`` asks for them: context, pinned memory.

    For commands that read recipes and headers first. ``ram`` is the budget of the merge.
    """
    from ..devices import gpus

    if parse_devices(device) == "cpu" or gpus.why_no_driver() is not None:
        return

    def wanted() -> tuple[torch.device, int] | None:
        try:
            found = choose(device, None)
        except FastmergeError:  # the merge says so
            return None
        return found.pinned(ram) if isinstance(found, Accelerators) else None

    _driver_and_ring()[1].prepare(wanted)


def _why_no_kernels() -> str | None:
    try:
        return why_not_compiled("cuda")
    except kernels.BackendError as error:
        return str(error)
