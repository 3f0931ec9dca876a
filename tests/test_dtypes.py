"""Types of elements are those of torch."""

from __future__ import annotations

import pytest
import torch

from fastmerge import dtypes


@pytest.mark.parametrize("kind", dtypes.ALL.values(), ids=str)
def test_types_are_those_of_torch(kind: dtypes.DType) -> None:
    own = kind.torch
    assert (own.itemsize, own.is_floating_point) == (kind.itemsize, kind.is_floating_point)
    assert dtypes.dtype_of(own) is kind and dtypes.dtype_of(kind) is kind


def test_types_that_no_checkpoint_holds_are_refused() -> None:
    with pytest.raises(KeyError, match="complex128"):
        dtypes.dtype_of(torch.complex128)
