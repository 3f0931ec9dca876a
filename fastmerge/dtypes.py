"""Types of elements by name and size, for all that reads headers and plans without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """A type of elements.

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


def dtype_of(dtype: torch.dtype | DType) -> DType:
    """Return a type of torch as one of these; KeyError for one that no checkpoint holds."""
    return dtype if isinstance(dtype, DType) else ALL[str(dtype).removeprefix("torch.")]
