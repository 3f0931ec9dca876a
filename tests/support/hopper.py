"""Hopper's asynchronous copies and products, in Triton's interpreter: what Gluon adds to Triton, played in order.

A tile holds nothing between the beginning of a copy and the wait for its barrier. It may not be overwritten before a
wait for the products that read it, and a sum may not be read before. Each of these, a barrier that is waited for too
early, and a wrong count of bytes, is an error here, where a GPU would return wrong numbers or hang.
"""

from __future__ import annotations

import types

import numpy as np
import triton.language as tl
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.runtime.interpreter import InterpretedFunction, TensorHandle


class Tile:
    """A tile in shared memory, or the transpose of one, or several of them."""

    def __init__(self, count: int = 0):
        self.parts = [Tile() for _ in range(count)]
        self.value, self.readers, self.base, self.coming, self.expected, self.phase = None, 0, self, [], 0, 0

    def index(self, index) -> Tile:
        return self.parts[number(index)]

    def permute(self, order) -> Tile:
        turned = Tile()
        assert list(map(number, order)) == [1, 0] and self.value is not None, "a tile is read before it has come"
        turned.value, turned.base = tl.trans(self.value), self.base
        return turned


def number(x) -> int:
    """Return a scalar of the interpreter as a number."""
    x = getattr(x, "value", x)
    return int(x.handle.data.item()) if isinstance(x, tl.tensor) else int(x)


class Descriptor:
    """A matrix and the tiles of it that copies bring; what lies outside is zero."""

    def __init__(self, matrix, shape, strides, block_shape, layout):
        assert matrix.stride() == tuple(strides) == (shape[1], 1) and matrix.shape == tuple(shape)
        self.matrix, self.block_shape, self.layout = matrix.numpy(), block_shape, layout

    def load(self, place) -> tl.tensor:
        tile = np.zeros(self.block_shape, np.float16)
        part = self.matrix[tuple(slice(at, at + size) for at, size in zip(place, self.block_shape, strict=True))]
        tile[tuple(map(slice, part.shape))] = part
        return tl.tensor(TensorHandle(tile, tl.float16), tl.block_type(tl.float16, self.block_shape))


class Hopper:
    """Plays ``hopper_product``'s module: patch its names with ``names``."""

    def __init__(self):
        # Products that nobody has waited for: the tiles that each reads.
        self.pending: list[list[Tile]] = []

    def copy(self, descriptor, place, barrier, tile, go=True):
        if number(go):
            assert not tile.readers, "a tile is overwritten while products read it"
            tile.value = None
            barrier.coming.append((tile, descriptor.load([number(at) for at in place])))

    def expect(self, barrier, size, go=True):
        if number(go):
            assert not barrier.coming and not barrier.expected, "two copies for one phase of a barrier"
            barrier.expected = number(size)

    def wait_for_copy(self, barrier, phase):
        size = sum(2 * int(np.prod(value.handle.data.shape)) for _, value in barrier.coming)
        assert number(phase) == barrier.phase, "a wait for another phase"
        assert size == barrier.expected > 0, f"{size} bytes come, {barrier.expected} are expected"
        for tile, value in barrier.coming:
            tile.value = value
        barrier.coming, barrier.expected, barrier.phase = [], 0, 1 - barrier.phase

    def multiply(self, a, b, acc, use_acc=True, is_async=False):
        assert number(is_async) and a.value is not None and b.value is not None, "a tile is read before it has come"
        for tile in (a.base, b.base):
            tile.readers += 1
        self.pending.append([a.base, b.base])
        return Sum(tl.dot(a.value, b.value, acc.value if number(use_acc) else None))

    def wait_for_products(self, left, deps):
        while len(self.pending) > number(left):
            for tile in self.pending.pop(0):
                tile.readers -= 1
        return deps[0] if self.pending else deps[0].value

    def names(self, module) -> dict[str, object]:
        """Return what to put in place of the module's names."""
        gl = types.SimpleNamespace(
            allocate_shared_memory=lambda dtype, shape, layout: Tile(number(shape[0])),
            NVMMASharedLayout=NVMMASharedLayout, NVMMADistributedLayout=lambda **layout: None,
            SliceLayout=lambda *layout: None,
            static_range=range, zeros=lambda shape, dtype, layout: tl.zeros(shape, dtype),
            arange=lambda start, end, layout: tl.arange(start, end),
            # Looked up late: the interpreter replaces them.
            **{name: lambda *given, of=name, **named: getattr(tl, of)(*given, **named) for name in (
                "program_id", "minimum", "load", "store", "where", "max", "atomic_max",
            )},
            **{name: getattr(tl, name) for name in ("constexpr", "float16", "float32", "int32", "int64")},
        )  # fmt: skip
        barriers = types.SimpleNamespace(
            MBarrierLayout=lambda: None, init=lambda barrier, count: None, invalidate=lambda barrier: None,
            expect=self.expect, wait=self.wait_for_copy,
        )  # fmt: skip
        return {
            "tl": tl, "gl": gl, "mbarrier": barriers, "TensorDescriptor": Descriptor,
            "tma": types.SimpleNamespace(async_copy_global_to_shared=self.copy),
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.wait_for_products,
            "warpgroup_mma_init": lambda value: value if isinstance(value, Sum) else Sum(value),
            "_fetch": interpreted(module._fetch.fn),
            "_hopper_product_kernel": interpreted(module._hopper_product_kernel.fn),
        }  # fmt: skip


def interpreted(function) -> InterpretedFunction:
    """Return a function of Gluon as one of Triton's interpreter, which knows constants by Triton's name alone."""
    made = InterpretedFunction(function)
    rewritten = made.rewrite()
    rewritten.__annotations__ = {name: kind.replace("gl.", "tl.") for name, kind in rewritten.__annotations__.items()}
    return made


class Sum:
    """A sum that products in flight may still write."""

    def __init__(self, value):
        self.value = value
