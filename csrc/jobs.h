// What operations are given: tensors as addresses, keep rules, and the arguments of one call. No Python, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastmerge {

// Reductions: elements per chunk of the grid, and lanes that a chunk's elements are dealt to.
constexpr int kGrid = 16384;
constexpr int kLanes = 256;

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
struct Tensors {
  std::vector<Array> tensors;
  Array base;
  std::size_t size;

  int count() const { return static_cast<int>(tensors.size()); }
};

// The five integers of kernels/keep.py. On a GPU a boundary may be a row of three integers in its memory, instead of
// (a, b) or (c, d): threshold, break index, and 0 where it was found. Of a random rule, element i of a part whose row
// is not 0 has the global index d + i / row * stride + i % row; on the CPU norms write the bits of what it keeps to
// `drawn`, where that is not null: those of the whole tensor, as rule kRuleMask takes them.
struct Keep {
  std::int64_t rule, a, b, c, d;
  const std::int64_t *inside = nullptr, *outside = nullptr;
  std::int64_t row = 0, stride = 0;
  std::uint32_t* drawn = nullptr;
};

// kernels/weighted_sum.py.
struct SumJob {
  Output out;
  Tensors inputs;
  std::vector<float> weights;
  // On a GPU, instead of the weights: these in its memory, and after them 0 where they were found.
  const float* found_weights;
};

// kernels/sparse_merge.py. With divide count the weights are ones.
struct MergeJob {
  Output out;
  Tensors inputs;
  std::vector<float> factors, weights;
  std::vector<Keep> keeps;
  int vote;
  bool divides;
  float divisor;  // of vote none
  float scale;
  std::uint64_t offset;
  // On a GPU, instead of the factors: these in its memory, and after them 0 where they were found.
  const float* found_factors;
};

// kernels/select.py. Per tensor, the ranks of the boundaries that are looked for: 0 < rank < size.
struct SelectJob {
  Tensors inputs;
  std::vector<std::vector<std::size_t>> ranks;
};

}  // namespace fastmerge
