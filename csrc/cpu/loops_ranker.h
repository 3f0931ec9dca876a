// The mask of one row by rank. Part of loops.h; contract: kernels/rank_mask.py.
//
// Few elements need their rank. A histogram of a row's magnitudes bounds the ranks of a bucket, hence the drop
// thresholds in it; the random number of an element mostly lies outside of these bounds. Only what is left undecided is
// ranked in its bucket.
#pragma once

#include "loops_buckets.h"

namespace fastmerge::cpu {
namespace {

// The masks of rows of one length, one row at a time.
class Ranker {
 public:
  explicit Ranker(const RankRows& rows)
      : rows_(rows), n_(rows.length), buckets_(rows), open_(n_ + kRowSlack), undecided_(n_ + kRowSlack) {}

  // Writes the bits of a row. halves: of the random words, readable for kRowSlack more elements. Element j has the
  // global index index + j * rows.inner.
  void run(std::uint32_t* bits, const RowKeys& row, const std::uint16_t* halves, std::uint64_t index) {
    buckets_.fill(row);
    const std::size_t undecided = decide(bits, halves);
    const Drawn drawn{bits, halves, index};
    decide_odd(drawn, decide_even(drawn, undecided));
  }

 private:
  // A row's bits, random numbers and global index.
  struct Drawn {
    std::uint32_t* bits;
    const std::uint16_t* halves;
    std::uint64_t index;
  };

  void decide_by_rank(const Drawn& drawn, std::uint32_t at, std::uint32_t rank) const {
    const std::uint32_t drop = rank_threshold(rows_.first, rows_.step, rank);
    const bool kept = keeps_element(drawn.halves[at], drop, rows_.key, rows_.model, drawn.index + at * rows_.inner);
    drawn.bits[at / 32] |= std::uint32_t{kept} << (at % 32);
  }

  // Writes the bits of what the bounds of buckets decide, lists the rest, and returns how many these are.
  std::size_t decide(std::uint32_t* bits, const std::uint16_t* halves) {
    const std::size_t open = decide_by_class(bits, halves);
    const std::uint32_t* const list = open_.data();
    std::size_t undecided = 0;
    for (std::size_t i = 0; i < open; ++i) {
      // Without branches: they would go either way.
      const std::uint32_t at = list[i], half = halves[at];
      const auto [least, most] = buckets_.ranks(at);
      const bool kept = half > rank_threshold(rows_.first, rows_.step, least) >> 16;
      const bool dropped = half < rank_threshold(rows_.first, rows_.step, most) >> 16;
      bits[at / 32] |= std::uint32_t{kept} << (at % 32);
      undecided_[undecided] = at;
      undecided += !kept && !dropped;
    }
    return undecided;
  }

  // The same by classes of buckets.
  std::size_t decide_by_class(std::uint32_t* bits, const std::uint16_t* halves) {
    const std::uint32_t* const edges = buckets_.edges();
    const std::uint16_t* const ids = buckets_.ids();
    std::uint32_t* const list = open_.data();
    const int shift = buckets_.class_shift();
    const std::size_t n = n_;
    U position = kLaneNumbers;
    std::size_t open = 0;
    for (std::size_t i = 0; i < n; i += 32) {
      std::uint32_t kept = 0;
      for (int j = 0; j < 32; j += kWidth, position += kWidth) {
        const U edge = looked_up(edges, load_halves(ids + i + j) >> shift);
        const S half = (S)load_halves(halves + i + j);
        const unsigned above = mask_bits(half > (S)(edge >> 16));
        kept |= above << j;
        const unsigned between = mask_bits(half >= (S)(edge & 0xFFFFu)) & ~above;
        open += store_selected(list + open, position, between);
      }
      bits[i / 32] = n - i < 32 ? kept & ((1u << (n - i)) - 1) : kept;
    }
    while (open > 0 && list[open - 1] >= n) --open;
    return open;
  }

  // Decides the undecided even elements; moves the odd ones to the front and returns how many these are.
  std::size_t decide_even(const Drawn& drawn, std::size_t undecided) {
    std::uint32_t* const list = undecided_.data();
    std::uint32_t* const left = open_.data();
    std::size_t odd = 0, even = 0;
    for (std::size_t u = 0; u < undecided; ++u) {
      const std::uint32_t at = list[u], half = drawn.halves[at];
      if (buckets_.is_odd(at)) {
        list[odd++] = at;
        continue;
      }
      const auto [least, most] = buckets_.even_ranks(at);
      const bool kept = half > rank_threshold(rows_.first, rows_.step, least) >> 16;
      const bool dropped = half < rank_threshold(rows_.first, rows_.step, most) >> 16;
      drawn.bits[at / 32] |= std::uint32_t{kept} << (at % 32);
      left[even] = at;
      even += !kept && !dropped;
    }
    buckets_.expect_even(even);
    for (std::size_t u = 0; u < even; ++u) decide_by_rank(drawn, left[u], buckets_.even_rank(left[u]));
    return odd;
  }

  // Decides the first ones of the list, bucket by bucket.
  void decide_odd(const Drawn& drawn, std::size_t odd) {
    std::uint32_t* const list = undecided_.data();
    const std::uint16_t* const ids = buckets_.ids();
    buckets_.expect_odd(odd);
    std::stable_sort(list, list + odd, [&](std::uint32_t a, std::uint32_t b) { return ids[a] < ids[b]; });
    for (std::size_t begin = 0, end = 0; begin < odd; begin = end) {
      while (end < odd && ids[list[end]] == ids[list[begin]]) ++end;
      buckets_.odd_ranks(list + begin, list + end,
                         [&](std::uint32_t at, std::uint32_t rank) { decide_by_rank(drawn, at, rank); });
    }
  }

  const RankRows& rows_;
  std::size_t n_;
  Buckets buckets_;
  std::vector<std::uint32_t> open_, undecided_;
};

}  // namespace
}  // namespace fastmerge::cpu
