"""State dicts in the host's memory that GPUs merge: the engine's pipeline, fed from memory instead of files."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..dtypes import dtype_of
from ..engine.arena import round_up
from ..engine.batches import units
from ..engine.censuses import knowing, take_all
from ..engine.context import RunContext
from ..engine.files import InputFiles
from ..engine.finite import Suspect
from ..engine.report import Meter
from ..engine.running import RunOptions, feasible
from ..engine.scheduler import Unit
from ..engine.targets import Host
from ..engine.working import work
from ..errors import Refused
from ..plan.types import InputTensor, OutputTensor
from ..sharded import Prepared

# Outputs lie as far apart as the widest element, so that each is aligned.
_ALIGNED = 8


def stream(merge: Prepared, names: Sequence[str], options: RunOptions) -> bool:
    """Merge the tensors called so on the GPUs of ``options``, in windows; False where these name no GPU.

    What is large is read by the GPU where it lies, in pages that are locked meanwhile; the rest passes through pinned
    memory. At most ``options.ram`` bytes of it, and ``options.vram`` of each GPU, are taken beside the tensors.

    Raises:
        BudgetError:  a budget is too small; the message says how much is needed.
        FastmergeError: a GPU was asked for and cannot be used.
        ValueError:   the method cannot merge the values of a tensor.
    """
    tensors = _HostTensors(merge, [name for name in names if merge.targets[name].numel()])
    outputs = tensors.outputs
    target, sizes = feasible(outputs, options)
    if isinstance(target, Host):
        return False

    def make_units(context: RunContext) -> Iterator[Unit]:
        return units(context, [knowing(output, found) for output in outputs])

    meter = Meter()
    try:
        found = take_all(outputs, target, sizes, tensors, meter, _nothing, strips=False)
        work(make_units, target, sizes, tensors, tensors, meter, _nothing)
    except Refused as error:
        cause = error.__cause__
        raise ValueError(cause.reason if isinstance(cause, Suspect) else str(error)) from error
    return True


def _nothing() -> None:
    """What is done meanwhile."""


class _HostTensors(InputFiles):
    """Tensors in place of files: each input is a file, and what is written at a place goes to the target there."""

    def __init__(self, merge: Prepared, names: Sequence[str]):
        super().__init__(())
        self.outputs: list[OutputTensor] = []
        self._targets: list[Tensor] = []
        self._bytes: dict[str, Tensor] = {}
        offset = 0
        for name in names:
            target, inputs = merge.targets[name], merge.inputs[name]
            stored = inputs.like([self._input(name, number, tensor) for number, tensor in enumerate(inputs.every)])
            group = merge.configured.group(name, target.shape)
            self.outputs.append(
                OutputTensor(
                    name, dtype_of(target.dtype), tuple(target.shape), 0, offset, target.nbytes,
                    merge.configured.method.name, stored, group,
                )
            )  # fmt: skip
            self._targets.append(_bytes(target))
            offset = round_up(offset + target.nbytes, _ALIGNED)
        self._starts = [output.offset for output in self.outputs]
        self._shared = _overlapping(self._bytes)

    def _input(self, name: str, number: int, tensor: Tensor) -> InputTensor:
        path = f"{number}/{name}"
        self._bytes[path] = _bytes(tensor)
        return InputTensor(number, name, path, 0, tensor.nbytes, dtype_of(tensor.dtype), tuple(tensor.shape))

    def memory(self, path: str, offset: int, nbytes: int) -> memoryview | None:
        """As of files. Nobody locks pages that another one unlocks."""
        if path in self._shared:
            return None
        return self._bytes[path][offset : offset + nbytes].numpy().data

    def read(self, path: str, offset: int, into: memoryview) -> None:
        """As of files."""
        if len(into):
            torch.frombuffer(into, dtype=torch.uint8).copy_(self._bytes[path][offset : offset + len(into)])

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        """As ``engine.context.Sink.write``: the targets that lie side by side from ``offset`` on."""
        done = 0
        while done < len(data):
            at = bisect.bisect_right(self._starts, offset + done) - 1
            start = offset + done - self._starts[at]
            part = self._targets[at][start : start + len(data) - done]
            part.copy_(torch.frombuffer(data[done : done + len(part)], dtype=torch.uint8))
            done += len(part)

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        """Nobody asks for checksums."""


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1).view(torch.uint8)


def _overlapping(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return those that share memory with another one."""
    found: set[str] = set()
    reach, last = 0, ""
    for start, path in sorted((tensor.data_ptr(), path) for path, tensor in tensors.items() if len(tensor)):
        if start < reach:
            found |= {path, last}
        if (end := start + len(tensors[path])) > reach:
            reach, last = end, path
    return found
