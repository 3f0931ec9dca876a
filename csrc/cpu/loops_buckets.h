// The keys of a row in buckets, counted in parts of the row. Part of loops.h.
#pragma once

#include "loops_keys.h"

namespace fastmerge::cpu {
namespace {

// Elements beyond a row that are read and, where they are ours, written.
constexpr std::size_t kRowSlack = 64;

// Count: holds the length of a row.
template <class Count>
class Buckets {
 public:
  explicit Buckets(const RankRows& rows)
      : first_(static_cast<float>(rows.first) * 0x1p-16f),
        slope_(static_cast<float>(rows.step) * 0x1p-47f),
        n_(rows.length),
        keys_(n_ >= 1024  ? kMostKeys
              : n_ >= 512 ? kMostKeys - kOctave
                          : kMostKeys - 2 * kOctave),
        part_(std::clamp((n_ + 32 * kSide - 1) / (32 * kSide) * 32, kLeastPart, kMostPart)),
        parts_((n_ + part_ - 1) / part_),
        per_part_(~std::uint64_t{0} / part_ + 1),
        starts_(kMost),
        counts_((parts_ + 1) * kMost) {}

  // Begins with a row: writes the buckets of its elements over their keys. largest: of the keys; most: what few of them
  // exceed, an outlier or two.
  void begin(std::uint16_t* keys, std::size_t largest, std::size_t most) {
    ids_ = keys;
    const auto bottom = static_cast<std::uint16_t>(most < keys_ ? 0 : (most - keys_ + 2) & ~1u);
    for (std::size_t i = 0; i < n_; i += kHalves) {
      const H key = load_as<H>(keys + i);
      const H above = smaller(larger(key, H{} + bottom) - bottom, H{} + static_cast<std::uint16_t>(keys_ - 1));
      store_as(keys + i, larger(above, smaller(key, H{} + 1)));
    }
    buckets_ = std::min<std::size_t>(std::max<std::size_t>(largest, bottom + (largest > 0)) - bottom + 1, keys_);
    for (std::size_t part = 1; part <= parts_; ++part) {
      Count* const counts = counts_.data() + part * kMost;
      for (std::size_t b = 0; b <= buckets_; b += kLanesOf<V>) store_as(counts + b, V{});
    }
    start_group(0);
  }

  // Counts some elements more. To be called between other work, which the processor does meanwhile: it stores one count
  // per clock, and can do much beside that.
  FASTMERGE_INLINE_MEMBER void count_some() {
    if (at_ == common_) return;
    const std::uint16_t* const ids = side_ids_ + at_;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kSome; ++i) {
#pragma GCC unroll 4
      for (std::size_t c = 0; c < kSide; ++c) ++side_counts_[c * kMost + ids[c * part_ + i]];
    }
    at_ += kSome;
  }

  // To be called now and then.
  void count_on() {
    if (at_ == common_ && group_ < parts_) end_group();
  }

  // Counts what is left.
  void finish() {
    while (group_ < parts_) {
      count_some();
      count_on();
    }
    parts_ == kSide ? bound<kSide>() : bound<0>();
  }

  // The keys of eight octaves have buckets of their own, of fewer in short rows; what lies below them shares bucket 1,
  // what lies above them the last. Zeros have bucket 0.
  static constexpr std::size_t kMostKeys = 8 * kOctave;

  // Classes of so many buckets, as many as can be looked up at once. Per class, bounds of the high halves of its
  // largest drop threshold, and of its least.
  static constexpr std::size_t kClasses = Lookup::kEntries;
  static constexpr int kClassShift = kMostKeys == 32 * kClasses ? 5 : 6;
  static_assert(kMostKeys == kClasses << kClassShift);
  const std::uint16_t* high_edges() const { return high_; }
  const std::uint16_t* low_edges() const { return low_; }

  // The tied bucket of an eighth of the row or more, the largest of them: zeros, as a rule. kNone where there is none.
  static constexpr std::uint32_t kNone = 0xFFFF;
  std::uint32_t common() const { return common_id_; }

  // Whether all magnitudes of an element's bucket are the same.
  bool tied(std::uint32_t position) const { return ids_[position] % 2 == 0; }

  // The least and the largest rank that an element may have. Without branches: they would go either way.
  std::pair<std::uint32_t, std::uint32_t> ranks(std::uint32_t position) const {
    const std::size_t id = ids_[position], part = part_of(position);
    const bool same = tied(position);
    const Count* const counts = counts_.data() + id;
    const std::uint32_t start = starts_[id];
    return {start + counts[(same ? part : 0) * kMost], start + counts[(same ? part + 1 : parts_) * kMost] - 1};
  }

  // The rank of an element of a tied bucket: by its position.
  std::uint32_t tied_rank(std::uint32_t position) const {
    const std::size_t id = ids_[position], part = part_of(position);
    std::uint32_t rank = starts_[id] + counts_[part * kMost + id];
    std::size_t i = part * part_;
    for (; i + 32 <= position; i += 32) rank += popcount(members(i, id));
    return rank + popcount(members(i, id) & ((1u << (position - i)) - 1));
  }

  // The rank that a bucket begins at.
  std::uint32_t start(std::size_t id) const { return starts_[id]; }

  // Lists the positions of a bucket's elements.
  void list(std::vector<std::uint32_t>& positions, std::size_t id) const {
    positions.clear();
    for (std::size_t i = 0; i < n_; i += 32) {
      for (std::uint32_t bits = members(i, id); bits; bits &= bits - 1) {
        positions.push_back(static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(__builtin_ctz(bits)));
      }
    }
    while (!positions.empty() && positions.back() >= n_) positions.pop_back();
  }

 private:
  using V = std::conditional_t<sizeof(Count) == 2, H, U>;

  static constexpr std::size_t kMost = kMostKeys + kLanesOf<V>;
  // Parts that are counted side by side: equal magnitudes follow each other, and each waits for the last one's count.
  static constexpr std::size_t kSide = 4;
  // Elements of each that are counted at a time.
  static constexpr std::size_t kSome = HalfWords::kStep / 8 / kSide;
  // Elements of a part, which also narrows the ranks of equal magnitudes.
  static constexpr std::size_t kLeastPart = 128, kMostPart = 8192;

  // Which elements i .. i + 31 are in a bucket.
  std::uint32_t members(std::size_t i, std::size_t id) const {
    const H wanted = H{} + static_cast<std::uint16_t>(id);
    return word_of<std::uint32_t>([&](std::size_t j) { return bits_equal(load_as<H>(ids_ + i + j), wanted); });
  }

  std::size_t part_of(std::uint32_t position) const {
    return static_cast<std::size_t>(static_cast<unsigned __int128>(per_part_) * position >> 64);
  }
  std::size_t end_of(std::size_t part) const { return std::min(n_, (part + 1) * part_); }

  void start_group(std::size_t group) {
    group_ = group;
    at_ = 0;
    common_ = group + kSide <= parts_ ? (end_of(group + kSide - 1) - (group + kSide - 1) * part_) / kSome * kSome : 0;
    side_ids_ = ids_ + group * part_;
    side_counts_ = counts_.data() + (group + 1) * kMost;
  }

  void end_group() {
    for (std::size_t part = group_; part < std::min(parts_, group_ + kSide); ++part) {
      for (std::size_t i = part * part_ + common_; i < end_of(part); ++i) ++counts_[(part + 1) * kMost + ids_[i]];
    }
    start_group(group_ + kSide);
  }

  // Makes counts of parts those of earlier parts, and finds the rank that every bucket starts at. kParts 0 takes their
  // number at run time.
  template <std::size_t kParts>
  void bound() {
    const std::size_t parts = kParts ? kParts : parts_;
    // Per vector of buckets, the rank that it begins at.
    Count firsts[kMost / kLanesOf<V> + 1];
    V rank{}, most{}, even;
    for (std::size_t i = 0; i < kLanesOf<V>; ++i) even[i] = static_cast<LaneOf<V>>(i % 2 == 0 ? -1 : 0);
    std::size_t at = 0;
    for (std::size_t b = 0; b <= buckets_; b += kLanesOf<V>) {
      Count* counts = counts_.data() + kMost + b;
      V found = load_as<V>(counts);
      for (std::size_t part = 1; part < parts; ++part) {
        counts += kMost;
        found += load_as<V>(counts);
        store_as(counts, found);
      }
      most = (found & even) > most ? found & even : most;
      const V sums = running_sums(found);
      store_as(starts_.data() + b, rank + sums - found);
      firsts[at++] = first_lane(rank);
      rank += last_lane(sums);
    }
    std::fill(firsts + at, std::end(firsts), static_cast<Count>(n_));
    find_common(largest_lane(most));
    bound_classes(firsts);
  }

  // In float32, with room for rounding.
  void bound_classes(const Count* firsts) {
    std::int32_t ranks[kClasses + 1];
    for (std::size_t c = 0; c <= kClasses; ++c) ranks[c] = firsts[(c << kClassShift) / kLanesOf<V>];
    float thresholds[kClasses + 1];
    for (std::size_t c = 0; c <= kClasses; ++c) thresholds[c] = first_ - static_cast<float>(ranks[c]) * slope_;
    for (std::size_t c = 0; c < kClasses; ++c) {
      high_[c] = static_cast<std::uint16_t>(std::min(thresholds[c] + 0.0625f, 65535.0f));
      low_[c] = static_cast<std::uint16_t>(std::max(thresholds[c + 1] - 0.0625f, 0.0f));
    }
  }

  // most: of the elements of tied buckets.
  void find_common(std::uint32_t most) {
    common_id_ = kNone;
    if (most < n_ / 8 + 1) return;
    const Count* const all = counts_.data() + parts_ * kMost;
    for (common_id_ = 0; all[common_id_] != most; common_id_ += 2) {
    }
  }

  const float first_, slope_;
  std::size_t n_, keys_, part_, parts_;
  std::uint64_t per_part_;  // 2^64 / part_, rounded up
  std::size_t buckets_ = 0;
  // Where counting stands: in a group of parts, so many of whose elements are counted in each.
  std::size_t group_ = parts_, at_ = 0, common_ = 0;
  std::uint16_t* ids_ = nullptr;
  const std::uint16_t* side_ids_ = nullptr;
  Count* side_counts_ = nullptr;
  // counts_: per part and bucket, those in earlier parts; the last row has those in all.
  Lines<Count> starts_, counts_;
  std::uint32_t common_id_ = kNone;
  std::uint16_t high_[kClasses], low_[kClasses];
};

}  // namespace
}  // namespace fastmerge::cpu
