"""What methods share that look at angles: of whole tensors, or of their vectors along a dimension."""

from __future__ import annotations

from abc import abstractmethod

from ..steps.method import Group, Method
from ..steps.rows import Rows


class ByRows(Method):
    """A method that takes a tensor as one vector, which strips do for, or by rows, which come whole."""

    on_strips = True

    @abstractmethod
    def rows(self, group: Group) -> Rows | None:
        """Return the vectors that have an angle of their own; None where the whole tensor is one."""

    def takes_strips(self, group: Group) -> bool:
        return self.rows(group) is None

    def scratch_bytes(self, group: Group) -> int | None:
        rows = self.rows(group)
        return None if rows is None else rows.scratch_bytes(group.models)

    def apart(self, group: Group) -> range:
        rows = self.rows(group)
        return range(0) if rows is None or rows.inner > 1 else range(len(group.shape) - 1)
