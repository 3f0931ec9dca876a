"""The compiled extension itself: settings, threads, errors, and its arithmetic compiled for scalars as nvcc does."""

import ctypes
import math
import os
import shutil
import subprocess
import threading
from array import array
from pathlib import Path

import pytest
import torch
from kernel_cases import FLOATS, extension_settings, same_bits

from fastmerge import kernels
from fastmerge.kernels import GRID, SumJob, _native

native = pytest.importorskip("fastmerge._C")
SOURCES = Path(__file__).resolve().parents[2] / "csrc"


def all_patterns(dtype):
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


def float32_patterns(generator):
    """Random bit patterns, and every float16 and bfloat16 with the neighbourhood of its ties."""
    random = torch.randint(-(2**31), 2**31, (200_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    exact = torch.cat([all_patterns(dtype).float().view(torch.int32) for dtype in FLOATS[1:]])
    steps = torch.tensor([0, 1, -1, 0x7FFF, 0x8000, 0x8001, 0xFFF, 0x1000, 0x1001])
    return torch.cat([random, (exact[:, None] + steps).flatten().to(torch.int32)]).view(torch.float32)


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_conversions(isa, dtype, generator):
    with extension_settings(isa, 1):
        wide = torch.empty(2**16)
        kernels.weighted_sum(wide, [all_patterns(dtype)], [1.0], backend="cpu")
        assert same_bits(wide, all_patterns(dtype).float())
        values = float32_patterns(generator)
        narrow = torch.empty(values.numel(), dtype=dtype)
        kernels.weighted_sum(narrow, [values], [1.0], backend="cpu")
        assert same_bits(narrow, values.to(dtype))


def test_instruction_sets_are_chosen_by_name():
    assert native.available_isas()[0] == "baseline"
    assert native.isa() == native.available_isas()[-1]
    with extension_settings("baseline", 1):
        assert native.isa() == "baseline"
    with pytest.raises(ValueError, match="isa is 'avx1024'; expected one of auto, baseline"):
        native.set_isa("avx1024")


def test_threads_are_set_and_checked():
    with extension_settings("auto", 3):
        assert native.get_threads() == 3
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"):
        native.set_threads(0)


def test_rows_of_the_wrong_length_raise():
    out = torch.zeros(3)
    ints, floats = _native.sums([SumJob(out, [out], [1.0])])
    for lacking in ints[:-1], ints + ints[:2]:
        with pytest.raises(ValueError, match="arguments: numbers are missing"):
            native.weighted_sum(lacking, floats)
    with pytest.raises(ValueError, match="arguments: numbers are missing"):
        native.weighted_sum(ints, floats[:0])
    with pytest.raises(ValueError, match="arguments: more scalars than jobs take"):
        native.weighted_sum(ints, floats * 2)
    with pytest.raises(ValueError, match="arguments: expected numbers of 4 bytes"):
        native.weighted_sum(ints, array("d", floats))
    with pytest.raises(ValueError, match="expected at least one tensor"):
        native.gram(out.data_ptr(), [3, 0, 0, 0])
    keep = _native.rules([kernels.keep_all()])
    with pytest.raises(ValueError, match="keeps: expected one per tensor"):
        native.norms(out.data_ptr(), _native.arrays([out], None), keep * 2, 2, 0)


def test_an_extension_of_other_sources_is_refused(monkeypatch):
    assert _native.why_outdated(native) is None
    monkeypatch.setattr(native, "interface", 0)
    assert _native.why_outdated(native) == (
        "the extension fastmerge._C was built from other sources than kernels/; build it again, in a checkout with: "
        "python setup.py build_ext --inplace"
    )


def test_several_python_threads_at_a_time(generator):
    """Calls share the pool; each returns its own result."""
    tensors = [torch.randn(40 * GRID + 5, generator=generator) for _ in range(3)]
    expected = [torch.empty_like(t) for t in tensors]
    for out, tensor in zip(expected, tensors, strict=True):
        kernels.weighted_sum(out, [tensor, tensors[0]], [0.3, 0.7], backend="reference")
    wrong = []

    def work(k):
        for _ in range(20):
            out = torch.empty_like(tensors[k])
            kernels.weighted_sum(out, [tensors[k], tensors[0]], [0.3, 0.7], backend="cpu")
            if not torch.equal(out, expected[k]):
                wrong.append(k)

    with extension_settings("auto", 3):
        workers = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_its_own_pool():
    tensor, out = torch.ones(40 * GRID), torch.zeros(40 * GRID)
    with extension_settings("auto", 2):
        kernels.weighted_sum(out, [tensor], [2.0], backend="cpu")
        child = os.fork()
        if child == 0:
            kernels.weighted_sum(out, [tensor], [3.0], backend="cpu")
            # NumPy compares: torch's own thread pool does not survive a fork.
            os._exit(0 if bool((out.numpy() == 3).all()) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


SCALAR = r"""
#include "exact_sum.h"
#include "fastmerge_math.h"
using namespace fastmerge;
extern "C" void scalar(float* out, const float* base, const float* const* tensors, int count, const float* factors,
                       std::int64_t threshold, std::int64_t break_index, int vote, int divides, std::size_t n) {
  const MergeScalars s{factors, factors, 0.7f, 1.0f, divides != 0};
  for (std::size_t i = 0; i < n; ++i) {
    const auto fetch = [&](int k) {
      const float delta = tensors[k][i] - base[i];
      return Part<float, bool>{delta, magnitude_bits(delta) > threshold_at(threshold, break_index, i)};
    };
    switch (vote) {
      case 0: out[i] = sparse_merge_element<0>(base[i], count, s, fetch); break;
      case 1: out[i] = sparse_merge_element<1>(base[i], count, s, fetch); break;
      case 2: out[i] = sparse_merge_element<2>(base[i], count, s, fetch); break;
      default: out[i] = sparse_merge_element<3>(base[i], count, s, fetch);
    }
  }
}
extern "C" void narrow(std::uint16_t* bfloat16, std::uint16_t* float16, const float* x, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    bfloat16[i] = static_cast<std::uint16_t>(to_bfloat16_high(x[i]) >> 16);
    float16[i] = static_cast<std::uint16_t>(to_float16(x[i]));
  }
}
// Carries after every third number.
extern "C" double exact(const double* values, std::size_t n) {
  ExactSum<3> sum;
  for (std::size_t i = 0; i < n; ++i) sum.add(values[i]);
  return sum.rounded();
}
extern "C" void philox(std::uint64_t* counter, std::uint64_t key) {
  std::uint64_t words[4] = {counter[0], counter[1], counter[2], counter[3]};
  philox4x32(words, key);
  for (int i = 0; i < 4; ++i) counter[i] = words[i] & 0xFFFFFFFFu;
}
"""


@pytest.fixture(scope="module")
def scalar(tmp_path_factory):
    """The arithmetic header, compiled for scalars."""
    compiler = shutil.which("g++")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("needs g++ and the sources")
    folder = tmp_path_factory.mktemp("scalar")
    (folder / "scalar.cpp").write_text(SCALAR)
    command = [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCES}", "scalar.cpp"]
    subprocess.run([*command, "-o", "scalar.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "scalar.so"))


def test_scalars_merge_like_the_reference(scalar, generator):
    numel = 2000
    base = 0.02 * torch.randn(numel, generator=generator)
    tensors = [base + 0.01 * torch.randn(numel, generator=generator) for _ in range(3)]
    tensors[1][7] = float("nan")
    factors = [0.5, -0.25, 1.0]
    [[boundary]] = kernels.select_boundaries(tensors[:1], base, [[numel // 2]])
    addresses = (ctypes.c_void_p * 3)(*(t.data_ptr() for t in tensors))
    for vote, name in enumerate(("none", "weighted", "sum", "count")):
        for divides in (0, 1):
            divide = "weights" if divides and vote else "none"
            expected, out = torch.empty(numel), torch.empty(numel)
            kernels.sparse_merge(
                expected, base, tensors, factors=factors, keeps=[kernels.keep_top(boundary)] * 3, vote=name,
                divide=divide, scale=0.7, backend="reference",
            )  # fmt: skip
            scalar.scalar(
                ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(base.data_ptr()), addresses, 3,
                (ctypes.c_float * 3)(*factors), ctypes.c_int64(boundary.threshold),
                ctypes.c_int64(boundary.break_index), vote, divides, ctypes.c_size_t(numel),
            )  # fmt: skip
            assert same_bits(out, expected), (name, divide)


def test_scalars_round_like_torch(scalar, generator):
    values = float32_patterns(generator)
    outs = [torch.empty(values.numel(), dtype=dtype) for dtype in FLOATS[1:]]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*outs, values)]
    scalar.narrow(*pointers, ctypes.c_size_t(values.numel()))
    for out in outs:
        assert same_bits(out, values.to(out.dtype))


def test_exact_sums_carry(scalar, generator):
    scalar.exact.restype = ctypes.c_double
    for scale in (1.0, 2.0**1000, 2.0**-1074):
        values = torch.randn(1000, generator=generator, dtype=torch.float64) * scale
        values = torch.cat([values, values.abs(), -values.abs()])
        found = scalar.exact(ctypes.c_void_p(values.data_ptr()), ctypes.c_size_t(len(values)))
        assert found == math.fsum(values.tolist())


def test_scalars_draw_like_the_reference(scalar):
    counter = torch.tensor([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344])
    key = 0x299F31D0A4093822
    expected = kernels.philox.philox4x32(counter, key)
    scalar.philox(ctypes.c_void_p(counter.data_ptr()), ctypes.c_uint64(key))
    assert torch.equal(counter, expected)
