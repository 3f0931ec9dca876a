// The masks of rows by rank. Part of loops.h; contract: kernels/rank_mask.py.
//
// Few elements need their rank. Bounds of the ranks of a class of keys bound the drop thresholds in it, and the random
// number of an element mostly lies outside of these bounds. In a long row, what is left undecided has its rank from the
// buckets of all keys; in a shorter one it is compared with the row, since many buckets are more to add up than that.
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

// The masks of rows of one length: of one row at a time, or of as many shorter ones as lie side by side.
template <class Count>
class Ranker {
 public:
  explicit Ranker(const RankRows& rows)
      : rows_(rows),
        n_(rows.length),
        together_(rows.inner == 1 && n_ < kLong ? std::max<std::size_t>(1, kEnough / n_) : 1),
        per_row_((std::uint64_t{1} << 32) / n_ + 1),
        buckets_(n_ < kLong ? 1 : n_),
        open_(n_ < kLong ? 0 : n_ + kRowSlack) {}

  // Rows that are ranked together.
  std::size_t together() const { return together_; }

  // The scale of rows with such largest keys.
  Scale scale(H tops) const { return n_ > kShort ? scale_of(tops) : Scale{}; }

  // Begins with some elements of a model, of which these are the buckets. largest: of the keys.
  void begin(const RankModel& model, const std::uint16_t* ids, const Scale& scale, std::size_t largest) {
    model_ = &model;
    ids_ = ids;
    if (n_ >= kLong) buckets_.begin(ids, scale, largest);
  }
  // May be called meanwhile: see Buckets.
  FASTMERGE_INLINE_MEMBER void count_some() { buckets_.count_some(); }
  void count_on() { buckets_.count_on(); }

  // Writes the bits of these elements, of which there are so many. halves: of the random words, readable for kRowSlack
  // more elements. Element j has the global index index + j * rows.inner.
  void decide(std::uint64_t* bits, const std::uint16_t* halves, std::uint64_t index, std::size_t size) {
    std::fill_n(bits, size / 64 + 2, 0);
    const Drawn drawn{bits, halves, index};
    if (n_ >= kLong) {
      buckets_.finish(classes_, *model_);
      decide_by_value(drawn, decide_tied(drawn, decide_by_bounds(drawn, decide_by_classes(drawn, size))));
    } else if (n_ > kShort) {
      for (std::size_t row = 0; row < size; row += n_) decide_row(drawn, row);
    } else {
      const std::uint16_t high = high_threshold(0), low = high_threshold(static_cast<std::uint32_t>(n_ - 1));
      decide_by_edges<false>(drawn, 0, size, Uniform{{H{} + high, H{} + low}}, {}, comparing(drawn));
    }
  }

 private:
  // The bits, random numbers and global index of the elements that are decided.
  struct Drawn {
    std::uint64_t* bits;
    const std::uint16_t* halves;
    std::uint64_t index;
  };

  // Edges that are the same for all.
  struct Uniform {
    EdgesOfLanes edges;
    FASTMERGE_INLINE_MEMBER Sides operator()(const std::uint16_t* numbers, const std::uint16_t*, int) const {
      return sides_of(numbers, [&](std::size_t) { return edges; });
    }
  };

  // The high half of the drop threshold of a rank.
  std::uint16_t high_threshold(std::uint32_t rank) const {
    return static_cast<std::uint16_t>(rank_threshold(model_->first, model_->step, rank) >> 16);
  }

  bool keeps(const Drawn& drawn, std::size_t at, std::uint32_t rank) const {
    const std::uint32_t drop = rank_threshold(model_->first, model_->step, rank);
    return keeps_element(drawn.halves[at], drop, rows_.key, model_->model, drawn.index + at * rows_.inner);
  }

  static void set(const Drawn& drawn, std::size_t at, bool kept) {
    drawn.bits[at / 64] |= std::uint64_t{kept} << (at % 64);
  }

  // A bucket of one magnitude and many elements, and the rank that it begins at.
  struct Common {
    std::uint16_t id;
    std::uint32_t start;
  };

  // Writes the bits of what the edges of classes decide, from one element up to another, and of the others those that
  // rest(at, open) returns. kCommon: the elements of a bucket lie between the ranks of its elements in every word.
  template <bool kCommon, class EdgesOf, class Rest>
  FASTMERGE_INLINE_MEMBER void decide_by_edges(const Drawn& drawn, std::size_t begin, std::size_t end,
                                               const EdgesOf& edges, Common common, Rest rest) const {
    const std::uint16_t* const ids = ids_;
    const std::uint16_t* const halves = drawn.halves;
    std::uint64_t* const bits = drawn.bits;
    const H wanted = H{} + common.id;
    std::uint32_t rank = common.start;
    for (std::size_t i = begin; i < end; i += 64) {
      const std::uint64_t there = end - i < 64 ? (std::uint64_t{1} << (end - i)) - 1 : ~std::uint64_t{0};
      auto [kept, dropped] = edges(halves + i, ids + i, Classes::kShift);
      if constexpr (kCommon) {
        const auto half = [&](std::size_t j) { return load_as<H>(halves + i + j); };
        // Beyond the row there are ids, too: with these, ranks would exceed the row's, whose thresholds end there.
        const std::uint64_t all =
            there & word_of<std::uint64_t>([&](std::size_t j) { return bits_equal(load_as<H>(ids + i + j), wanted); });
        const H largest = H{} + high_threshold(rank);
        rank += static_cast<std::uint32_t>(__builtin_popcountll(all));
        const H least = H{} + high_threshold(rank - 1);
        const auto above = word_of<std::uint64_t>([&](std::size_t j) { return bits_above(half(j), largest); });
        const auto below = word_of<std::uint64_t>([&](std::size_t j) { return bits_above(least, half(j)); });
        kept = (kept & ~all) | (above & all);
        dropped = (dropped & ~all) | (below & all);
      }
      const std::uint64_t word = (kept & there) | rest(i, there & ~(kept | dropped));
      bits[i / 64] |= word << (i % 64);
      bits[i / 64 + 1] |= word >> 1 >> (63 - i % 64);
    }
  }

  // ---- rows that are compared ----

  void decide_row(const Drawn& drawn, std::size_t row) {
    const std::uint32_t zeros = classes_.count(*model_, ids_ + row, n_);
    const Edges edges = classes_.edges();
    zeros ? decide_by_edges<true>(drawn, row, row + n_, edges, {}, comparing(drawn))
          : decide_by_edges<false>(drawn, row, row + n_, edges, {}, comparing(drawn));
  }

  auto comparing(const Drawn& drawn) const {
    return [&](std::size_t at, std::uint64_t open) {
      std::uint64_t kept = 0;
      for (; open; open &= open - 1) {
        const int i = __builtin_ctzll(open);
        const std::size_t one = at + static_cast<std::size_t>(i);
        kept |= std::uint64_t{keeps(drawn, one, rank_in_row(drawn, one))} << i;
      }
      return kept;
    };
  }

  std::uint32_t rank_in_row(const Drawn& drawn, std::size_t at) const {
    const std::size_t row = (at * per_row_ >> 32) * n_;
    return ids_[at] % 2 == 0 ? rank_of_key(ids_ + row, n_, at - row) : rank_of_value(drawn, row, at);
  }

  // The same in a bucket that may have several magnitudes.
  __attribute__((noinline)) std::uint32_t rank_of_value(const Drawn& drawn, std::size_t row, std::size_t at) const {
    const std::int32_t value = magnitude(drawn, at);
    const H own = H{} + ids_[at];
    std::uint32_t rank = 0;
    for (std::size_t i = row; i < row + n_; i += 32) {
      const std::uint32_t there = row + n_ - i < 32 ? (1u << (row + n_ - i)) - 1 : ~0u;
      const auto ids = [&](std::size_t j) { return load_as<H>(ids_ + i + j); };
      rank += popcount(there & word_of<std::uint32_t>([&](std::size_t j) { return bits_above(own, ids(j)); }));
      std::uint32_t equal = there & word_of<std::uint32_t>([&](std::size_t j) { return bits_equal(own, ids(j)); });
      for (; equal; equal &= equal - 1) {
        const std::size_t one = i + static_cast<std::size_t>(__builtin_ctz(equal));
        const std::int32_t other = magnitude(drawn, one);
        rank += other < value || (other == value && one < at);
      }
    }
    return rank;
  }

  // ---- rows whose keys are counted ----

  // Decides what classes decide; lists the rest, and returns how many these are.
  std::size_t decide_by_classes(const Drawn& drawn, std::size_t size) {
    std::size_t count = 0;
    const auto rest = [&](std::size_t at, std::uint64_t open) {
      count += append_bits(open_.data() + count, at, open);
      return std::uint64_t{0};
    };
    const Edges edges = classes_.edges();
    const std::uint32_t id = buckets_.common();
    if (id == buckets_.kNone) {
      decide_by_edges<false>(drawn, 0, size, edges, {}, rest);
    } else {
      decide_by_edges<true>(drawn, 0, size, edges, {static_cast<std::uint16_t>(id), buckets_.start(id)}, rest);
    }
    return count;
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
      set(drawn, at, kept);
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
        set(drawn, at, keeps(drawn, at, buckets_.tied_rank(at)));
      } else {
        list[others++] = at;
      }
    }
    return others;
  }

  // Decides the first ones of the list, bucket by bucket.
  void decide_by_value(const Drawn& drawn, std::size_t count) {
    const std::uint16_t* const ids = ids_;
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
        set(drawn, list[i], keeps(drawn, list[i], buckets_.start(id) + within));
      }
    }
  }

  std::int32_t magnitude(const Drawn& drawn, std::size_t at) const {
    return magnitude_at(model_->tensor, rows_.base, drawn.index + at * rows_.inner);
  }

  // Rows of up to so many elements have no classes.
  static constexpr std::size_t kShort = 32;
  // Those of so many have buckets.
  static constexpr std::size_t kLong = 768;
  // Elements that are worth a call.
  static constexpr std::size_t kEnough = 4096;
  // Up to that many elements of a bucket are ranked by counting.
  static constexpr std::size_t kFew = 32;

  const RankRows& rows_;
  std::size_t n_, together_;
  std::uint64_t per_row_;  // 2^32 / n_, rounded up
  const RankModel* model_ = nullptr;
  const std::uint16_t* ids_ = nullptr;
  Classes classes_;
  Buckets<Count> buckets_;
  std::vector<std::uint32_t> open_, members_, order_;
  std::vector<std::int32_t> values_;
};

}  // namespace
}  // namespace fastmerge::cpu
