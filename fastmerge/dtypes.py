"""Types of elements by name and size, for all that reads headers and plans without loading torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """A type of elements; there is one object of each.

    Attributes:
        name:              torch's, without its module: ``bfloat16``.
        itemsize:          bytes of one element.
        is_floating_point: as torch has it; complex numbers are not.
    """

    name: str
    itemsize: int
    is_floating_point: bool = False

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _named, (self.name,)

    @property
    def is_complex(self) -> bool:
        return self.name.startswith("complex")

    @property
    def torch(self) -> torch.dtype:
        """The same type of torch, which is loaded for it; AttributeError where this torch does not have it."""
        import torch

        return getattr(torch, self.name)


float64 = DType("float64", 8, True)
float32 = DType("float32", 4, True)
float16 = DType("float16", 2, True)
bfloat16 = DType("bfloat16", 2, True)
float8_e4m3fn = DType("float8_e4m3fn", 1, True)
float8_e5m2 = DType("float8_e5m2", 1, True)
float8_e4m3fnuz = DType("float8_e4m3fnuz", 1, True)
float8_e5m2fnuz = DType("float8_e5m2fnuz", 1, True)
float8_e8m0fnu = DType("float8_e8m0fnu", 1, True)
float4_e2m1fn_x2 = DType("float4_e2m1fn_x2", 1, True)
int64 = DType("int64", 8)
int32 = DType("int32", 4)
int16 = DType("int16", 2)
int8 = DType("int8", 1)
uint64 = DType("uint64", 8)
uint32 = DType("uint32", 4)
uint16 = DType("uint16", 2)
uint8 = DType("uint8", 1)
bool_ = DType("bool", 1)
complex64 = DType("complex64", 8)

ALL = {kind.name: kind for kind in list(globals().values()) if isinstance(kind, DType)}
"""Every type by its name."""


def _named(name: str) -> DType:
    return ALL[name]


def dtype_of(dtype: torch.dtype | DType) -> DType:
    """Return a type of torch as one of these; KeyError for one that no checkpoint holds."""
    return dtype if isinstance(dtype, DType) else ALL[str(dtype).removeprefix("torch.")]


def promoted(dtypes: Iterable[DType]) -> DType:
    """Return the narrowest type that holds every value of each, as ``torch.promote_types`` does.

    Raises:
        ValueError: several types, not all of them float16, bfloat16, float32 or float64.
    """
    kinds = set(dtypes)
    if len(kinds) == 1:
        return kinds.pop()
    if not kinds or kinds - _WIDTHS.keys():
        raise ValueError(f"no one type stands for {', '.join(sorted(map(str, kinds))) or 'nothing'}")
    widest = max(kinds, key=lambda kind: _WIDTHS[kind])
    return float32 if kinds == {float16, bfloat16} else widest


_WIDTHS = {float16: 16, bfloat16: 16, float32: 32, float64: 64}
