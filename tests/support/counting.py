"""A device that counts what it is asked for, and computes on the CPU: launches, waits of the host, bytes, products."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import split_pieces
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# They read nothing of what they are like; and these make a view, or room, and launch nothing.
LIKE = {"new_zeros", "ones_like"}
FREE = {"empty", "empty_like", "new_empty", "empty_strided"}


@dataclass
class Counts:
    """Attributes:
    launches: operations that are no view, each counted as one kernel.
    waits:    results that the host asked for.
    bytes:    that the operations read and wrote, each operand once.
    products: shape (batch, rows, terms, columns) and symmetry of split products, and how many there were.
    searches: of largest elements and other norms, shape of what was read, and how many there were.
    """

    launches: int = 0
    waits: int = 0
    bytes: int = 0
    products: collections.Counter = field(default_factory=collections.Counter)
    searches: collections.Counter = field(default_factory=collections.Counter)

    def launch(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        view = any(
            out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for out in outputs for x in inputs
        )
        if name not in FREE and (name.endswith("_") or not view):
            self.launches += 1
            if name == "linalg_vector_norm":
                self.searches[tuple(inputs[0].shape)] += 1
            moved = outputs if name in LIKE else inputs + outputs
            self.bytes += sum(x.numel() * x.element_size() for x in {id(x): x for x in moved}.values())


class Counted(Tensor):
    """A tensor of the device, which says that it is on ``meta``."""

    counts: Counts
    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, counts: Counts) -> Counted:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=torch.device("meta")
        )
        made.inner, made.counts = inner, counts
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        options = dict(options or {})
        (counts, *_) = (leaf.counts for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Counted))
        downloads = operation._schema.name == "aten::_to_copy" and str(options.get("device")) == "cpu"
        if "device" in options:
            options["device"] = torch.device("cpu")
        inputs = tree_map(lambda x: x.inner if isinstance(x, Counted) else x, (arguments, options))
        result = operation(*inputs[0], **inputs[1])
        if downloads:
            counts.waits += 1
            return result
        tensors = [[x for x in tree_leaves(values) if isinstance(x, Tensor)] for values in (inputs, result)]
        counts.launch(operation._schema.name.split("::")[1], *tensors)
        if isinstance(arguments[0], Counted) and result is arguments[0].inner:
            return arguments[0]
        return tree_map(lambda x: Counted(x, counts) if isinstance(x, Tensor) else x, result)


def _asked(name: str) -> Callable:
    def ask(self: Counted, *arguments):
        self.counts.waits += 1
        return getattr(self.inner, name)(*arguments)

    return ask


for _name in ("tolist", "item", "__bool__", "__float__", "__int__"):
    setattr(Counted, _name, _asked(_name))


@contextlib.contextmanager
def counting_device(split_product) -> Iterator[tuple[Callable[[Tensor], Tensor], Counts]]:
    """Yield what puts a tensor on the device, and its counts; its split products replace those of ``split_product``."""
    move, counts = Tensor.to, Counts()

    def to(self: Tensor, target, *arguments):
        dtype = target.dtype if isinstance(target, Counted) else None
        there = dtype or target == torch.device("meta")
        if not there or isinstance(self, Counted):
            return move(self, dtype or target, *arguments)
        counts.launches += 1  # an upload
        return Counted(move(self, dtype) if dtype else self, counts)

    def split(x: Counted, largest: Counted):
        pieces, unit = split_pieces.split(x.inner, largest.inner)
        counts.launch("split", [x.inner], list(pieces))
        return tuple(Counted(piece, counts) for piece in pieces), Counted(unit, counts)

    def product(a, b, units, shape, chunk, symmetric, alpha=1.0, beta=0.0, plus=None, largest=None):
        inner = [tuple(piece.inner for piece in pieces) for pieces in (a, b, units)]
        rest = [None if x is None else x.inner for x in (plus, largest)]
        result = split_pieces.product(*inner, shape, chunk, symmetric, alpha, beta, *rest)
        counts.products[(*a[0].shape, shape[1], symmetric)] += 1
        counts.launch("product", [x.inner for x in (*a, *b, *([] if plus is None else [plus]))], [result])
        return Counted(result, counts)

    with mock.patch.multiple(split_product, split=split, product=product), mock.patch.object(Tensor, "to", to):
        yield lambda x: Counted(x, counts), counts
