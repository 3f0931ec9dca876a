// The bins of magnitudes that give every element of a row its rank within a few: see rank_bins.cu.
#pragma once

#include "rank_mask.h"

namespace fastmerge::cuda {

constexpr int kRankThreads = 256, kBins = 2048;

// The least and the greatest magnitude of a row, and their sum.
struct Extent {
  unsigned least, greatest;
  float sum;
};

// That of all threads of a block.
__device__ inline Extent extent_of_all(Extent mine) {
  __shared__ Extent extents[kRankThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) mine.sum += __shfl_xor_sync(kAllOfWarp, mine.sum, step);
  mine.least = __reduce_min_sync(kAllOfWarp, mine.least);
  mine.greatest = __reduce_max_sync(kAllOfWarp, mine.greatest);
  if (threadIdx.x % kWarp == 0) extents[threadIdx.x / kWarp] = mine;
  __syncthreads();
  mine = {~0u, 0, 0.0f};
  for (const Extent& other : extents) {
    mine.least = other.least < mine.least ? other.least : mine.least;
    mine.greatest = other.greatest > mine.greatest ? other.greatest : mine.greatest;
    mine.sum += other.sum;
  }
  return mine;
}

// The bins of a row are even below an eighth of the mean magnitude, and as wide as their magnitudes above it, so that
// neither zeros nor outliers leave most elements in a few. Where an element is not finite, all are in one bin.
class Bins {
 public:
  // words: one for each bin.
  __device__ Bins(const Extent& extent, float share, unsigned* words) : even_(extent.sum * share), words_(words) {
    const unsigned low = spread(extent.least), high = spread(extent.greatest);
    const int bits = 32 - __clz(static_cast<int>(high - low));
    shift_ = bits > 11 ? bits - 11 : 0;
    // Bins begin at multiples of their width, which may be one bin more.
    shift_ += (high >> shift_) - (low >> shift_) >= kBins;
    first_ = low >> shift_;
  }

  // The word of the bin that a magnitude lies in, and its number.
  __device__ unsigned& operator[](unsigned magnitude) const { return words_[number(magnitude)]; }
  __device__ unsigned number(unsigned magnitude) const { return (spread(magnitude) >> shift_) - first_; }

 private:
  __device__ unsigned spread(unsigned magnitude) const {
    return bit_cast<unsigned>(bit_cast<float>(magnitude) + even_);
  }

  float even_;
  unsigned* words_;
  unsigned first_;
  int shift_;
};

// The sum of a number over the threads of a block before this one.
__device__ inline unsigned sum_before(unsigned mine) {
  __shared__ unsigned sums[kRankThreads / kWarp];
  const unsigned warp = threadIdx.x / kWarp, upto = sum_upto(mine);
  if (threadIdx.x % kWarp == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  unsigned before = upto - mine;
  for (unsigned w = 0; w < kRankThreads / kWarp; ++w) before += w < warp ? sums[w] : 0;
  return before;
}

// Makes of the count of each bin what a half word decides there: above the high half, the drop threshold of the bin's
// first rank, it keeps; below the low half, that of its last rank, it drops. starts: the first ranks, 16 bits each.
__device__ inline void counts_to_limits(uint4* bins, uint4* starts, const RankModel& model) {
  static_assert(kBins == kRankThreads * 8, "a thread has two words of four bins");
  const uint4 low = bins[2 * threadIdx.x], high = bins[2 * threadIdx.x + 1];
  unsigned each[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, mine = 0, firsts[4] = {};
  for (const unsigned count : each) mine += count;
  unsigned rank = sum_before(mine);
  // rank_threshold is the high word of this, which falls by `step` from one rank to the next.
  const std::uint64_t step = 2 * model.step;
  std::uint64_t threshold = (std::uint64_t{model.first} << 32 | 0x7FFFFFFE) - step * rank;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    firsts[i / 2] |= rank << 16 * (i % 2);
    rank += each[i];
    const std::uint64_t after = threshold - step * each[i], last = after + step;
    each[i] = __byte_perm(static_cast<unsigned>(last >> 32), static_cast<unsigned>(threshold >> 32), 0x7632);
    threshold = after;
  }
  bins[2 * threadIdx.x] = make_uint4(each[0], each[1], each[2], each[3]);
  bins[2 * threadIdx.x + 1] = make_uint4(each[4], each[5], each[6], each[7]);
  starts[threadIdx.x] = make_uint4(firsts[0], firsts[1], firsts[2], firsts[3]);
  __syncthreads();
}

}  // namespace fastmerge::cuda
