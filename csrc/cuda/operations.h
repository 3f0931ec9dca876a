// The operations of the CUDA backend. Each starts its kernels on a stream and returns without waiting for them.
// Contracts: kernels/*.py. No CUDA header, so that the bindings need none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastmerge::cuda {

// The most tensors that one call takes, apart from the base: they come as kernel parameters.
constexpr int kMaxTensors = 64;

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

// Where to run: a device and a stream (cudaStream_t) of it.
struct Place {
  int device;
  void* stream;
};

// The five integers of kernels/keep.py.
struct Keep {
  std::int64_t rule, a, b, c, d;
};

struct SumJob {
  Output out;
  Group inputs;
  std::vector<float> weights;
};

struct MergeJob {
  Output out;
  Group inputs;
  std::vector<float> factors, weights;
  std::vector<Keep> keeps;
  int vote;
  bool divides;
  float divisor;  // of vote none
  float scale;
  std::uint64_t offset;
};

// The reason why no kernel can run here, and what to do; empty where one can.
std::string why_unavailable();

// Many weighted sums, in as few launches as their tables take.
void weighted_sum(const std::vector<SumJob>& jobs, const Place& place);
// Many sparse merges, in as few launches as their tables take.
void sparse_merge(const std::vector<MergeJob>& jobs, const Place& place);
void gram(double* partials, const Group& inputs, const Place& place);
void norms(double* partials, const Group& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset,
           const Place& place);
void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t rows, std::size_t columns,
              std::size_t rank, float scale, const Place& place);

}  // namespace fastmerge::cuda
