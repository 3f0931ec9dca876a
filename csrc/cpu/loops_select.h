// Counting and collecting magnitudes. Part of loops.h.
#pragma once

#include "loops_input.h"

namespace fastmerge::cpu {
namespace {

// Calls each(delta) for vectors of deltas, and one(bits) for the magnitudes of those that are left.
template <class T, bool kBase, class Each, class One>
FASTMERGE_INLINE void each_delta(const T* tensor, const T* base, std::size_t n, Each each, One one) {
  // Bytes: with bfloat16 an element takes little time.
  constexpr int kFar = sizeof(T) == 2 ? 8192 : 2048;
  std::size_t i = 0;
  for (; i + kPair <= n; i += kPair) {
    prefetch<kFar>(tensor + i);
    if (kBase) prefetch<kFar>(base + i);
    const Pair x = load_pair(tensor + i);
    const Pair b = kBase ? load_pair(base + i) : Pair{};
    each(kBase ? x.first - b.first : x.first);
    each(kBase ? x.second - b.second : x.second);
  }
  if (i == n) return;
  float tail[2 * kWidth];
  kBase ? difference(tail, tensor + i, base + i, n - i) : widen(tail, tensor + i, n - i);
  for (std::size_t j = 0; j < n - i; ++j) one(magnitude_bits(tail[j]));
}

// Lanes hold negated counts, since a mask is -1.
FASTMERGE_INLINE std::uint32_t counted(S lanes) { return static_cast<std::uint32_t>(-sum_of_lanes(lanes)); }

// The counts of a chunk.
template <class T, bool kBase, bool kAtoms>
BracketCounts collect_uniform(std::uint32_t* out, const T* tensor, const T* base, const Bracket& bracket,
                              std::size_t n) {
  S above_count{}, first_count{}, second_count{};
  std::uint32_t* next = out;
  BracketCounts counts{};
  const S high = S{} + bracket.high, low = S{} + (bracket.low - 1);
  const S first = S{} + bracket.atoms[0], second = S{} + bracket.atoms[1];
  const auto each = [&](F delta) {
    const S bits = magnitude_bits(delta);
    const M over = above(bits, high);
    count_where(above_count, over);
    M inside = without(above(bits, low), over);
    if constexpr (kAtoms) {
      const M a = equal(bits, first), b = equal(bits, second);
      count_where(first_count, a);
      count_where(second_count, b);
      inside = without(without(inside, a), b);
      // Beside its atoms a bracket holds little: most vectors have none of it.
      if (mask_bits(inside) == 0) return;
    }
    next += store_selected(next, (U)bits, mask_bits(inside));
  };
  each_delta<T, kBase>(tensor, base, n, each, [&](std::int32_t bits) {
    if (bits > bracket.high) {
      ++counts.above;
    } else if (bits == bracket.atoms[0]) {
      ++counts.atoms[0];
    } else if (bits == bracket.atoms[1]) {
      ++counts.atoms[1];
    } else if (bits >= bracket.low) {
      *next++ = static_cast<std::uint32_t>(bits);
    }
  });
  counts.above += counted(above_count);
  counts.atoms[0] += counted(first_count);
  counts.atoms[1] += counted(second_count);
  counts.collected = static_cast<std::uint32_t>(next - out);
  return counts;
}

// A bracket of one magnitude, which is its atom: nothing is listed. The rule in bfloat16 fine-tunes.
template <class T, bool kBase>
BracketCounts count_atom(const T* tensor, const T* base, std::int32_t atom, std::size_t n) {
  S above_count{}, equal_count{};
  BracketCounts counts{};
  const S own = S{} + atom;
  const auto each = [&](F delta) {
    const S bits = magnitude_bits(delta);
    count_where(above_count, above(bits, own));
    count_where(equal_count, equal(bits, own));
  };
  each_delta<T, kBase>(tensor, base, n, each, [&](std::int32_t bits) {
    counts.above += bits > atom;
    counts.atoms[0] += bits == atom;
  });
  counts.above += counted(above_count);
  counts.atoms[0] += counted(equal_count);
  return counts;
}

template <class T, bool kBase>
BracketCounts collect_typed(std::uint32_t* out, const T* tensor, const T* base, const Bracket& bracket, std::size_t n) {
  if (bracket.low == bracket.high && bracket.low == bracket.atoms[0]) {
    return count_atom<T, kBase>(tensor, base, bracket.low, n);
  }
  return bracket.atoms[0] == kNoAtom ? collect_uniform<T, kBase, false>(out, tensor, base, bracket, n)
                                     : collect_uniform<T, kBase, true>(out, tensor, base, bracket, n);
}

template <class T>
const T* elements(Array array, std::size_t begin) {
  return static_cast<const T*>(array.data) + begin;
}

BracketCounts collect(std::uint32_t* out, Array tensor, Array base, const Bracket& bracket, std::size_t begin,
                      std::size_t end) {
  const std::size_t n = end - begin;
  if (base.data && tensor.dtype == base.dtype) {
    if (tensor.dtype == kBFloat16) {
      return collect_typed<BFloat16, true>(out, elements<BFloat16>(tensor, begin), elements<BFloat16>(base, begin),
                                           bracket, n);
    }
    if (tensor.dtype == kFloat32) {
      return collect_typed<float, true>(out, elements<float>(tensor, begin), elements<float>(base, begin), bracket, n);
    }
  }
  // Mixed dtypes, float16, or no base: by blocks of float32 deltas.
  constexpr std::size_t kBlockSize = 2048;
  float block[kBlockSize];
  BracketCounts sum{};
  for (std::size_t i = begin; i < end; i += kBlockSize) {
    const std::size_t stop = std::min(end, i + kBlockSize);
    deltas(block, tensor, base, i, stop);
    const BracketCounts counts = collect_typed<float, false>(out + sum.collected, block, nullptr, bracket, stop - i);
    sum.above += counts.above;
    sum.atoms[0] += counts.atoms[0];
    sum.atoms[1] += counts.atoms[1];
    sum.collected += counts.collected;
  }
  return sum;
}

std::size_t count_equal(Array tensor, Array base, std::int32_t magnitude, std::size_t begin, std::size_t end) {
  constexpr std::size_t kBlockSize = 2048;
  float block[kBlockSize];
  std::size_t count = 0;
  for (std::size_t i = begin; i < end; i += kBlockSize) {
    const std::size_t n = std::min(kBlockSize, end - i);
    deltas(block, tensor, base, i, i + n);
    S equal{};
    std::size_t j = 0;
    for (; j + kWidth <= n; j += kWidth) equal += canonical_bits(magnitude_bits(load(block + j))) == magnitude;
    count += counted(equal);
    for (; j < n; ++j) count += canonical_bits(magnitude_bits(block[j])) == magnitude;
  }
  return count;
}

void histogram(std::uint32_t* counts, Array tensor, Array base, std::int64_t prefix, std::size_t begin,
               std::size_t end) {
  constexpr std::size_t kBlockSize = 2048;
  float block[kBlockSize];
  for (std::size_t i = begin; i < end; i += kBlockSize) {
    const std::size_t n = std::min(kBlockSize, end - i);
    deltas(block, tensor, base, i, i + n);
    for (std::size_t j = 0; j < n; ++j) {
      const std::int32_t bits = canonical_bits(magnitude_bits(block[j]));
      if (prefix < 0) {
        ++counts[bits >> 16];
      } else if (bits >> 16 == prefix) {
        ++counts[bits & 0xFFFF];
      }
    }
  }
}

}  // namespace
}  // namespace fastmerge::cpu
