// The keys of a row in buckets, counted in parts of the row. Part of loops.h.
#pragma once

#include "loops_classes.h"

namespace fastmerge::cpu {
namespace {

// Count: holds the length of a row.
template <class Count>
class Buckets {
 public:
  explicit Buckets(std::size_t n)
      : n_(n),
        part_(std::min((n_ + kSide - 1) / kSide, kMostPart)),
        parts_((n_ + part_ - 1) / part_),
        per_part_(~std::uint64_t{0} / part_ + 1),
        starts_(kMost),
        counts_((parts_ + 1) * kMost) {}

  // Begins with a row whose elements have these buckets. largest: of its keys.
  void begin(const std::uint16_t* ids, const Scale& scale, std::size_t largest) {
    ids_ = ids;
    used_ =
        std::min<std::size_t>(std::max<std::size_t>(largest, scale.bottom + (largest > 0)) - scale.bottom, scale.last) +
        1;
    for (std::size_t part = 1; part <= parts_; ++part) {
      Count* const counts = counts_.data() + part * kMost;
      for (std::size_t b = 0; b < used_; b += kLanesOf<V>) store_as(counts + b, V{});
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

  // Counts what is left, and finds bounds for the classes of a model.
  void finish(Classes& classes, const RankModel& model) {
    while (group_ < parts_) {
      count_some();
      count_on();
    }
    parts_ == kSide ? bound<kSide>() : bound<0>();
    Count ranks[Classes::kCount + 1];
    for (std::size_t c = 0; c <= Classes::kCount; ++c) ranks[c] = starts_[c << Classes::kShift];
    classes.bound(model, ranks);
  }

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

  static constexpr std::size_t kMost = kBuckets + kLanesOf<V>;
  // Parts that are counted side by side: equal magnitudes follow each other, and each waits for the last one's count.
  static constexpr std::size_t kSide = 4;
  // Elements of each that are counted at a time.
  static constexpr std::size_t kSome = HalfWords::kStep / 8 / kSide;
  // Elements of a part, which also narrows the ranks of equal magnitudes.
  static constexpr std::size_t kMostPart = 8192;

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
    V rank{}, most{}, even;
    for (std::size_t i = 0; i < kLanesOf<V>; ++i) even[i] = static_cast<LaneOf<V>>(i % 2 == 0 ? -1 : 0);
    std::size_t b = 0;
    for (; b < used_; b += kLanesOf<V>) {
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
      rank += last_lane(sums);
    }
    for (; b <= kBuckets; b += kLanesOf<V>) store_as(starts_.data() + b, rank);
    find_common(largest_lane(most));
  }

  // most: of the elements of tied buckets.
  void find_common(std::uint32_t most) {
    common_id_ = kNone;
    if (most < n_ / 8 + 1) return;
    const Count* const all = counts_.data() + parts_ * kMost;
    for (common_id_ = 0; all[common_id_] != most; common_id_ += 2) {
    }
  }

  std::size_t n_, part_, parts_;
  std::uint64_t per_part_;  // 2^64 / part_, rounded up
  std::size_t used_ = 0;    // buckets
  // Where counting stands: in a group of parts, so many of whose elements are counted in each.
  std::size_t group_ = parts_, at_ = 0, common_ = 0;
  const std::uint16_t* ids_ = nullptr;
  const std::uint16_t* side_ids_ = nullptr;
  Count* side_counts_ = nullptr;
  // counts_: per part and bucket, those in earlier parts; the last row has those in all.
  Lines<Count> starts_, counts_;
  std::uint32_t common_id_ = kNone;
};

}  // namespace
}  // namespace fastmerge::cpu
