// Weighted sum and low-rank update. Part of loops.h.
#pragma once

#include "loops_input.h"

namespace fastmerge::cpu {
namespace {

template <class T>
FASTMERGE_INLINE void weighted_sum_pairs(T* out, const T* const* in, const float* weights, int count, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kPair) {
    const Pair sum = weighted_sum_element<Pair>(count, weights, [&](int k) {
      prefetch(in[k] + i);
      return load_pair(in[k] + i);
    });
    store_pair(out + i, sum.first, sum.second);
  }
}

// n is a number of whole pairs.
template <class T>
void weighted_sum_typed(T* out, const T* const* tensors, const float* weights, int count, std::size_t n) {
  with_count<5>(count, [=](auto constant) {
    constexpr int kCount = constant;
    if constexpr (kCount == 0) {
      weighted_sum_pairs(out, tensors, weights, count, n);
    } else {
      // Copies, since `out` may alias anything as far as the compiler knows.
      const T* in[kCount];
      float w[kCount];
      std::copy_n(tensors, kCount, in);
      std::copy_n(weights, kCount, w);
      weighted_sum_pairs(out, in, w, kCount, n);
    }
  });
}

void weighted_sum(const SumJob& job, std::size_t begin, std::size_t end) {
  const Output& out = job.out;
  const Tensors& inputs = job.inputs;
  const float* const weights = job.weights.data();
  const int count = inputs.count(), dtype = shared_dtype(inputs, out);
  std::size_t at = begin;
  const auto uniform = [&](auto* first) {
    using T = std::remove_pointer_t<decltype(first)>;
    std::vector<const T*> tensors;
    for (const Array& tensor : inputs.tensors) tensors.push_back(static_cast<const T*>(tensor.data) + begin);
    weighted_sum_typed(first + begin, tensors.data(), weights, count, whole_pairs(end - begin));
    at += whole_pairs(end - begin);
  };
  if (dtype == kBFloat16) uniform(static_cast<BFloat16*>(out.data));
  if (dtype == kFloat32) uniform(static_cast<float*>(out.data));
  // Mixed dtypes, float16, and the last elements: by tiles of float32.
  if (at == end) return;
  constexpr std::size_t kTile = 512;
  std::vector<float> tiles((count + 1) * kTile);
  std::vector<const float*> tensors;
  for (int k = 0; k < count; ++k) tensors.push_back(tiles.data() + k * kTile);
  float* sum = tiles.data() + count * kTile;
  for (; at < end; at += std::min(kTile, end - at)) {
    const std::size_t n = std::min(kTile, end - at);
    for (int k = 0; k < count; ++k) widen(tiles.data() + k * kTile, inputs.tensors[k], at, n);
    weighted_sum_typed(sum, tensors.data(), weights, count, padded(n));
    narrow(out, at, sum, n);
  }
}

// acc[0 .. 4 vectors) of one row: the products with four vectors of the rows of `down`.
FASTMERGE_INLINE void low_rank_strip(float* acc, const float* up, const float* down, std::size_t columns,
                                     std::size_t rank) {
  constexpr int kStrip = 4;
  F sums[kStrip];
  for (int v = 0; v < kStrip; ++v) sums[v] = splat<F>(up[0]) * load(down + v * kWidth);
  for (std::size_t r = 1; r < rank; ++r) {
    for (int v = 0; v < kStrip; ++v) {
      sums[v] = multiply_add<F>(sums[v], splat<F>(up[r]), load(down + r * columns + v * kWidth));
    }
  }
  for (int v = 0; v < kStrip; ++v) store(acc + v * kWidth, sums[v]);
}

void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t columns, std::size_t rank,
              float scale, std::size_t first_row, std::size_t last_row) {
  constexpr std::size_t kTile = 512;
  constexpr std::size_t kStrip = 4 * kWidth;
  float acc[kTile], tile[kTile];
  // A tile of columns of `down` stays in the cache while all rows use it.
  for (std::size_t column = 0; column < columns; column += kTile) {
    const std::size_t n = std::min(kTile, columns - column);
    for (std::size_t row = first_row; row < last_row; ++row) {
      const float* coefficients = up + row * rank;
      std::size_t j = 0;
      for (; j + kStrip <= n; j += kStrip) {
        low_rank_strip(acc + j, coefficients, down + column + j, columns, rank);
      }
      for (; j < n; ++j) {
        const float* entries = down + column + j;
        acc[j] = coefficients[0] * entries[0];
        for (std::size_t r = 1; r < rank; ++r) {
          acc[j] = multiply_add<float>(acc[j], coefficients[r], entries[r * columns]);
        }
      }
      std::fill(acc + n, acc + padded(n), 0.0f);
      const std::size_t at = row * columns + column;
      widen(tile, weight, at, n);
      for (std::size_t i = 0; i < n; i += kWidth) {
        store(tile + i, multiply_add<F>(load(tile + i), load(acc + i), splat<F>(scale)));
      }
      narrow(out, at, tile, n);
    }
  }
}

}  // namespace
}  // namespace fastmerge::cpu
