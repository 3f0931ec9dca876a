// The reduction grid on the device: 256 lanes take the elements of a chunk in turn and are added up in a binary tree.
// Contract: kernels/_checks.py. The order of the additions of a lane is fixed, so a warp owns a chunk, and a thread
// eight lanes side by side, whose elements it loads as one vector.
#pragma once

#include "split.h"

namespace fastmerge::cuda {

constexpr int kWarp = 32;
static_assert(kLanes == kWarp * kVector, "a warp holds all lanes of a chunk");

inline std::size_t chunks_of(std::size_t size) { return (size + kGrid - 1) / kGrid; }

// Calls visit(element, range) for the vectors of this thread in a chunk, in order. What lies beyond the tensor would
// add +0, which changes no lane.
template <class Visit>
__device__ inline void visit_chunk(std::int64_t chunk, std::int64_t size, Visit visit) {
  const std::int64_t begin = chunk * kGrid;
  const int lane = static_cast<int>(threadIdx.x) % kWarp * kVector;
  for (int row = 0; row < kGrid; row += kLanes) {
    const std::int64_t element = begin + row + lane;
    if (element >= size) break;
    visit(element, range_at(element, size));
  }
}

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

// Tensor k minus the base, in float32; data of the base is null for no base.
__device__ inline void load_delta(const Source& tensor, const Source& base, std::int64_t element, Range range,
                                  float (&delta)[kVector]) {
  const AnyRaw raw = load_any(tensor, element, range);
  if (base.data == nullptr) return widen(raw, delta);
  float x[kVector];
  widen(load_any(base, element, range), x);
  widen(raw, delta);
#pragma unroll
  for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - x[j];
}

}  // namespace fastmerge::cuda
