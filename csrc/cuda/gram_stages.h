// How a block goes through a chunk whose tensors it copies to shared memory: gram_staged.cu.
#pragma once

#include <algorithm>

#include "gram.h"

namespace fastmerge::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Of so many tensors a thread holds the sums of all pairs of a lane. Of more, half of the threads hold those of all
// tensors but the last four, the others the rest, and they take the lanes of a chunk in two passes.
constexpr int kAlone = 12;
constexpr int kLast = 4;
// A thread copies so many bytes at a time.
constexpr int kPiece = 16;

FASTMERGE_HD constexpr int pairs_of(int count) { return count * (count + 1) / 2; }

template <class T, int kCount>
struct Shape {
  static constexpr int kGroups = kCount > kAlone ? 2 : 1;
  // Tensors whose pairs the first group has.
  static constexpr int kFirst = kGroups == 1 ? kCount : kCount - kLast;
  static constexpr int kFirstPairs = pairs_of(kFirst), kPairs = pairs_of(kCount);
  static constexpr int kSums = std::max(kFirstPairs, kPairs - kFirstPairs);  // of a thread
  static constexpr int kPassLanes = kLanes / kGroups;
  // A stage has so many bytes of each tensor: some rows of the lanes of a pass. All stages but one are on their way.
  static constexpr int kStages = kGroups == 1 ? 3 : 4;
  static constexpr int kStageBytes = kGroups == 2 ? 1024 : kCount > 4 ? 2048 : 4096;
  // Threads that copy a tensor.
  static constexpr unsigned kCopying = kStageBytes / kPiece;
  static constexpr int kStageElements = kStageBytes / static_cast<int>(sizeof(T));
  static constexpr int kStageRows = kStageElements / kPassLanes;
  // Lanes of a pair that are left when i and i + 128 are added, and i and i + 64 where those are of two passes.
  static constexpr int kLeft = kLanes / 2 / kGroups;
  static constexpr int kRing = kStages * (kCount + 1) * kStageBytes;  // bytes
  static constexpr std::size_t kShared = kRing + kPairs * kLeft * sizeof(double);
  // Blocks that a multiprocessor should hold: the compiler fits registers to it.
  static constexpr int kBlocks = kCount <= 2 ? 6 : kCount <= 4 ? 4 : kCount <= 6 ? 3 : kCount <= 8 ? 2 : 1;

  // Of a pass over a chunk, whose last rows may lie beyond the tensors.
  __device__ static int stages_of(std::int64_t chunk, std::int64_t size) {
    constexpr int kElements = kStageRows * kLanes;
    const std::int64_t left = size - chunk * kGrid;
    return left < kGrid ? (static_cast<int>(left) + kElements - 1) / kElements : kGrid / kElements;
  }
};

template <class T, int kCount>
struct Input {
  const T* tensors[kCount + 1];  // the last one is the base
  double* partials;
  std::int64_t size, chunks;
  // These are tensors `top` and following of `count` ones, and from the one numbered `split` on those from `left` on.
  int count, top, split, left;
  unsigned copied;  // tensors, with the base where there is one
};

// Which stage a thread copies next: how many are left of this pass over the lanes of a chunk, and its own first
// element.
template <class T, int kCount>
struct Cursor {
  using S = Shape<T, kCount>;
  std::int64_t chunk, element = 0;
  int pass = 0, left = 0;
  bool whole = false;  // chunk

  __device__ void begin_pass(const Input<T, kCount>& p, int offset) {
    if (chunk >= p.chunks) return;
    element = chunk * kGrid + pass * S::kLeft + offset;
    left = S::stages_of(chunk, p.size);
    whole = (chunk + 1) * kGrid <= p.size;
  }
  __device__ void next(const Input<T, kCount>& p, int offset) {
    element += S::kStageRows * kLanes;
    if (--left > 0) return;
    if (++pass == S::kGroups) {
      pass = 0;
      chunk += gridDim.x;
    }
    begin_pass(p, offset);
  }
};

}  // namespace fastmerge::cuda
