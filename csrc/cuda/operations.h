// The operations of the CUDA backend. Each starts its kernels on a stream and returns without waiting for them.
// Contracts: kernels/*.py. No CUDA header, so that the bindings need none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"

namespace fastmerge::cuda {

// The most tensors that one call takes, apart from the base: they come as kernel parameters.
constexpr int kMaxTensors = 64;

// Where to run: a device and a stream (cudaStream_t) of it.
struct Place {
  int device;
  void* stream;
};

struct SumJob {
  Output out;
  Group inputs;
  std::vector<float> weights;
};

// Per tensor, the ranks of the boundaries that are looked for: 0 < rank < size.
struct SelectJob {
  Group inputs;
  std::vector<std::vector<std::size_t>> ranks;
};

// How wide the bracket of a sample is, in standard deviations of a sampled rank, and how much room there is for the
// values in it, times the expected number.
struct SelectSettings {
  double deviations, spare;
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

// kernels/rank_mask.py: a tensor [outer, length, inner] whose elements are ranked along the middle dimension.
struct RankJob {
  std::uint32_t* mask;
  Array tensor, base;
  std::int64_t length, inner;
  std::uint32_t first;
  std::uint64_t step, key;
  std::uint32_t model;
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
// Overwrites the mask. The workspace must not be used by anything else until the kernel is done.
void rank_mask(const RankJob& job, std::int64_t outer, void* workspace, const Place& place);
// The bytes of that workspace for so many rows in all, aligned to 8 bytes.
std::size_t rank_workspace(std::int64_t rows, std::int64_t length, int device);
void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t rows, std::size_t columns,
              std::size_t rank, float scale, const Place& place);

// Writes three numbers per rank, in the order of jobs, tensors and ranks: threshold, break index (kernels/keep.py), 0.
// The last is 1 where the sample missed the rank, 2 where it let too many values through; histograms must find it then.
// The workspace must not be used by anything else until the kernels are done.
void select(std::int64_t* results, void* workspace, const std::vector<SelectJob>& jobs, const SelectSettings& settings,
            const Place& place);
// The bytes of that workspace, which is aligned to 16 bytes.
std::size_t select_workspace(const std::vector<SelectJob>& jobs, const SelectSettings& settings);

// kernels/histogram.py. `counts` are added to.
void magnitude_histogram(std::int64_t* counts, const Group& group, int level,
                         const std::vector<std::int64_t>& prefixes, const Place& place);
// kernels/histogram.py. `counts` are overwritten.
void equal_counts(std::int64_t* counts, const Group& group, const std::vector<std::int64_t>& thresholds,
                  const Place& place);

}  // namespace fastmerge::cuda
