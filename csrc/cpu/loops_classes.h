// Classes of the buckets of keys: the drop thresholds in each, and how many elements of a row. Part of loops.h.
#pragma once

#include "loops_keys.h"

namespace fastmerge::cpu {
namespace {

// Elements beyond a row that are read and, where they are ours, written.
constexpr std::size_t kRowSlack = 64;

// Buckets that a row has at most: those of eight octaves.
constexpr std::size_t kBuckets = 8 * kOctave;

// The scale of rows with such largest keys: up to what few of them exceed, an outlier or two.
Scale scale_of(H tops) {
  const std::size_t most = large_lane(tops) + kOctave;
  return {static_cast<std::uint16_t>(most < kBuckets ? 0 : (most - kBuckets + 2) & ~1u), kBuckets - 1};
}

// As many classes as can be looked up at once.
class Classes {
 public:
  static constexpr std::size_t kCount = Edges::kClasses;
  // Class of a bucket: its number shifted by so many bits.
  static constexpr int kShift = kBuckets == 32 * kCount ? 5 : 6;
  static_assert(kBuckets == kCount << kShift);

  // Per class, bounds of the high halves of the largest drop threshold in it, and of the least.
  Edges edges() const { return Edges(high_, low_); }

  // Finds them for a model, from the rank that every class begins at, and the end of the last. In float32, with room
  // for rounding.
  template <class Count>
  void bound(const RankModel& model, const Count (&ranks)[kCount + 1]) {
    const float first = static_cast<float>(model.first) * 0x1p-16f, slope = static_cast<float>(model.step) * 0x1p-47f;
    float thresholds[kCount + 1];
    for (std::size_t c = 0; c <= kCount; ++c) thresholds[c] = first - static_cast<float>(ranks[c]) * slope;
    for (std::size_t c = 0; c < kCount; ++c) {
      high_[c] = static_cast<std::uint16_t>(std::min(thresholds[c] + 0.0625f, 65535.0f));
      low_[c] = static_cast<std::uint16_t>(std::max(thresholds[c + 1] - 0.0625f, 0.0f));
    }
  }

  // Counts the elements of a row of less than 2^16, and finds the bounds. Returns how many are zeros, where these are
  // an eighth of the row, or else 0.
  std::uint32_t count(const RankModel& model, const std::uint16_t* ids, std::size_t n) {
    // Side by side: equal magnitudes follow each other, and each waits for the last one's count.
    constexpr std::size_t kSide = 4;
    alignas(64) std::uint16_t counts[kSide][kCount] = {};
    std::size_t i = 0;
    for (; i + kSide <= n; i += kSide) {
      for (std::size_t c = 0; c < kSide; ++c) ++counts[c][ids[i + c] >> kShift];
    }
    for (; i < n; ++i) ++counts[0][ids[i] >> kShift];
    std::uint16_t ranks[kCount + 1];
    H rank{};
    for (std::size_t c = 0; c < kCount; c += kHalves) {
      H found{};
      for (const auto& side : counts) found += load_as<H>(side + c);
      const H sums = running_sums(found);
      store_as(ranks + c, rank + sums - found);
      rank += last_lane(sums);
    }
    ranks[kCount] = static_cast<std::uint16_t>(n);
    bound(model, ranks);
    if (ranks[1] < n / 8 + 1) return 0;
    const auto zeros = static_cast<std::size_t>(std::count(ids, ids + n, 0));
    return zeros < n / 8 + 1 ? 0 : static_cast<std::uint32_t>(zeros);
  }

 private:
  std::uint16_t high_[kCount], low_[kCount];
};

}  // namespace
}  // namespace fastmerge::cpu
