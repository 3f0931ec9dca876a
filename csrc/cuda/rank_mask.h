// Masks by rank on the device: what its two ways share. See rank_mask.cu.
#pragma once

#include "split.h"

namespace fastmerge::cuda {

constexpr unsigned kAllOfWarp = 0xFFFFFFFFu;
// A row that fits leaves room for two blocks on a multiprocessor with 164 KB or more.
constexpr std::size_t kMostRowBytes = 80 << 10;

// Of the element with that global index.
__device__ inline unsigned magnitude_at(const RankJob& job, std::int64_t i) {
  const float x = element_at(job.tensor, i);
  return canonical_bits(magnitude_bits(job.base.data ? x - element_at(job.base, i) : x));
}

// Whether rows are decided by bins first, or all of them sorted at once.
bool has_bins(std::int64_t inner, std::int64_t length);
// Sets the bits of what bins decide; left: per row, 1 where it has to be sorted all the same. The addresses of the job
// are those of the whole tensor.
void launch_rank_bins(const RankJob& job, std::int64_t rows, unsigned* left, const std::string& what,
                      const Stream& stream);

}  // namespace fastmerge::cuda
