"""Parts: between tensors that are sharded over a mesh (DTensor) and the local parts that are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InvalidInput, Problem
from ..methods import Configured
from ..steps.inputs import Inputs
from .tensors import dimensions_of, is_sharded, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..steps.shards import Layout, Ranks, ShardJob

Named = Mapping[str, Mapping[str, Any]]
"""State dicts by what they are called in messages."""


@dataclass(frozen=True)
class Prepared:
    """What is to be merged, checked: local parts.

    Attributes:
        configured: the method and its parameters.
        inputs:     of the float tensors, by name.
        targets:    what is written, by name; without those that are tied and new.
        copies:     the tensors of other dtypes, by name.
        tied:       names that are another name's tensor in every input, and that name.
        options:    what else all ranks must have alike, as text.
    """

    configured: Configured
    inputs: Mapping[str, Inputs[Tensor]]
    targets: Mapping[str, Tensor]
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()

    def copy(self) -> None:
        """Copy what is not merged."""
        for name, tensor in self.copies.items():
            self.targets[name].copy_(tensor)


def options_of(configured: Configured, has_base: bool) -> list[str]:
    """Return what all ranks must be told alike, as text."""
    models = f"{configured.models} models with{'' if has_base else 'out'} a base"
    values = {name: configured.values[name] for name in sorted(configured.values)}
    return [
        f"by method {configured.method.name} ({configured.semantics})", models, f"with seed {configured.seed}",
        f"with parameters {values}",
    ]  # fmt: skip


class Parts:
    """The local parts of sharded tensors, and the way back."""

    def __init__(self, mesh: DeviceMesh, ranks: Ranks):
        self._mesh, self._ranks = mesh, ranks
        # The tensors of the first input, which the others are compared with.
        self.like: Mapping[str, Any] = {}
        # Many tensors of a model are alike.
        self._layouts: dict[Any, Layout] = {}
        self._meshes: dict[DeviceMesh, tuple[int, ...] | None] = {}

    def localized(self, given: Named, out: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the local parts of all state dicts; InvalidInput where they are not placed alike."""
        first, self.like = next(iter(given.items()), ("models", {}))
        problems = []
        states = dict(given) if out is None else {**given, "out": out}
        for label, state in states.items():
            for name, tensor in state.items() if isinstance(state, Mapping) else ():
                if name in self.like and isinstance(tensor, Tensor):
                    where, like_where = f"{label}[{name!r}]", f"{first}[{name!r}]"
                    problems += self._problems(where, tensor, like_where, self.like[name])
        if problems:
            raise InvalidInput(problems)
        local = {label: _local(state) for label, state in states.items()}
        return {label: local[label] for label in given}, local.get("out")

    def _problems(self, where: str, tensor: Any, like_where: str, like: Any) -> list[Problem]:
        if not is_sharded(tensor):
            if not is_sharded(like):
                return []  # a buffer, as FSDP leaves them: a copy of every rank
            remedy = "distribute it over the mesh too, with distribute_tensor"
            return [Problem(where, f"is a plain tensor, {like_where} is sharded (DTensor)", remedy)]
        if self._dimensions(tensor.device_mesh) is None:
            remedy = "use one mesh, or lines and planes of it"
            return [Problem(where, f"is sharded over {tensor.device_mesh}, others over {self._mesh}", remedy)]
        unknown = [placement for placement in tensor.placements if _split(placement) is _UNKNOWN]
        if unknown:
            return [Problem(where, f"has placement {unknown[0]}; expected shards or replicas", "call .redistribute")]
        if not is_sharded(like):
            return [Problem(where, f"is sharded (DTensor), {like_where} is a plain tensor", "distribute both")]
        if tensor.device_mesh != like.device_mesh:
            what = f"is sharded over {tensor.device_mesh}, {like_where} over {like.device_mesh}"
            return [Problem(where, what, "call .redistribute")]
        if tensor.shape != like.shape:
            return [Problem(where, f"has shape {tuple(tensor.shape)}, {like_where} has {tuple(like.shape)}")]
        if tuple(tensor.placements) != tuple(like.placements):
            what = f"has placements {tuple(tensor.placements)}, {like_where} has {tuple(like.placements)}"
            return [Problem(where, what, "call .redistribute")]
        expected = self._layout(tensor).part_shape(self._ranks.position)
        if tuple(tensor.to_local().shape) != expected:
            what = f"has a local part of shape {tuple(tensor.to_local().shape)}; its placements give {expected}"
            return [Problem(where, what, "make it with distribute_tensor or fully_shard")]
        return []

    def _layout(self, tensor: Any) -> Layout:
        from ..steps.shards import Layout

        # What a tensor lies on no line of, holds copies of it.
        cuts: dict[int, Any] = {}
        if is_sharded(tensor) and (dims := self._dimensions(tensor.device_mesh)) is not None:
            cuts = dict(zip(dims, map(_split, tensor.placements), strict=True))
        shape, splits = tuple(tensor.shape), tuple(cuts.get(dim) for dim in range(self._mesh.ndim))
        if (shape, splits) not in self._layouts:
            self._layouts[shape, splits] = Layout(shape, self._ranks.shape, splits, self._ranks.position)
        return self._layouts[shape, splits]

    def _dimensions(self, mesh: DeviceMesh) -> tuple[int, ...] | None:
        """Return which dimensions of the mesh a tensor's own has."""
        if mesh not in self._meshes:
            self._meshes[mesh] = dimensions_of(mesh, self._mesh)
        return self._meshes[mesh]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return tuple(self.like[name].shape)

    def placements(self, name: str) -> str:
        """Return how a tensor lies on the mesh, or on a part of it."""
        like = self.like[name]
        if not is_sharded(like):
            return "plain"
        dims = self._dimensions(like.device_mesh)
        return f"{tuple(like.placements)}{'' if len(dims or ()) == self._mesh.ndim else f' on its dimensions {dims}'}"

    def job(self, prepared: Prepared, name: str, inputs: Inputs[Tensor]) -> ShardJob:
        """Return the job of this rank's part of a tensor."""
        from ..steps.shards import ShardJob

        group = prepared.configured.group(name, self.shape(name))
        layout = self._layout(self.like[name])
        return ShardJob(prepared.configured.method, group, inputs, prepared.targets[name], layout)


_UNKNOWN = object()


def _split(placement: Any) -> Any:
    """Return (dimension, pieces) of a shard, None of a replica, else ``_UNKNOWN``; see ``layout.Split``."""
    if placement.is_replicate():
        return None
    kind = type(placement).__name__
    if kind == "_StridedShard":
        return placement.dim, placement.split_factor
    return (placement.dim, 1) if kind == "Shard" else _UNKNOWN


def _local(state: Any) -> Any:
    if not isinstance(state, Mapping):
        return state
    return {name: local(tensor) for name, tensor in state.items()}
