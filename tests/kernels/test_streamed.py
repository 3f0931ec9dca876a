"""Operations on what files hold: the bits of the operation on tensors, checksums of all that passed, or nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xxhash
from kernel_cases import FLOATS, extension_settings, same_bits

from fastmerge import kernels
from fastmerge.dtypes import dtype_of
from fastmerge.kernels import MergeJob, Stored, Strip, SumJob, as_strip, keep_all, keep_random

native = pytest.importorskip("fastmerge._C")
CELL = 64
SIZE = 3 * CELL + 5
PREFIX = 6  # bytes before the elements


def strip_of(tensor):
    """Return a strip on a copy of a tensor."""
    memory = as_strip(tensor.clone().view(torch.uint8).numpy())
    return Strip(memory._memory, 0, dtype_of(tensor.dtype), tuple(tensor.shape))


def cells(tensor):
    data, step = tensor.view(torch.uint8).numpy(), CELL * tensor.itemsize
    return b"".join(xxhash.xxh3_64_digest(data[at : at + step]) for at in range(0, len(data), step))


class Files:
    """Tensors in files, each read through memory of one cell."""

    def __init__(self, folder, tensors, finite=False):
        self.files = [open(folder / str(i), "w+b") for i in range(len(tensors))]  # noqa: SIM115
        for file, tensor in zip(self.files, tensors, strict=True):
            file.write(bytes(PREFIX) + tensor.view(torch.uint8).numpy().tobytes())
            file.flush()
        self.sources = [Stored(file.fileno(), PREFIX, finite) for file in self.files]
        buffers = [as_strip(np.zeros(CELL * tensor.itemsize, np.uint8)) for tensor in tensors]
        self.strips = [
            Strip(buffer._memory, 0, dtype_of(tensor.dtype), tuple(tensor.shape))
            for buffer, tensor in zip(buffers, tensors, strict=True)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self.files:
            file.close()


def result(strip, dtype):
    return torch.frombuffer(bytearray(strip.memory()), dtype=dtype)


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_bits_are_those_of_the_operation(isa, dtype, tmp_path, generator):
    base, *tensors = (torch.randn(SIZE, generator=generator).to(kind) for kind in FLOATS)
    out = torch.empty(SIZE, dtype=dtype)
    merge = {"factors": [0.7, -0.4], "keeps": [keep_random(7, 0, 1 << 31), keep_all()], "vote": "sum", "offset": CELL}
    with extension_settings(isa, 1), Files(tmp_path, [base, *tensors]) as files:
        for job, run in (
            (lambda o, b, t: SumJob(o, [b, *t], [0.5, 0.25, 0.125]), lambda j: kernels.weighted_sum(*j)),
            (lambda o, b, t: MergeJob(o, b, t, **merge), lambda j: kernels.sparse_merge_many([j])),
        ):
            run(job(out, base, tensors))
            made = strip_of(torch.zeros_like(out))
            digests = kernels.streamed(job(made, files.strips[0], files.strips[1:]), files.sources, CELL, True)
            assert same_bits(result(made, dtype), out)
            assert digests == [*map(cells, (base, *tensors)), cells(out)]
            # The base in a file, the others in memory.
            made, held = strip_of(torch.zeros_like(out)), [*map(strip_of, tensors)]
            sources = [files.sources[0], Stored(), Stored()]
            digests = kernels.streamed(job(made, files.strips[0], held), sources, CELL, True)
            assert same_bits(result(made, dtype), out) and digests == [cells(base), b"", b"", cells(out)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_declined_where_it_has_to_be(dtype, tmp_path):
    tensor = torch.ones(SIZE, dtype=dtype)
    tensor[2 * CELL + 1] = math.nan
    for look, finite in ((False, False), (True, False), (False, True)):
        out = strip_of(torch.zeros(SIZE, dtype=dtype))
        with Files(tmp_path, [tensor], look) as files:
            found = kernels.streamed(SumJob(out, files.strips, [1.0]), files.sources, CELL, finite)
        assert (found is None) == (look or finite)


def test_a_file_that_ends_too_early_is_declined(tmp_path):
    with Files(tmp_path, [torch.ones(SIZE)]) as files:
        files.files[0].truncate(PREFIX + 4 * SIZE - 1)
        out = strip_of(torch.zeros(SIZE))
        assert kernels.streamed(SumJob(out, files.strips, [1.0]), files.sources, CELL, True) is None


def test_wrong_arguments_are_refused():
    one = strip_of(torch.ones(SIZE))
    with pytest.raises(ValueError, match="sources: expected one per input"):
        kernels.streamed(SumJob(one, [one], [1.0]), [], CELL, True)
    with pytest.raises(ValueError, match="cell: expected at least one element"):
        kernels.streamed(SumJob(one, [one], [1.0]), [Stored()], 0, True)
    with pytest.raises(ValueError, match="weights has 2 values"):
        kernels.streamed(SumJob(one, [one], [1.0, 2.0]), [Stored()], CELL, True)
