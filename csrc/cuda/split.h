// How the host cuts tensors into vectors, on the address of the tensor that is written.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace fastmerge::cuda {

// Below this size tensors share launches: starting a kernel costs more than merging them.
constexpr std::size_t kLarge = std::size_t{1} << 16;

inline std::size_t item_size(int dtype) { return dtype == kFloat32 ? 4 : 2; }

inline const char* moved(const void* data, int dtype, std::int64_t elements) {
  return static_cast<const char*>(data) + elements * static_cast<std::int64_t>(item_size(dtype));
}

inline bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// Elements before the first one of `array` at an address that vectors can begin at; 0 where it is aligned to nothing.
inline int head_of(Array array) {
  const std::size_t past = reinterpret_cast<std::uintptr_t>(array.data) % 16, item = item_size(array.dtype);
  return past % item ? 0 : static_cast<int>((16 - past) % 16 / item);
}

// A tensor for the kernels that take any, cut `head` elements after its first one.
inline Source source(Array array, int head) {
  return {array.data, static_cast<std::uint8_t>(array.dtype), aligned(moved(array.data, array.dtype, head))};
}

// Whether all tensors have one dtype and are aligned after `head` elements.
inline bool uniform(const Tensors& inputs, Array out, int head) {
  const auto fits = [&](Array array) {
    return array.dtype == out.dtype && aligned(moved(array.data, array.dtype, head));
  };
  return fits(out) && std::all_of(inputs.tensors.begin(), inputs.tensors.end(), fits) &&
         (!inputs.base.data || fits(inputs.base));
}

// Blocks' worth of vectors of a tensor whose vector 0 begins `shift` elements before its first one.
inline unsigned tiles_of(std::int64_t size, int shift, int threads) {
  const std::int64_t tile = std::int64_t{threads} * kVector;
  return static_cast<unsigned>((size + shift + tile - 1) / tile);
}

// The row of a table that a tile belongs to: the last one that begins at it or before.
template <class Table>
__device__ inline int row_of(const Table& table, unsigned tile) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.rows[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace fastmerge::cuda
