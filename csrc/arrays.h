// What operations are given: tensors as addresses, and keep rules. No Python, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastmerge {

// The address of n elements of a dtype (fastmerge::Dtype); data is null for "no base".
struct Array {
  const void* data;
  int dtype;
};

struct Output {
  void* data;
  int dtype;
};

// N tensors of `size` elements, and the base that is subtracted from each.
struct Group {
  std::vector<Array> tensors;
  Array base;
  std::size_t size;

  int count() const { return static_cast<int>(tensors.size()); }
};

// The five integers of kernels/keep.py.
struct Keep {
  std::int64_t rule, a, b, c, d;
};

}  // namespace fastmerge
