// The mask of one row by rank. Part of loops.h; contract: kernels/rank_mask.py.
//
// Few elements need their rank. A histogram of a row's keys bounds the ranks of a bucket, hence the drop thresholds in
// it; the random number of an element mostly lies outside of these bounds. Only what is left undecided is ranked in its
// bucket.
#pragma once

#include "loops_buckets.h"
#include "loops_ranks.h"

namespace fastmerge::cpu {
namespace {

// Appends the positions of the bits that are set. Without a branch for few, which come in any number.
FASTMERGE_INLINE std::size_t append_bits(std::uint32_t* list, std::size_t at, std::uint64_t bits) {
  constexpr int kOften = 3;
  const int count = __builtin_popcountll(bits);
  for (int i = 0; i < kOften; ++i, bits &= bits - 1)
    list[i] = static_cast<std::uint32_t>(at) + static_cast<std::uint32_t>(__builtin_ctzll(bits));
  for (int i = kOften; i < count; ++i, bits &= bits - 1)
    list[i] = static_cast<std::uint32_t>(at) + static_cast<std::uint32_t>(__builtin_ctzll(bits));
  return static_cast<std::size_t>(count);
}

// The masks of rows of one length, one row at a time.
template <class Count>
class Ranker {
 public:
  explicit Ranker(const RankRows& rows) : rows_(rows), n_(rows.length), buckets_(rows), open_(n_ + kRowSlack) {}

  // Begins with a row, whose keys it overwrites: see Buckets.
  void begin(std::uint16_t* keys, std::size_t largest, std::size_t most) {
    keys_ = keys;
    if (n_ > kShort) buckets_.begin(keys, largest, most);
  }
  // May be called meanwhile: see Buckets.
  FASTMERGE_INLINE_MEMBER void count_some() { buckets_.count_some(); }
  void count_on() { buckets_.count_on(); }

  // Writes the bits of the row. halves: of the random words, readable for kRowSlack more elements. Element j has the
  // global index index + j * rows.inner.
  void decide(std::uint32_t* bits, const std::uint16_t* halves, std::uint64_t index) {
    const Drawn drawn{bits, halves, index};
    if (n_ <= kShort) return decide_short(drawn);
    buckets_.finish();
    const Lookup high(buckets_.high_edges()), low(buckets_.low_edges());
    const std::size_t open = buckets_.common() == buckets_.kNone ? decide_by_class<false>(drawn, high, low)
                                                                 : decide_by_class<true>(drawn, high, low);
    decide_by_value(drawn, decide_tied(drawn, decide_by_bounds(drawn, open)));
  }

 private:
  // A row's bits, random numbers and global index.
  struct Drawn {
    std::uint32_t* bits;
    const std::uint16_t* halves;
    std::uint64_t index;
  };

  // The high half of the drop threshold of a rank.
  std::uint16_t high_threshold(std::uint32_t rank) const {
    return static_cast<std::uint16_t>(rank_threshold(rows_.first, rows_.step, rank) >> 16);
  }

  void decide_by_rank(const Drawn& drawn, std::uint32_t at, std::uint32_t rank) const {
    const std::uint32_t drop = rank_threshold(rows_.first, rows_.step, rank);
    const bool kept = keeps_element(drawn.halves[at], drop, rows_.key, rows_.model, drawn.index + at * rows_.inner);
    drawn.bits[at / 32] |= std::uint32_t{kept} << (at % 32);
  }

  // Writes the bits of what the bounds of classes decide, lists the rest, and returns how many these are. kCommon:
  // those of the bucket that has one magnitude and many elements lie between the ranks of its elements in every word.
  template <bool kCommon, class Edges>
  std::size_t decide_by_class(const Drawn& drawn, const Edges& high, const Edges& low) {
    const std::uint16_t* const ids = keys_;
    const std::uint16_t* const halves = drawn.halves;
    std::uint32_t* const bits = drawn.bits;
    std::uint32_t* const list = open_.data();
    const std::size_t n = n_;
    const H common = H{} + static_cast<std::uint16_t>(buckets_.common());
    std::uint32_t rank = kCommon ? buckets_.start(buckets_.common()) : 0;
    std::size_t open = 0;
    for (std::size_t i = 0; i < n; i += 64) {
      const std::uint64_t there = n - i < 64 ? (std::uint64_t{1} << (n - i)) - 1 : ~std::uint64_t{0};
      std::uint64_t kept = 0, dropped = 0;
      for (std::size_t j = 0; j < 64; j += kHalves) {
        const H id = load_as<H>(ids + i + j), half = load_as<H>(halves + i + j);
        kept |= std::uint64_t{bits_above(half, high(id >> Buckets<Count>::kClassShift))} << j;
        dropped |= std::uint64_t{bits_above(low(id >> Buckets<Count>::kClassShift), half)} << j;
      }
      if constexpr (kCommon) {
        // Beyond the row there are ids, too: with these, ranks would exceed the row's, whose thresholds end there.
        const std::uint64_t all =
            there & word_of<std::uint64_t>([&](std::size_t j) { return bits_equal(load_as<H>(ids + i + j), common); });
        const H largest = H{} + high_threshold(rank);
        rank += static_cast<std::uint32_t>(__builtin_popcountll(all));
        const H least = H{} + high_threshold(rank - 1);
        const auto half = [&](std::size_t j) { return load_as<H>(halves + i + j); };
        kept =
            (kept & ~all) | (word_of<std::uint64_t>([&](std::size_t j) { return bits_above(half(j), largest); }) & all);
        dropped = (dropped & ~all) |
                  (word_of<std::uint64_t>([&](std::size_t j) { return bits_above(least, half(j)); }) & all);
      }
      kept &= there;
      bits[i / 32] = static_cast<std::uint32_t>(kept);
      bits[i / 32 + 1] = static_cast<std::uint32_t>(kept >> 32);
      open += append_bits(list + open, i, there & ~(kept | dropped));
    }
    return open;
  }

  // The same by bounds of the ranks of each, for the first ones of the list.
  std::size_t decide_by_bounds(const Drawn& drawn, std::size_t open) {
    std::uint32_t* const list = open_.data();
    std::size_t undecided = 0;
    for (std::size_t i = 0; i < open; ++i) {
      // Without branches: they would go either way.
      const std::uint32_t at = list[i], half = drawn.halves[at];
      const auto [least, most] = buckets_.ranks(at);
      const bool kept = half > high_threshold(least), dropped = half < high_threshold(most);
      drawn.bits[at / 32] |= std::uint32_t{kept} << (at % 32);
      list[undecided] = at;
      undecided += !kept && !dropped;
    }
    return undecided;
  }

  // Decides what is in tied buckets; moves the others to the front and returns how many these are.
  std::size_t decide_tied(const Drawn& drawn, std::size_t undecided) {
    std::uint32_t* const list = open_.data();
    std::size_t others = 0;
    for (std::size_t i = 0; i < undecided; ++i) {
      const std::uint32_t at = list[i];
      if (buckets_.tied(at)) {
        decide_by_rank(drawn, at, buckets_.tied_rank(at));
      } else {
        list[others++] = at;
      }
    }
    return others;
  }

  // Decides the first ones of the list, bucket by bucket.
  void decide_by_value(const Drawn& drawn, std::size_t count) {
    const std::uint16_t* const ids = keys_;
    std::uint32_t* const list = open_.data();
    std::stable_sort(list, list + count, [&](std::uint32_t a, std::uint32_t b) { return ids[a] < ids[b]; });
    for (std::size_t begin = 0, end = 0; begin < count; begin = end) {
      const std::size_t id = ids[list[begin]];
      while (end < count && ids[list[end]] == id) ++end;
      buckets_.list(members_, id);
      values_.resize(members_.size() + kWidth);
      for (std::size_t i = 0; i < members_.size(); ++i) {
        values_[i] = magnitude(drawn, members_[i]);
      }
      const bool few = end - begin <= kFew;
      if (!few) sort_ranks(order_, values_.data(), members_.size());
      for (std::size_t i = begin; i < end; ++i) {
        const auto at =
            static_cast<std::size_t>(std::lower_bound(members_.begin(), members_.end(), list[i]) - members_.begin());
        const std::uint32_t within = few ? rank_among(values_.data(), members_.size(), at) : order_[at];
        decide_by_rank(drawn, list[i], buckets_.start(id) + within);
      }
    }
  }

  // Edges that are the same for all.
  struct Uniform {
    H edge;
    FASTMERGE_INLINE_MEMBER H operator()(H) const { return edge; }
  };

  // Decides a row without buckets: counts the keys below each that its random number leaves open.
  void decide_short(const Drawn& drawn) {
    const Uniform high{H{} + high_threshold(0)};
    const Uniform low{H{} + high_threshold(static_cast<std::uint32_t>(n_ - 1))};
    const std::size_t open = decide_by_class<false>(drawn, high, low);
    for (std::size_t i = 0; i < open; ++i) {
      const std::uint32_t at = open_[i];
      decide_by_rank(drawn, at, short_rank(drawn, at));
    }
  }

  std::uint32_t short_rank(const Drawn& drawn, std::uint32_t at) const {
    const H key = H{} + keys_[at];
    const auto keys = [&](std::size_t j) { return load_as<H>(keys_ + j); };
    const std::uint32_t there = n_ < 32 ? (1u << n_) - 1 : ~0u, before = (1u << at) - 1;
    const std::uint32_t below = word_of<std::uint32_t>([&](std::size_t j) { return bits_above(key, keys(j)); }) & there;
    std::uint32_t equal = word_of<std::uint32_t>([&](std::size_t j) { return bits_equal(key, keys(j)); }) & there;
    if (keys_[at] % 2 == 0) return popcount(below) + popcount(equal & before);
    std::uint32_t rank = popcount(below);
    for (const std::int32_t own = magnitude(drawn, at); equal; equal &= equal - 1) {
      const auto other = static_cast<std::uint32_t>(__builtin_ctz(equal));
      rank += magnitude(drawn, other) < own || (magnitude(drawn, other) == own && other < at);
    }
    return rank;
  }

  std::int32_t magnitude(const Drawn& drawn, std::size_t at) const {
    return magnitude_at(rows_.tensor, rows_.base, drawn.index + at * rows_.inner);
  }

  // Rows of so many elements need no buckets.
  static constexpr std::size_t kShort = 32;
  // Up to that many elements of a bucket are ranked by counting.
  static constexpr std::size_t kFew = 32;

  const RankRows& rows_;
  std::size_t n_;
  const std::uint16_t* keys_ = nullptr;
  Buckets<Count> buckets_;
  std::vector<std::uint32_t> open_, members_, order_;
  std::vector<std::int32_t> values_;
};

}  // namespace
}  // namespace fastmerge::cpu
