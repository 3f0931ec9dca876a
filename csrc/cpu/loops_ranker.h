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
      : rows_(rows),
        n_(rows.length),
        buckets_(rows),
        open_(n_ + kRowSlack),
        open_positions_(n_ + kRowSlack),
        open_edges_(n_ + kRowSlack),
        open_bits_(n_ / 32 + 1),
        decided_(n_ / 32 + 3),
        undecided_(n_ + kRowSlack) {}

  // Writes the bits of a row. halves: of the random words, readable for kRowSlack more elements. Element j has the
  // global index index + j * rows.inner.
  void run(std::uint32_t* bits, const RowKeys& row, const std::uint16_t* halves, std::uint64_t index) {
    buckets_.fill(row);
    const std::size_t undecided = decide(bits, halves);
    const Drawn drawn{bits, halves, index};
    decide_odd(drawn, decide_even(drawn, undecided));
  }

 private:
  // No position.
  static constexpr std::uint32_t kNone = 0x7FFFFFFF;

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

  // Writes the bits of what the bounds decide, lists the rest, and returns how many these are.
  std::size_t decide(std::uint32_t* bits, const std::uint16_t* halves) {
    // To list what needs a look pays where lanes are selected by an instruction.
    return kWidth < 8 ? decide_each(bits, halves) : decide_open(bits, halves);
  }

  std::size_t decide_each(std::uint32_t* bits, const std::uint16_t* halves) {
    const std::uint16_t* const ids = buckets_.ids();
    const std::uint32_t* const edges = buckets_.edges();
    std::uint32_t* const undecided = undecided_.data();
    std::size_t count = 0;
    for (std::size_t i = 0; i < n_; i += 32) {
      std::uint32_t kept = 0, open = 0;
      for (int j = 0; j < 32; j += kWidth) {
        std::uint32_t found[kWidth];
        for (int lane = 0; lane < kWidth; ++lane) found[lane] = edges[ids[i + j + lane]];
        const U edge = load_as<U>(found);
        const S half = (S)load_halves(halves + i + j);
        kept |= mask_bits(half > (S)(edge >> 16)) << j;
        open |= mask_bits(half >= (S)(edge & 0xFFFFu)) << j;
      }
      const std::uint32_t valid = n_ - i < 32 ? (1u << (n_ - i)) - 1 : ~0u;
      bits[i / 32] = kept & valid;
      for (open &= ~kept & valid; open; open &= open - 1) {
        undecided[count++] = static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(__builtin_ctz(open));
      }
    }
    return count;
  }

  std::size_t decide_open(std::uint32_t* bits, const std::uint16_t* halves) {
    const std::size_t open = list_open(bits, halves);
    std::uint32_t* const edges = open_edges_.data();
    const std::uint32_t* const words = open_.data();
    const std::uint32_t* const table = buckets_.edges();
    // Faster than gathers.
    for (std::size_t i = 0; i < open; ++i) edges[i] = table[words[i] >> 16];
    const std::uint32_t* const positions = open_positions_.data();
    std::uint32_t* const undecided = undecided_.data();
    std::uint32_t* const decided = decided_.data();
    std::size_t count = 0;
    for (std::size_t i = 0; i < open; i += 32) {
      std::uint32_t kept = 0;
      for (int j = 0; j < 32; j += kWidth) {
        const U edge = load_as<U>(edges + i + j);
        const S half = (S)(load_as<U>(words + i + j) & 0xFFFFu);
        const unsigned above = mask_bits(half > (S)(edge >> 16));
        kept |= above << j;
        const unsigned rest = mask_bits(half >= (S)(edge & 0xFFFFu)) & ~above;
        count += store_selected(undecided + count, load_as<U>(positions + i + j), rest);
      }
      decided[i / 32] = kept;
    }
    // What stood behind the list is no element of it.
    while (count > 0 && undecided[count - 1] == kNone) --count;
    std::size_t at = 0;
    for (std::size_t i = 0; i < n_; i += 32) {
      const std::uint32_t word = open_bits_[i / 32];
      const std::uint64_t next = decided[at / 32] | std::uint64_t{decided[at / 32 + 1]} << 32;
      bits[i / 32] |= deposit_bits(static_cast<std::uint32_t>(next >> (at % 32)), word);
      at += static_cast<std::size_t>(__builtin_popcount(word));
    }
    return count;
  }

  // Lists the elements whose random number lies between the thresholds of the first and the last rank; writes the bits
  // of the others.
  std::size_t list_open(std::uint32_t* bits, const std::uint16_t* halves) {
    const S first = S{} + static_cast<std::int32_t>(*buckets_.edges() >> 16);
    const S last = S{} + static_cast<std::int32_t>(buckets_.last_edge() & 0xFFFFu);
    const std::uint16_t* const ids = buckets_.ids();
    std::uint32_t* const words = open_.data();
    std::uint32_t* const positions = open_positions_.data();
    std::uint32_t* const masks = open_bits_.data();
    U position = kLaneNumbers;
    const std::size_t n = n_;
    std::size_t open = 0;
    for (std::size_t i = 0; i < n; i += 32) {
      const std::uint32_t valid = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
      std::uint32_t kept = 0, mask = 0;
      for (int j = 0; j < 32; j += kWidth, position += kWidth) {
        const U half = load_halves(halves + i + j);
        const unsigned above = mask_bits((S)half > first);
        const unsigned between = mask_bits((S)half >= last) & ~above & (valid >> j);
        store_selected(words + open, load_halves(ids + i + j) << 16 | half, between);
        open += store_selected(positions + open, position, between);
        kept |= above << j;
        mask |= between << j;
      }
      bits[i / 32] = kept & valid;
      masks[i / 32] = mask;
    }
    const U none = U{} + kNone;
    for (int j = 0; j < 32; j += kWidth) store_as(positions + open + j, none);
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
  std::vector<std::uint32_t> open_, open_positions_, open_edges_, open_bits_, decided_, undecided_;
};

}  // namespace
}  // namespace fastmerge::cpu
