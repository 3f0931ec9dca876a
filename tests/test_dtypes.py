"""Types of elements are those of torch."""

from __future__ import annotations

import copy
import itertools
import pickle

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


def test_there_is_one_object_of_each_type() -> None:
    for kind in dtypes.ALL.values():
        assert pickle.loads(pickle.dumps(kind)) is kind and copy.deepcopy(kind) is kind


def test_the_type_that_holds_the_values_of_all_is_that_of_torch() -> None:
    floats = (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64)
    for some in itertools.product(floats, repeat=2):
        assert dtypes.promoted(some).torch == torch.promote_types(*(kind.torch for kind in some))
    assert dtypes.promoted(floats) is dtypes.float64 and dtypes.promoted([dtypes.int8]) is dtypes.int8
    with pytest.raises(ValueError, match="no one type stands for float32, int8"):
        dtypes.promoted([dtypes.float32, dtypes.int8])
    with pytest.raises(ValueError, match="nothing"):
        dtypes.promoted([])
