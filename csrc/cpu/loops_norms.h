// Norms over the reduction grid: kernels/norms.py. Part of loops.h.
#pragma once

#include "loops_reduce.h"

namespace fastmerge::cpu {
namespace {

// The powers of deltas in float64, and the same times 0 or 1: multiplied, so that a dropped NaN stays visible.
template <int kPower>
FASTMERGE_INLINE D power_of(D delta) {
  return kPower == 1 ? (D)((U64)delta & (U64{} + 0x7FFFFFFFFFFFFFFFu)) : delta * delta;
}

template <int kPower>
void add_norms(double* all, double* kept, const float* tile, const float* keep) {
  for (int lane = 0; lane < kLanes; lane += kDoubles) {
    D all_sum = load_as<D>(all + lane), kept_sum = load_as<D>(kept + lane);
    for (std::size_t i = lane; i < kBlock; i += kLanes) {
      const D power = power_of<kPower>(load_doubles(tile + i));
      all_sum += power;
      kept_sum += power * load_doubles(keep + i);
    }
    store_as(all + lane, all_sum);
    store_as(kept + lane, kept_sum);
  }
}

// Writes the bits of n masks to the words of a tensor from an index on, a multiple of 32, with zeros up to a whole
// word.
void write_bits(std::uint32_t* words, const std::uint16_t* mask, std::uint64_t index, std::size_t n) {
  words += index >> 5;
  for (std::size_t i = 0; i < n; i += 32) {
    const std::uint32_t bits = load_bits(mask + i);
    words[i >> 5] = n - i < 32 ? bits & ((1u << (n - i)) - 1) : bits;
  }
}

// Writes 1 for a kept and 0 for a dropped delta of a tile of n elements (whole vectors) that starts at a global index.
// Of a stored mask, only the bits of the first `known` elements are there, and of a drawn one only these are written.
void keep_factors(float* factors, const float* tile, const Keep& keep, std::uint64_t index, std::size_t n,
                  std::size_t known) {
  if (keep.rule == kRuleAll) {
    std::fill(factors, factors + n, 1.0f);
  } else if (keep.rule == kRuleRandom || keep.rule == kRuleMask) {
    std::uint16_t storage[kMaskSize] = {};
    for (std::size_t i = 0; i < n; i += kTile) {
      const std::size_t there = i < known ? std::min(kTile, known - i) : 0;
      const std::uint16_t* mask = keep.rule == kRuleRandom
                                      ? random_mask(storage, keep, index + i, std::min(kTile, n - i))
                                      : stored_mask(storage, keep, index + i, there);
      if (keep.drawn) write_bits(keep.drawn, mask, index + i, there);
      for (std::size_t j = 0; j < std::min(kTile, n - i); j += kWidth) {
        store(factors + i + j, Lanes<F>::select(load_signed_halves(mask + j), splat<F>(1.0f)));
      }
    }
  } else {
    const auto breaks_here = [&](std::int64_t at) {
      return at > static_cast<std::int64_t>(index) && at < static_cast<std::int64_t>(index + n);
    };
    // Where a break index falls into the tile, every element looks its thresholds up; elsewhere they are the same for
    // all.
    const std::size_t step = breaks_here(keep.b) || breaks_here(keep.d) ? 1 : n;
    for (std::size_t i = 0; i < n; i += step) {
      const auto at = static_cast<std::int64_t>(index + i);
      const std::int32_t inside = threshold_at(keep.a, keep.b, at), outside = threshold_at(keep.c, keep.d, at);
      if (step == 1) {
        const std::int32_t bits = magnitude_bits(tile[i]);
        factors[i] = bits > inside && !(bits > outside) ? 1.0f : 0.0f;
        continue;
      }
      for (std::size_t j = 0; j < n; j += kWidth) {
        const S bits = magnitude_bits(load(tile + j));
        store(factors + j, Lanes<F>::select((bits > inside) & ~(bits > outside), splat<F>(1.0f)));
      }
    }
  }
}

// ---- whole chunks of tensors of one dtype, read once and straight into float64 ----

// Adds the powers of kRows rows to the lanes of all and of what is kept, which adding a zero does not change: right
// while all deltas are finite. Lanes stand in the order in which a pair holds its elements.
template <class T, int kPower, bool kBase, bool kMasked>
void add_rows(double* all, double* kept, const T* tensor, const T* base, const std::uint16_t* mask) {
  const auto power = [](D x) { return kPower == 1 ? x : x * x; };
  for (std::size_t lane = 0; lane < kLanes; lane += kPair) {
    D sums[4], kept_sums[4];
    for (std::size_t j = 0; j < 4; ++j) {
      sums[j] = load_as<D>(all + lane + j * kDoubles);
      if constexpr (kMasked) kept_sums[j] = load_as<D>(kept + lane + j * kDoubles);
    }
    const auto add = [&](int j, F x, M keep) {
      const D low = power(low_doubles(x)), high = power(high_doubles(x));
      sums[j] += low;
      sums[j + 1] += high;
      if constexpr (kMasked) add_kept(kept_sums + j, low, high, keep);
    };
    for (std::size_t i = lane; i < kBlock; i += kLanes) {
      __builtin_prefetch(tensor + i + kBlock);
      Pair x = load_pair(tensor + i);
      if constexpr (kBase) {
        __builtin_prefetch(base + i + kBlock);
        const Pair b = load_pair(base + i);
        x = {x.first - b.first, x.second - b.second};
      }
      if constexpr (kPower == 1) x = {(F)magnitude_bits(x.first), (F)magnitude_bits(x.second)};
      add(0, x.first, kMasked ? first_kept<T>(mask + i) : M{});
      add(2, x.second, kMasked ? second_kept<T>(mask + i) : M{});
    }
    for (std::size_t j = 0; j < 4; ++j) {
      store_as(all + lane + j * kDoubles, sums[j]);
      if constexpr (kMasked) store_as(kept + lane + j * kDoubles, kept_sums[j]);
    }
  }
}

// Sums lanes that stand in the order of pairs of T.
template <class T>
double pair_sum(const double* lanes) {
  double ordered[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) {
    const std::size_t within = i % kPair;
    ordered[sizeof(T) == 2 ? i - within + within % kWidth * 2 + within / kWidth : i] = lanes[i];
  }
  return tree_sum(ordered);
}

// ---- one call on one thread ----

class Norms {
 public:
  Norms(const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset)
      : inputs_(inputs),
        keeps_(keeps),
        power_(power),
        offset_(offset),
        dtype_(shared_dtype(inputs)),
        lanes_(2 * kLanes) {}

  // Writes the sum of the powers of delta k in a chunk, and of those that are kept.
  void chunk(double* sums, int k, std::size_t chunk) {
    const std::size_t begin = chunk * kGrid, end = std::min(inputs_.size, begin + kGrid);
    if (end - begin == kGrid && keeps_[k].rule != kRuleBand && (dtype_ == kBFloat16 || dtype_ == kFloat32)) {
      (dtype_ == kBFloat16 ? whole<BFloat16>(sums, k, begin) : whole<float>(sums, k, begin));
      // A dropped NaN or infinity shows in both sums: by tiles.
      if (sums[0] < __builtin_huge_val()) return;
    }
    tiles(sums, k, begin, end);
  }

 private:
  template <class T>
  void whole(double* sums, int k, std::size_t begin) {
    const auto* const tensor = static_cast<const T*>(inputs_.tensors[k].data) + begin;
    if (!inputs_.base.data) return powered<T, false>(sums, k, begin, tensor, nullptr);
    powered<T, true>(sums, k, begin, tensor, static_cast<const T*>(inputs_.base.data) + begin);
  }

  template <class T, bool kBase>
  void powered(double* sums, int k, std::size_t begin, const T* tensor, const T* base) {
    const bool masked = keeps_[k].rule != kRuleAll;
    const auto add = power_ == 1 ? masked ? add_rows<T, 1, kBase, true> : add_rows<T, 1, kBase, false>
                     : masked    ? add_rows<T, 2, kBase, true>
                                 : add_rows<T, 2, kBase, false>;
    double* const all = lanes_.data();
    double* const kept = all + kLanes;
    std::fill(lanes_.begin(), lanes_.end(), 0.0);
    mask_.resize(kBlock + kMaskSize);
    for (std::size_t i = 0; i < kGrid; i += kBlock) {
      const std::uint16_t* mask = nullptr;
      if (masked) {
        const auto fill = keeps_[k].rule == kRuleRandom ? random_mask : stored_mask;
        mask = fill(mask_.data(), keeps_[k], offset_ + begin + i, kBlock);
        if (keeps_[k].drawn) write_bits(keeps_[k].drawn, mask, offset_ + begin + i, kBlock);
      }
      add(all, kept, tensor + i, base ? base + i : nullptr, mask);
    }
    sums[0] = pair_sum<T>(all);
    sums[1] = masked ? pair_sum<T>(kept) : sums[0];
  }

  void tiles(double* sums, int k, std::size_t begin, std::size_t end) {
    double* const all = lanes_.data();
    double* const kept = all + kLanes;
    std::fill(lanes_.begin(), lanes_.end(), 0.0);
    tile_.resize(kBlock);
    factors_.resize(kBlock);
    for (std::size_t at = begin; at < end; at += kBlock) {
      fill_tile(tile_.data(), inputs_.tensors[k], inputs_.base, at, std::min(end, at + kBlock));
      keep_factors(factors_.data(), tile_.data(), keeps_[k], offset_ + at, kBlock, std::min(end - at, kBlock));
      (power_ == 1 ? add_norms<1> : add_norms<2>)(all, kept, tile_.data(), factors_.data());
    }
    sums[0] = tree_sum(all);
    sums[1] = tree_sum(kept);
  }

  const Tensors& inputs_;
  const std::vector<Keep>& keeps_;
  const int power_;
  const std::uint64_t offset_;
  const int dtype_;
  std::vector<double> lanes_;
  std::vector<float> tile_, factors_;
  std::vector<std::uint16_t> mask_;
};

void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset,
           std::size_t first_chunk, std::size_t last_chunk) {
  const int count = inputs.count();
  Norms work(inputs, keeps, power, offset);
  for (std::size_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    for (int k = 0; k < count; ++k) work.chunk(partials + (chunk * count + k) * 2, k, chunk);
  }
}

}  // namespace
}  // namespace fastmerge::cpu
