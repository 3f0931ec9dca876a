// Masks by rank on the device: what its two ways share. See rank_mask.cu.
#pragma once

#include "split.h"

namespace fastmerge::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllOfWarp = 0xFFFFFFFFu;
// A row that fits leaves room for two blocks on a multiprocessor with 164 KB or more.
constexpr std::size_t kMostRowBytes = 80 << 10;

// A job as kernels are given it: with the addresses of whole tensors. Those who have a row of each model side by side
// read the same row of the base.
struct RankRows {
  RankModel models[kMaxTensors];
  Array base;
  std::int64_t length, inner, offset, rows;
  std::uint64_t key;
  std::uint32_t round_keys[kPhiloxRounds][2];
  unsigned count;
};

// Of the element with that global index.
__device__ inline unsigned magnitude_at(const RankRows& rows, const RankModel& model, std::int64_t i) {
  const float x = element_at(model.tensor, i);
  return canonical_bits(magnitude_bits(rows.base.data ? x - element_at(rows.base, i) : x));
}

// The sum of a number over the threads of a warp up to this one.
__device__ inline unsigned sum_upto(unsigned number) {
#pragma unroll
  for (unsigned step = 1; step < kWarp; step *= 2) {
    const unsigned other = __shfl_up_sync(kAllOfWarp, number, step);
    if (threadIdx.x % kWarp >= step) number += other;
  }
  return number;
}

// Whether rows are decided by bins first, or all of them sorted at once.
bool has_bins(std::int64_t inner, std::int64_t length);
// Sets the bits of what bins decide; left: per row of each model in turn, 1 where it has to be sorted all the same.
void launch_rank_bins(const RankRows& rows, unsigned* left, const std::string& what, const Stream& stream);

}  // namespace fastmerge::cuda
