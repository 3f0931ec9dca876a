// The magnitudes of a row, in the pieces that a random draw serves.
#pragma once

#include "rank_mask.h"

namespace fastmerge::cuda {

// A row whose elements are side by side, eight at a time: those of one random draw. T: of both tensors, whose draws are
// aligned and whole; void for any. kHeld: whether the magnitudes fit the shared memory.
template <class T, bool kHeld>
class Draws {
 public:
  __device__ Draws(const RankRows& rows, const RankModel& model, std::int64_t row)
      : rows_(rows),
        model_(model),
        index_(rows.offset + row * rows.length),
        words_(dynamic_shared<uint4>()),
        count(static_cast<unsigned>(((index_ + rows.length + 7) >> 3) - (index_ >> 3))) {}

  // The global index of a draw, and the position of its first element in the row.
  __device__ std::int64_t draw(unsigned d) const { return (index_ >> 3) + d; }
  __device__ int position(unsigned d) const { return static_cast<int>(draw(d) * 8 - index_); }
  // Which elements of a draw belong to the row.
  __device__ Range range(unsigned d) const {
    if constexpr (!std::is_void_v<T>) return {0, kVector};
    return range_at(position(d), rows_.length);
  }

  // The magnitudes of a draw. Those that load() read, get() finds in shared memory, where they fit.
  __device__ void load(unsigned d, unsigned (&magnitudes)[kVector]) const {
    read(d, magnitudes);
    if constexpr (!kHeld) return;
    words_[d] = make_uint4(magnitudes[0], magnitudes[1], magnitudes[2], magnitudes[3]);
    words_[count + d] = make_uint4(magnitudes[4], magnitudes[5], magnitudes[6], magnitudes[7]);
  }
  __device__ __forceinline__ void get(unsigned d, unsigned (&magnitudes)[kVector]) const {
    if constexpr (!kHeld) return read(d, magnitudes);
    const uint4 low = words_[d], high = words_[count + d];
    const unsigned words[kVector] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int k = 0; k < kVector; ++k) magnitudes[k] = words[k];
  }
  // The global index of a position in the row, and the magnitude there.
  __device__ std::int64_t index(unsigned position) const { return index_ + position; }
  __device__ unsigned at(unsigned position) const {
    if constexpr (!kHeld) return magnitude_at(rows_, model_, index(position));
    const unsigned place = position - this->position(0), d = place / kVector, k = place % kVector;
    return reinterpret_cast<const unsigned*>(words_ + (k < 4 ? d : count + d))[k % 4];
  }

 private:
  __device__ __forceinline__ void read(unsigned d, unsigned (&magnitudes)[kVector]) const {
    const auto widened = [&](const Array& array, float (&x)[kVector]) {
      if constexpr (std::is_void_v<T>) {
        const bool aligned = reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0;
        widen(load_any({array.data, static_cast<std::uint8_t>(array.dtype), aligned}, draw(d) * 8, range(d)), x);
      } else {
        widen(cuda::load(static_cast<const T*>(array.data) + draw(d) * 8), x);
      }
    };
    float x[kVector], base[kVector] = {};
    widened(model_.tensor, x);
    if (rows_.base.data) widened(rows_.base, base);
#pragma unroll
    for (int k = 0; k < kVector; ++k) magnitudes[k] = canonical_bits(magnitude_bits(x[k] - base[k]));
  }

  const RankRows& rows_;
  const RankModel& model_;
  std::int64_t index_;
  uint4* words_;

 public:
  unsigned count;
};

}  // namespace fastmerge::cuda
