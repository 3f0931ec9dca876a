// The operations of the CUDA backend. Each starts its kernels on a stream and returns without waiting for them.
// Contracts: kernels/*.py. No CUDA header, so that the bindings need none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "jobs.h"

namespace fastmerge::cuda {

// The most tensors that one call takes, apart from the base: they come as kernel parameters.
constexpr int kMaxTensors = 64;

// Where to run: a device and a stream (cudaStream_t) of it.
struct Stream {
  int device;
  void* handle;
};

// How wide the bracket of a sample is, in standard deviations of a sampled rank, and how much room there is for the
// values in it, times the expected number; and the bytes of workspace that jobs share: one job may take more.
struct SelectSettings {
  double deviations, spare;
  std::size_t together;
};

// kernels/rank_mask.py: one of the models, with the drop thresholds of its ranks.
struct RankModel {
  std::uint32_t* mask;
  Array tensor;
  std::uint64_t step;
  std::uint32_t first, model;
};

// Tensors [outer, length, inner] whose elements are ranked along the middle dimension.
struct RankJob {
  std::vector<RankModel> models;
  Array base;
  std::int64_t outer, length, inner;
  std::uint64_t key;
  std::int64_t offset;  // of the first element, where the tensors are some slices of larger ones
};

// A float64 table [rows, columns] of partial sums.
struct SumTable {
  const double* data;
  std::int64_t rows;
  unsigned columns;
};

// The weights of a tensor's deltas, and the least norm that makes a factor of them.
struct FactorRule {
  std::vector<double> weights;
  double least;
};

// The reason why no kernel can run here, and what to do; empty where one can.
std::string why_unavailable();

// Many weighted sums, in as few launches as their tables take.
void weighted_sum(const std::vector<SumJob>& jobs, const Stream& stream);
// Many sparse merges, in as few launches as their tables take.
void sparse_merge(const std::vector<MergeJob>& jobs, const Stream& stream);
void gram(double* partials, const Tensors& inputs, const Stream& stream);
void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset,
           const Stream& stream);
// kernels/_sums.py. Writes the sums of the columns of all tables, in turn.
void exact_sums(double* sums, const std::vector<SumTable>& tables, const Stream& stream);
// kernels/answers.py. Of each tensor from the norms of at most kMaxTensors deltas, a pair for each: a factor for each,
// then a status.
void matched_factors(float* factors, const double* sums, const std::vector<FactorRule>& rules, const Stream& stream);
// kernels/answers.py. Of each tensor from three products: two weights, then a status.
void arc_weights(float* weights, const double* sums, const std::vector<double>& places, const Stream& stream);
// Overwrites the masks. The workspace must not be used by anything else until the kernels are done.
void rank_mask(const RankJob& job, void* workspace, const Stream& stream);
// The bytes of that workspace for so many rows of all models, aligned to 8 bytes.
std::size_t rank_workspace(std::int64_t rows, std::int64_t length, int device);
void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t rows, std::size_t columns,
              std::size_t rank, float scale, const Stream& stream);

// Writes three numbers per rank, in the order of jobs, tensors and ranks: threshold, break index (kernels/keep.py), 0.
// The last is 1 where the sample missed the rank, 2 where it let too many values through; histograms must find it then.
// The workspace must not be used by anything else until the kernels are done.
void select(std::int64_t* results, void* workspace, const std::vector<SelectJob>& jobs, const SelectSettings& settings,
            const Stream& stream);
// The bytes of that workspace, which is aligned to 16 bytes. Jobs take turns in it.
std::size_t select_workspace(const std::vector<SelectJob>& jobs, const SelectSettings& settings);

// kernels/histogram.py. `counts` are added to.
void magnitude_histogram(std::int64_t* counts, const Tensors& inputs, int level,
                         const std::vector<std::int64_t>& prefixes, const Stream& stream);
// kernels/histogram.py. `counts` are overwritten.
void equal_counts(std::int64_t* counts, const Tensors& inputs, const std::vector<std::int64_t>& thresholds,
                  const Stream& stream);

}  // namespace fastmerge::cuda
