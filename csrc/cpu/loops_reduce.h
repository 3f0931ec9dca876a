// Sums over the reduction grid, and the Gram matrix. Part of loops.h.
//
// The order of additions is fixed by kernels/_checks.py (lane_sums). Products of float32 are exact in float64, so a
// fused multiply-add rounds once where the reference rounds once.
#pragma once

#include "loops_masks.h"

namespace fastmerge::cpu {
namespace {

constexpr std::size_t kRows = 8;  // rows of 256 lanes that are widened at a time
constexpr std::size_t kBlock = kRows * kLanes;

FASTMERGE_INLINE D add_product(D acc, D a, D b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (D)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)acc);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (D)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)acc);
#else
  return acc + a * b;
#endif
}

// Adds up 256 lanes in a binary tree; overwrites them.
double tree_sum(double* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Adds the products of all pairs of kCount rows of tiles ([k][kBlock]) to lanes [pairs][256].
template <int kCount>
void add_pairs(double* lanes, const float* tiles) {
  constexpr int kPairs = kCount * (kCount + 1) / 2;
  for (int lane = 0; lane < kLanes; lane += kDoubles) {
    D sums[kPairs];
    for (int p = 0; p < kPairs; ++p) sums[p] = load_as<D>(lanes + p * kLanes + lane);
    for (std::size_t row = 0; row < kRows; ++row) {
      D values[kCount];
      for (int k = 0; k < kCount; ++k) values[k] = load_doubles(tiles + k * kBlock + row * kLanes + lane);
      int p = 0;
      for (int i = 0; i < kCount; ++i) {
        for (int j = i; j < kCount; ++j, ++p) sums[p] = add_product(sums[p], values[i], values[j]);
      }
    }
    for (int p = 0; p < kPairs; ++p) store_as(lanes + p * kLanes + lane, sums[p]);
  }
}

// The same of one row with each of kCount rows.
template <int kCount>
void add_pairs_with(double* lanes, const float* tile, const float* tiles) {
  for (int lane = 0; lane < kLanes; lane += kDoubles) {
    D sums[kCount];
    for (int k = 0; k < kCount; ++k) sums[k] = load_as<D>(lanes + k * kLanes + lane);
    for (std::size_t i = lane; i < kBlock; i += kLanes) {
      const D value = load_doubles(tile + i);
      for (int k = 0; k < kCount; ++k) sums[k] = add_product(sums[k], value, load_doubles(tiles + k * kBlock + i));
    }
    for (int k = 0; k < kCount; ++k) store_as(lanes + k * kLanes + lane, sums[k]);
  }
}

void add_all_pairs(double* lanes, const float* tiles, int count) {
  constexpr int kMost = 4;
  with_count<kMost>(count, [=](auto constant) {
    if constexpr (constant != 0) add_pairs<constant>(lanes, tiles);
  });
  if (count <= kMost) return;
  for (int i = 0; i < count; ++i) {
    for (int j = i; j < count; j += kMost) {
      with_count<kMost>(std::min(kMost, count - j), [&](auto constant) {
        if constexpr (constant != 0) add_pairs_with<constant>(lanes, tiles + i * kBlock, tiles + j * kBlock);
        lanes += constant * kLanes;
      });
    }
  }
}

// Fills a tile with the deltas of one block; missing elements are zeros, which leave every lane as it is.
void fill_tile(float* tile, Array tensor, Array base, std::size_t begin, std::size_t end) {
  deltas(tile, tensor, base, begin, end);
  std::fill(tile + (end - begin), tile + kBlock, 0.0f);
}

void gram(double* partials, const Tensors& inputs, std::size_t first_chunk, std::size_t last_chunk) {
  const int count = inputs.count(), pairs = count * (count + 1) / 2;
  std::vector<float> tiles(count * kBlock);
  std::vector<double> lanes(static_cast<std::size_t>(pairs) * kLanes);
  for (std::size_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    std::fill(lanes.begin(), lanes.end(), 0.0);
    const std::size_t stop = std::min(inputs.size, (chunk + 1) * kGrid);
    for (std::size_t at = chunk * kGrid; at < stop; at += kBlock) {
      for (int k = 0; k < count; ++k) {
        fill_tile(tiles.data() + k * kBlock, inputs.tensors[k], inputs.base, at, std::min(stop, at + kBlock));
      }
      add_all_pairs(lanes.data(), tiles.data(), count);
    }
    for (int p = 0; p < pairs; ++p) partials[chunk * pairs + p] = tree_sum(lanes.data() + p * kLanes);
  }
}

}  // namespace
}  // namespace fastmerge::cpu
