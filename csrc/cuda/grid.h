// The reduction grid on the device: 256 lanes take the elements of a chunk in turn and are added up in a binary tree.
// Contract: kernels/_checks.py. The order of the additions of a lane is fixed, so a warp owns a chunk, and a thread
// eight lanes side by side, whose elements it loads as one vector.
#pragma once

#include "split.h"

namespace fastmerge::cuda {

constexpr int kWarp = 32;
static_assert(kLanes == kWarp * kVector, "a warp holds all lanes of a chunk");

inline std::size_t chunks_of(std::size_t size) { return (size + kGrid - 1) / kGrid; }

// The vectors of a thread in a chunk: one of each row of kLanes elements. What lies beyond the tensor would add +0,
// which changes no lane.
struct Rows {
  std::int64_t element;  // of the first one
  int count;

  __device__ Rows(std::int64_t chunk, std::int64_t size)
      : element(chunk * kGrid + static_cast<int>(threadIdx.x) % kWarp * kVector), count(0) {
    const std::int64_t left = size - element;
    if (left > 0) count = left < kGrid ? static_cast<int>((left + kLanes - 1) / kLanes) : kGrid / kLanes;
  }
};

// The sum of a warp's lanes: lane i with lane i + 128, then i + 64, and so on. Valid in thread 0 of the warp.
__device__ inline double tree_sum(double (&lanes)[kVector]) {
#pragma unroll
  for (int threads = kWarp / 2; threads > 0; threads /= 2) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) lanes[j] = lanes[j] + __shfl_down_sync(0xFFFFFFFFu, lanes[j], threads);
  }
#pragma unroll
  for (int half = kVector / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) lanes[j] = lanes[j] + lanes[j + half];
  }
  return lanes[0];
}

}  // namespace fastmerge::cuda
